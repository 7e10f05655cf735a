#include "arena.h"

namespace bertfast::plan {
namespace {

constexpr int64_t most_kept = 64 << 20;  // bytes

}  // namespace

char* ThreadArena::acquire(int64_t bytes) {
  if (bytes > most_kept) return (large_ = allocate_aligned<char, page>(bytes)).get();
  if (bytes > kept_size_) {
    kept_.reset();  // before the larger one is allocated
    kept_size_ = 0;
    kept_ = allocate_aligned<char, page>(bytes);
    kept_size_ = bytes;
  }
  return kept_.get();
}

}  // namespace bertfast::plan
