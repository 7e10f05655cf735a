#include "arena.h"

#include <new>

namespace bertfast::plan {
namespace {

constexpr int64_t most_kept = 64 << 20;  // bytes
constexpr int64_t page = 4096;

}  // namespace

ThreadArena::Memory ThreadArena::allocate(int64_t bytes) {
  Memory memory(static_cast<char*>(std::aligned_alloc(page, static_cast<size_t>((bytes + page - 1) / page * page))));
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

char* ThreadArena::acquire(int64_t bytes) {
  if (bytes > most_kept) return (large_ = allocate(bytes)).get();
  if (bytes > kept_size_) {
    kept_.reset();  // before the larger one is allocated
    kept_size_ = 0;
    kept_ = allocate(bytes);
    kept_size_ = bytes;
  }
  return kept_.get();
}

}  // namespace bertfast::plan
