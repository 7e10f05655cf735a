// out[m, n] = activation(sum over k of x[m, k] * weight[n, k], plus bias[n]): tiles of dot products along k.
//
// Both operands lie as torch keeps them, row-major with k contiguous, so nothing is packed and no second copy of the
// weights exists. A tile's sums stay in registers, and their order depends on k alone: a row gives the same bits alone and
// in any batch, on any number of threads.
#pragma once

#include "math.inl.h"
#include "vec.h"

namespace bertfast::cpu::BERTFAST_ISA_NAME {
namespace {

constexpr int64_t tile_cols = 4;      // Vec::store_sums adds up four vectors at once
constexpr int64_t block_cols = 96;    // columns of weight that stay in L2 while all rows pass
constexpr int64_t block_depth = 768;  // k at a time: a tile's rows of x and weight stay in L1
constexpr int64_t linear_scratch = 0;

// Where one pass over k reads and writes.
struct LinearPass {
  const float* x;
  const float* weight;
  const float* bias;  // null: none
  float* out;
  int64_t x_stride, weight_stride, out_stride, depth;
  bool first;  // starts from the bias; later passes add to out
};

// GCC 12 keeps `sum` in memory, at half the speed, unless every loop over it is unrolled by name.
template <int64_t rows, int64_t cols>
inline void linear_tile(const LinearPass& at, const float* x, int64_t n, float* out) {
  const float* weight = at.weight + n * at.weight_stride;
  Vec sum[rows][tile_cols];
#pragma GCC unroll 8
  for (int64_t m = 0; m < rows; ++m)
#pragma GCC unroll 8
    for (int64_t c = 0; c < tile_cols; ++c) sum[m][c] = Vec::all(0.0f);

  for_each_block(at.depth, [&](int64_t k, int64_t lanes) {
    Vec w[cols];
#pragma GCC unroll 8
    for (int64_t c = 0; c < cols; ++c) w[c] = Vec::load(weight + c * at.weight_stride + k, lanes);
#pragma GCC unroll 8
    for (int64_t m = 0; m < rows; ++m) {
      const Vec a = Vec::load(x + m * at.x_stride + k, lanes);
#pragma GCC unroll 8
      for (int64_t c = 0; c < cols; ++c) sum[m][c] = multiply_add(a, w[c], sum[m][c]);
    }
  });

#pragma GCC unroll 8
  for (int64_t m = 0; m < rows; ++m) {
    float totals[tile_cols];
    Vec::store_sums(sum[m], totals);
    float* to = out + m * at.out_stride + n;
    for (int64_t c = 0; c < cols; ++c) to[c] = totals[c] + (!at.first ? to[c] : at.bias ? at.bias[n + c] : 0.0f);
  }
}

// `count` rows (1 .. rows) of all columns [n0, n1).
template <int64_t rows>
void linear_rows(const LinearPass& at, int64_t count, int64_t row, int64_t n0, int64_t n1) {
  if constexpr (rows > 1)
    if (count < rows) return linear_rows<rows - 1>(at, count, row, n0, n1);
  const float* x = at.x + row * at.x_stride;
  float* out = at.out + row * at.out_stride;
  int64_t n = n0;
  for (; n + tile_cols <= n1; n += tile_cols) linear_tile<rows, tile_cols>(at, x, n, out);
  for (; n < n1; ++n) linear_tile<rows, 1>(at, x, n, out);
}

void linear(const Linear& op, int64_t row0, int64_t row1, int64_t col0, int64_t col1, float*) {
  const int64_t tiles = (row1 - row0 + Vec::tile_rows - 1) / Vec::tile_rows;
  for (int64_t n0 = col0; n0 < col1; n0 += block_cols) {
    const int64_t n1 = n0 + block_cols < col1 ? n0 + block_cols : col1;
    int64_t k = 0;
    do {
      const int64_t depth = k + block_depth < op.inputs ? block_depth : op.inputs - k;
      const LinearPass at = {op.x + k, op.weight + k, op.bias, op.out, op.x_stride, op.inputs, op.out_stride, depth, k == 0};
      k += block_depth;
      for (int64_t tile = 0; tile < tiles; ++tile) {  // tiles of nearly the same height
        const int64_t row = row0 + (row1 - row0) * tile / tiles, end = row0 + (row1 - row0) * (tile + 1) / tiles;
        linear_rows<Vec::tile_rows>(at, end - row, row, n0, n1);
        if (k >= op.inputs)
          for (int64_t m = row; m < end; ++m) activate(op.activation, op.out + m * op.out_stride + n0, n1 - n0);
      }
    } while (k < op.inputs);
  }
}

}  // namespace
}  // namespace bertfast::cpu::BERTFAST_ISA_NAME
