// Memory of a replay for the results that later ops read.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../aligned_memory.h"

namespace bertfast::plan {

// One thread's arena. It keeps up to 64 MiB between calls and frees larger memory at the end of the lease.
class ThreadArena {
 public:
  class Lease {
   public:
    Lease(ThreadArena& arena, int64_t bytes) : arena_(arena), data_(arena.acquire(bytes)) {}
    ~Lease() { arena_.large_.reset(); }
    Lease(const Lease&) = delete;
    Lease& operator=(const Lease&) = delete;
    char* data() const { return data_; }

   private:
    ThreadArena& arena_;
    char* data_;
  };

 private:
  static constexpr size_t page = 4096;

  char* acquire(int64_t bytes);

  AlignedMemory<char, page> kept_, large_;
  int64_t kept_size_ = 0;
};

// To whole cache lines, so that results start on one where their widths allow it.
constexpr int64_t to_cache_lines(int64_t bytes) { return (bytes + 63) / 64 * 64; }

}  // namespace bertfast::plan
