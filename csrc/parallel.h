// The thread pool. Work comes as steps of independent items, with a barrier after each step.
//
// Threads claim items from a counter, so that a slow core, or one whose thread wakes late, takes fewer, and nobody waits for a thread that
// has not begun. Not OpenMP: a forked child hangs in libgomp, and a wheel would bring a second copy of it.
#pragma once

#include <cstdint>

namespace bertfast {

struct Step {
  int64_t items;
  void (*run)(const void* op, int64_t item);
  const void* op;
};

// Runs the steps in order on all threads of the pool, the caller among them. Safe from several threads at once: the pool serves one, the
// others compute alone. Safe in a forked child, which starts its own threads on first use. Rethrows the first exception of an item, from
// whichever thread, once no thread is at work; later items are skipped.
void run_steps(const Step* steps, int64_t count);

// One step over an object with `int64_t items() const` and `void run(int64_t item) const`.
template <class Op>
Step step_of(const Op& op) {
  return {op.items(), [](const void* self, int64_t item) { static_cast<const Op*>(self)->run(item); }, &op};
}

template <class Op>
void run_op(const Op& op) {
  const Step step = step_of(op);
  run_steps(&step, 1);
}

// Number of computing threads, the caller included. 0: what the default's `ask` returns when the pool is first needed, in this process
// and again in a forked child, or what update_default_threads has said since.
void set_num_threads(int threads);
int num_threads();
void set_default_threads(int (*ask)());
void update_default_threads(int threads);

// This thread's scratch memory for a kernel, at least `floats` long, 64-byte aligned, kept between calls.
float* scratch(int64_t floats);

}  // namespace bertfast
