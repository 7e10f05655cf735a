// One small pool of threads for everything. Kernels work on a piece and know no threads; work arrives here as
// steps, each a number of independent items, and a step starts only when the one before it is complete.
//
// Items are handed out by a counter, so a core that is slow, or whose thread wakes late, takes fewer of them and
// nobody waits for a thread that has not begun. No OpenMP: a forked child hangs in libgomp, and a wheel would bring
// a second copy of it.
#pragma once

#include <cstdint>

namespace bertfast {

struct Step {
  int64_t items;
  void (*run)(const void* op, int64_t item);
  const void* op;
};

// Runs the steps in order on all threads of the pool, the caller among them. Safe from any number of threads at
// once: the pool serves one caller, the others compute alone meanwhile. Safe in a forked child, which starts its
// own threads when it first needs them.
// What an item throws, on whichever thread, is thrown here, when no thread is at work any more; later items are left out then.
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

// How many threads compute, the caller included. 0: ask the default below when the pool is first needed, in this
// process and anew in a forked child.
void set_num_threads(int threads);
int num_threads();
void set_default_threads(int (*ask)());

// Room of this thread for a kernel's tiles, at least `floats` long, 64-byte aligned, kept between calls.
float* scratch(int64_t floats);

}  // namespace bertfast
