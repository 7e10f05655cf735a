#include "parallel.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "aligned_memory.h"

namespace bertfast {
namespace {

using Clock = std::chrono::steady_clock;

// An idle thread spins so long before it sleeps: longer than the pause between two ops of a forward, too short to show as load.
constexpr std::chrono::microseconds idle_spin{50};
// A thread that waits at a barrier yields its core after so long: the others may need it.
constexpr std::chrono::microseconds busy_spin{100};

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

template <class Done>
bool spin_until(Done done, std::chrono::microseconds limit) {
  for (int i = 0; i < 256; ++i) {
    if (done()) return true;
    pause();
  }
  const auto end = Clock::now() + limit;
  while (!done()) {
    for (int i = 0; i < 32; ++i) pause();
    if (Clock::now() > end) return done();
  }
  return true;
}

template <class Done>
void wait_until(Done done) {
  if (spin_until(done, busy_spin)) return;
  while (!done()) std::this_thread::yield();
}

// How a thread rounds, traps, and treats denormals; it changes bits, so all threads of a step share the caller's.
using FloatEnvironment = uint64_t;

FloatEnvironment float_environment() {
#if defined(__x86_64__)
  return __builtin_ia32_stmxcsr();
#elif defined(__aarch64__)
  FloatEnvironment environment;
  asm volatile("mrs %0, fpcr" : "=r"(environment));
  return environment;
#else
  return 0;
#endif
}

void set_float_environment([[maybe_unused]] FloatEnvironment environment) {
#if defined(__x86_64__)
  __builtin_ia32_ldmxcsr(static_cast<unsigned>(environment));
#elif defined(__aarch64__)
  asm volatile("msr fpcr, %0" : : "r"(environment));
#endif
}

struct alignas(64) Progress {  // of a step, on its own cache line
  std::atomic<int64_t> taken{0};
  std::atomic<int64_t> finished{0};
};

// The first exception of an item, to be rethrown by the caller.
class Failure {
 public:
  bool any() const { return any_.load(std::memory_order_relaxed); }
  void keep(std::exception_ptr thrown) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (!any()) thrown_ = std::move(thrown);
    any_.store(true, std::memory_order_relaxed);
  }
  void rethrow() const {
    if (any()) std::rethrow_exception(thrown_);
  }

 private:
  std::atomic<bool> any_{false};
  std::mutex mutex_;
  std::exception_ptr thrown_;
};

struct Job {
  const Step* steps;
  int64_t count;
  Progress* progress;
  Failure* failure;
  FloatEnvironment environment;

  // Any thread may enter at any time: a complete step costs it two loads.
  void work() const {
    for (int64_t s = 0; s < count; ++s) {
      const Step& step = steps[s];
      Progress& at = progress[s];
      int64_t mine = 0;
      while (at.taken.load(std::memory_order_relaxed) < step.items) {
        const int64_t item = at.taken.fetch_add(1, std::memory_order_relaxed);
        if (item >= step.items) break;
        run(step, item);
        ++mine;
      }
      if (mine != 0) at.finished.fetch_add(mine, std::memory_order_acq_rel);
      wait_until([&] { return at.finished.load(std::memory_order_acquire) == step.items; });
    }
  }

 private:
  void run(const Step& step, int64_t item) const {  // after a failure items are only counted, for threads at the barrier
    if (failure->any()) return;
    try {
      step.run(step.op, item);
    } catch (...) {
      failure->keep(std::current_exception());
    }
  }
};

void run_alone(const Step* steps, int64_t count) {
  for (int64_t s = 0; s < count; ++s)
    for (int64_t item = 0; item < steps[s].items; ++item) steps[s].run(steps[s].op, item);
}

class Pool {
 public:
  explicit Pool(int threads) : size_(threads) {
    try {
      for (int i = 1; i < threads; ++i) workers_.emplace_back([this] { serve(); });
    } catch (const std::system_error&) {  // the process may start no more threads: fewer do the work
    } catch (const std::bad_alloc&) {     // or has no memory for them; threads that started must be joined, so nothing may leave here
    }
  }

  ~Pool() {
    stop_ = true;
    start(nullptr);
    for (std::thread& worker : workers_) worker.join();
  }

