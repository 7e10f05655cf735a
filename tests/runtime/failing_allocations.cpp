// Preloaded into a Python process: lets the allocations of one library, bertfast._C, fail in turn.
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>

#include "../native/operator_delete.h"

namespace {

std::atomic<bool> armed{false}, later_ones_fail{false};
std::atomic<int> left{0};  // allocations before one fails
std::atomic<uintptr_t> code_begin{0}, code_end{0};

void* allocate(size_t bytes, size_t alignment, const void* caller) {
  const auto from = reinterpret_cast<uintptr_t>(caller);
  if (armed && from >= code_begin && from < code_end) {
    const int before = left.fetch_sub(1);
    if (later_ones_fail ? before <= 0 : before == 0) throw std::bad_alloc();
  }
  const size_t whole = ((bytes == 0 ? 1 : bytes) + alignment - 1) / alignment * alignment;
  void* memory = alignment <= alignof(std::max_align_t) ? std::malloc(whole) : std::aligned_alloc(alignment, whole);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

}  // namespace

void* operator new(size_t bytes) { return allocate(bytes, alignof(std::max_align_t), __builtin_return_address(0)); }
void* operator new[](size_t bytes) { return allocate(bytes, alignof(std::max_align_t), __builtin_return_address(0)); }
void* operator new(size_t bytes, std::align_val_t alignment) {
  return allocate(bytes, static_cast<size_t>(alignment), __builtin_return_address(0));
}
void* operator new[](size_t bytes, std::align_val_t alignment) {
  return allocate(bytes, static_cast<size_t>(alignment), __builtin_return_address(0));
}

extern "C" {
// From now on the allocation after `count` others fails (or that and all later), of those that code in [begin, end) makes.
void fail_after(int count, bool and_later, uintptr_t begin, uintptr_t end) {
  armed = false;
  left = count;
  later_ones_fail = and_later;
  code_begin = begin;
  code_end = end;
  armed = true;
}

// None fails any more. Whether one did.
bool stop_failing() {
  armed = false;
  return left < 0;
}
}
