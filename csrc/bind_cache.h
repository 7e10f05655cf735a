// A KV cache as Python hands it over.
#pragma once

#include <array>
#include <cstdint>

#include "cpu/kernels.h"

namespace bertfast {

using CacheDims = std::array<int64_t, 4>;   // of keys and of values: rows, heads, cells, head_size
using CacheSteps = std::array<int64_t, 3>;  // from one of the first three to the next, in numbers

inline cpu::CacheStrides cache_strides(const CacheSteps& keys, const CacheSteps& values) {
  return {keys[0], keys[1], keys[2], values[0], values[1], values[2]};
}

}  // namespace bertfast