  void run(const Step* steps, int64_t count) {
    if (count > capacity_) {
      progress_ = std::make_unique<Progress[]>(static_cast<size_t>(count));
      capacity_ = count;
    } else {
      for (int64_t s = 0; s < count; ++s) {
        progress_[s].taken.store(0, std::memory_order_relaxed);
        progress_[s].finished.store(0, std::memory_order_relaxed);
      }
    }
    Failure failure;
    const Job job{steps, count, progress_.get(), &failure, float_environment()};
    start(&job);
    job.work();
    job_ = nullptr;  // a thread that wakes from here on finds no job
    wait_until([this] { return inside_ == 0; });
    failure.rethrow();
  }

  int size() const { return size_; }

 private:
  void start(const Job* job) {
    job_ = job;
    ++round_;
    if (asleep_ != 0) {
      {
        std::lock_guard<std::mutex> lock(mutex_);
      }
      wake_.notify_all();
    }
  }

  void serve() {
    uint64_t seen = 0;
    const auto called = [&] { return round_ != seen; };
    while (true) {
      if (!spin_until(called, idle_spin)) {
        std::unique_lock<std::mutex> lock(mutex_);
        ++asleep_;
        wake_.wait(lock, called);
        --asleep_;
      }
      if (stop_) return;
      seen = round_;
      ++inside_;  // before job_ is read: run() clears job_ before it reads inside_
      if (const Job* job = job_) {
        set_float_environment(job->environment);
        job->work();
      }
      --inside_;
    }
  }

  const int size_;
  std::vector<std::thread> workers_;
  std::atomic<uint64_t> round_{0};
  std::atomic<const Job*> job_{nullptr};
  std::atomic<int> inside_{0};
  std::atomic<int> asleep_{0};
  std::atomic<bool> stop_{false};
  std::mutex mutex_;
  std::condition_variable wake_;
  std::unique_ptr<Progress[]> progress_;
  int64_t capacity_ = 0;
};

int all_cores() { return static_cast<int>(std::max(1u, std::thread::hardware_concurrency())); }

// What a forked child must not inherit: the pool's threads do not exist there, and its locks may be held by threads that do not exist.
// Never destroyed.
struct State {
  std::mutex serving;  // held by the caller that the pool serves
  std::unique_ptr<Pool> pool;
  std::mutex settings;
  int configured = 0;  // as set; survives a fork
  int resolved = 0;    // in this process; 0: not yet asked
};

alignas(State) char state_memory[sizeof(State)];
State* state = new (state_memory) State;
int (*default_threads)() = all_cores;

void reset_in_child() {  // allocates nothing: an error could go nowhere
  const int configured = state->configured;
  state = new (state_memory) State;
  state->configured = configured;
}

// Registered when the library is loaded.
const int fork_handler = pthread_atfork(nullptr, nullptr, reset_in_child);

}  // namespace

void run_steps(const Step* steps, int64_t count) {
  int64_t widest = 0;
  for (int64_t s = 0; s < count; ++s) widest = std::max(widest, steps[s].items);
  std::unique_lock<std::mutex> serving(state->serving, std::try_to_lock);
  if (!serving.owns_lock() || widest <= 1) return run_alone(steps, count);
  const int threads = num_threads();
  if (threads == 1) return run_alone(steps, count);
  if (state->pool == nullptr || state->pool->size() != threads) {
    state->pool.reset();
    state->pool = std::make_unique<Pool>(threads);
  }
  state->pool->run(steps, count);
}

void set_num_threads(int threads) {
  std::lock_guard<std::mutex> lock(state->settings);
  state->configured = threads;
  state->resolved = 0;
}

void update_default_threads(int threads) {
  std::lock_guard<std::mutex> lock(state->settings);
  if (state->configured == 0) state->resolved = std::max(1, threads);
}

int num_threads() {
  std::lock_guard<std::mutex> lock(state->settings);
  if (state->resolved == 0) state->resolved = state->configured > 0 ? state->configured : std::max(1, default_threads());
  return state->resolved;
}

void set_default_threads(int (*ask)()) { default_threads = ask; }

float* scratch(int64_t floats) {
  struct Scratch {
    AlignedMemory<float, 64> data;
    int64_t size = 0;
  };
  thread_local Scratch memory;
  if (memory.size < floats) {
    memory.size = 0;
    memory.data.reset();
    const int64_t size = (floats + 1023) / 1024 * 1024;  // a KV cache grows by one position a step
    memory.data = allocate_aligned<float, 64>(size);
    memory.size = size;
  }
  return memory.data.get();
}

}  // namespace bertfast
