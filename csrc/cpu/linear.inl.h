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

constexpr int64_t tile_cols = 4;       // Vec::sums adds up four vectors at once
constexpr int64_t block_cols = 96;     // columns of weight that stay in L2 while all rows pass
constexpr int64_t block_depth = 768;   // k at a time: a tile's rows of x and weight stay in L1
constexpr int64_t few_rows = 48;       // up to here a column's rows of x stay in cache, and weights come from memory
constexpr int64_t linear_scratch = 0;  // floats

// One pass over a range of k for a block of columns.
struct LinearPass {
  const float* x;
  const float* weight;
  const float* bias;  // null: none
  float* out;
  int64_t x_stride, weight_stride, out_stride, depth;
  bool first;  // starts from the bias; later passes add to out
};

constexpr int64_t line = 16;  // floats in a cache line

// What a tile fetches into L2 while it computes: some rows of weight that are needed soon.
struct Ahead {
  const float* weight;
  int64_t rows;
};

// GCC 12 keeps `sum` in memory, at half the speed, unless every loop over it is unrolled by name; and, on AVX2, where
// the tile is inlined among its callers' loops.
template <int64_t rows, int64_t cols, bool fetch>
__attribute__((noinline)) void linear_tile(const LinearPass& at, const float* x, int64_t n, float* out, Ahead ahead) {
  const float* weight = at.weight + n * at.weight_stride;
  Vec sum[rows][tile_cols];
#pragma GCC unroll 8
  for (int64_t m = 0; m < rows; ++m)
#pragma GCC unroll 8
    for (int64_t c = 0; c < tile_cols; ++c) sum[m][c] = Vec::all(0.0f);

  for_each_block(at.depth, [&](int64_t k, int64_t lanes) {
    if (fetch && k % line == 0)
      for (int64_t c = 0; c < ahead.rows; ++c) __builtin_prefetch(ahead.weight + c * at.weight_stride + k, 0, 2);
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

  Quad start = {};
  if (at.first && at.bias) start = load_quad(at.bias + n, cols);
#pragma GCC unroll 8
  for (int64_t m = 0; m < rows; ++m) {
    float* to = out + m * at.out_stride + n;
    if (!at.first) start = load_quad(to, cols);
    store_quad(to, Vec::sums(sum[m]) + start, cols);
  }
}

// `count` rows (1 .. rows) of `cols` columns.
template <int64_t rows, int64_t cols, bool fetch>
void linear_rows(const LinearPass& at, int64_t count, int64_t row, int64_t n, Ahead ahead) {
  if constexpr (rows > 1)
    if (count < rows) return linear_rows<rows - 1, cols, fetch>(at, count, row, n, ahead);
  linear_tile<rows, cols, fetch>(at, at.x + row * at.x_stride, n, at.out + row * at.out_stride, ahead);
}

// Columns [n, end), at most tile_cols, of rows [row, bottom), at most a tile's height.
template <bool fetch>
inline void linear_corner(const LinearPass& at, int64_t row, int64_t bottom, int64_t n, int64_t end, Ahead ahead) {
  if (end - n == tile_cols) return linear_rows<Vec::tile_rows, tile_cols, fetch>(at, bottom - row, row, n, ahead);
  for (; n < end; ++n) linear_rows<Vec::tile_rows, 1, false>(at, bottom - row, row, n, ahead);
}

// Few rows: a few columns at a time for all of them, while the next columns come from memory, a share with each tile.
void linear_few(const LinearPass& at, int64_t row0, int64_t row1, int64_t n0, int64_t n1) {
  const int64_t rows = row1 - row0, tiles = (rows + Vec::tile_rows - 1) / Vec::tile_rows;
  for (int64_t n = n0; n < n1; n += tile_cols) {
    const int64_t end = n + tile_cols < n1 ? n + tile_cols : n1, next = end + tile_cols < n1 ? tile_cols : n1 - end;
    for (int64_t tile = 0; tile < tiles; ++tile) {
      const int64_t from = next * tile / tiles, to = next * (tile + 1) / tiles;
      linear_corner<true>(at, row0 + rows * tile / tiles, row0 + rows * (tile + 1) / tiles, n, end,
                          {at.weight + (end + from) * at.weight_stride, to - from});
    }
  }
}

// Many rows: all columns of the block for one tile's rows, which stay in L1, then the next tile's.
void linear_many(const LinearPass& at, int64_t row0, int64_t row1, int64_t n0, int64_t n1) {
  const int64_t rows = row1 - row0, tiles = (rows + Vec::tile_rows - 1) / Vec::tile_rows;
  for (int64_t tile = 0; tile < tiles; ++tile)  // of nearly the same height
    for (int64_t n = n0; n < n1; n += tile_cols) {
      const int64_t end = n + tile_cols < n1 ? n + tile_cols : n1, next = end + tile_cols < n1 ? tile_cols : n1 - end;
      linear_corner<Vec::room_to_prefetch>(at, row0 + rows * tile / tiles, row0 + rows * (tile + 1) / tiles, n, end,
                                           {at.weight + end * at.weight_stride, next});
    }
}

void linear(const Linear& op, int64_t row0, int64_t row1, int64_t col0, int64_t col1, float*) {
  for (int64_t n0 = col0; n0 < col1; n0 += block_cols) {
    const int64_t n1 = n0 + block_cols < col1 ? n0 + block_cols : col1;
    int64_t k = 0;
    do {
      const int64_t depth = k + block_depth < op.inputs ? block_depth : op.inputs - k;
      const LinearPass at = {op.x + k, op.weight + k, op.bias, op.out, op.x_stride, op.inputs, op.out_stride, depth, k == 0};
      if (row1 - row0 <= few_rows)
        linear_few(at, row0, row1, n0, n1);
      else
        linear_many(at, row0, row1, n0, n1);
      k += block_depth;
    } while (k < op.inputs);
    for (int64_t m = row0; m < row1; ++m) activate(op.activation, op.out + m * op.out_stride + n0, n1 - n0);
  }
}

}  // namespace
}  // namespace bertfast::cpu::BERTFAST_ISA_NAME
