// What the files that cut ops into items share.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels.h"
#include "ops.h"

namespace bertfast::cpu {

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Elements of an item of a memory-bound op: a few microseconds, more than it costs to hand the item out.
constexpr int64_t row_grain = 8192;

inline int64_t rows_per_item(int64_t columns) { return std::max<int64_t>(1, row_grain / std::max<int64_t>(1, columns)); }

struct RowRange {
  int64_t first, last;
};

inline RowRange rows_of_item(int64_t item, int64_t rows, int64_t columns) {
  const int64_t step = rows_per_item(columns);
  return {item * step, std::min(rows, (item + 1) * step)};
}

template <class Number>
const KernelsOf<Number>& kernels_of(const Kernels& kernels) {
  if constexpr (sizeof(Number) == sizeof(float))
    return kernels.of_float;
  else
    return kernels.of_bfloat16;
}

// Quantizes rows of x, [rows, columns], which the calling thread has just written, for the int8 product that reads them.
inline void quantize_rows(const Kernels& kernels, const float* x, int64_t columns, char* quantized, RowRange rows) {
  const int64_t blocks = hadamard_blocks(columns), groups = int8_groups(blocks);
  kernels.of_int8.quantize({x, quantized, columns, blocks, columns, rows.last}, rows.first * groups, rows.last * groups);
}

// Throws std::invalid_argument unless every index is in [0, rows). Returns whether they ascend.
bool check_indices(const int64_t* indices, int64_t count, int64_t rows, const char* op);

// Throws std::invalid_argument unless 0 <= row < rows, the rows of a KV cache.
void check_cache_row(const char* op, int64_t token, int64_t row, int64_t rows);

}  // namespace bertfast::cpu
