#include "openmp.h"

#include <dlfcn.h>
#include <pthread.h>

#include <atomic>

namespace bertfast {
namespace {

// OpenMP 5.0's omp_pause_resource_all and omp_pause_hard. libgomp: ends the team of the calling thread, at once where it has none; within a
// parallel region it does nothing.
using Pause = int (*)(int kind);
constexpr int hard = 2;

std::atomic<Pause> pause{nullptr};

void before_fork() {
  if (const Pause call = pause) call(hard);
}

// Not os.register_at_fork: servers fork in C as well.
const int fork_handler = pthread_atfork(before_fork, nullptr, nullptr);

}  // namespace

bool end_openmp_threads_before_forks() {
  // By name: torch brings the runtime, and the one found here is the one that its own calls find.
  if (dlsym(RTLD_DEFAULT, "__kmpc_fork_call") != nullptr) return false;  // LLVM's or Intel's
  pause = reinterpret_cast<Pause>(dlsym(RTLD_DEFAULT, "omp_pause_resource_all"));
  return pause != nullptr;
}

}  // namespace bertfast
