// A KV cache as Python describes it.
#pragma once

#include <array>
#include <cstdint>

#include "../cpu/kernels.h"

namespace bertfast {

using CacheShape = std::array<int64_t, 4>;        // of keys and of values: rows, heads, positions, head_size
using CacheSideStrides = std::array<int64_t, 3>;  // of keys or of values: from one row, head and position to the next, in elements

inline cpu::CacheStrides cache_strides(const CacheSideStrides& keys, const CacheSideStrides& values) {
  return {keys[0], keys[1], keys[2], values[0], values[1], values[2]};
}

}  // namespace bertfast
