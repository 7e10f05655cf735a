// Software-pipelined tiles of linear.inl.h: a tile is two halves, upper and lower rows, and the horizontal reduction of one half overlaps
// the multiply-adds of the next.
//
// Reducing a tile takes some 25 instructions a row, which wait for its last products while the next tile's queue behind them. Unpipelined
// the multipliers idle for some 36 of the 612 cycles that a tile of six rows takes at K = 384, or of 324 for pairs of bfloat16. A row's
// sums add the same numbers in the same order either way.
#pragma once

#include "in_order.inl.h"
#include "linear_pass.inl.h"

namespace bertfast::cpu::BERTFAST_ISA_NAME {
namespace {

// Whether a pass on these operands can be pipelined, and how.
template <class X, class W>
struct Pipelined {
  static constexpr bool possible = false;
};

#if defined(__AVX512F__)

struct Half {
  Vec sum[3][tile_cols];
};

// Initial sums and results of a half.
struct Results {
  const float* start;
  float* out;
  int64_t start_stride, out_stride;
};

BERTFAST_INLINE void reduce_row(Vec (&sum)[tile_cols], const Results& to, int64_t m) {
  complete_in_order(sum);
  store_quad(to.out + m * to.out_stride, Vec::sums(sum) + load_quad(to.start + m * to.start_stride, tile_cols), tile_cols);
}

// half = the sums of `rows` rows of x and four of weight. Meanwhile reduces the `pending` rows of the previous half into `to`, one after
// every second step along k, and prefetches `fetched` rows of weight into L2.
template <int64_t fetched, int64_t rows, class X>
BERTFAST_INLINE void accumulate_half(const LinearPass<X, X>& at, const X* x, const X* weight, Half& half, Half& previous, int64_t pending,
                                     const Results& to, const X* prefetch_from) {
  using Operand = typename OperandsOf<X, X>::Type;
#pragma GCC unroll 4
  for (int64_t m = 0; m < rows; ++m)
#pragma GCC unroll 4
    for (int64_t c = 0; c < tile_cols; ++c) half.sum[m][c] = Vec::all(0.0f);

  const int64_t whole = at.depth - at.depth % Operand::width;
  int64_t k = 0;
  const auto step = [&]() __attribute__((always_inline)) {
#pragma GCC unroll 4
    for (int64_t row = 0; row < fetched; ++row) __builtin_prefetch(prefetch_from + row * at.weight_stride + k, 0, 2);
    Operand w[tile_cols];
#pragma GCC unroll 4
    for (int64_t c = 0; c < tile_cols; ++c) w[c] = load_in_order<Operand>(weight + c * at.weight_stride + k);
#pragma GCC unroll 4
    for (int64_t m = 0; m < rows; ++m) {
      const Operand a = load_in_order<Operand>(x + m * at.x_stride + k);
#pragma GCC unroll 4
      for (int64_t c = 0; c < tile_cols; ++c) multiply_add_in_order(half.sum[m][c], a, w[c]);
    }
    k += Operand::width;
  };
#pragma GCC unroll 4
  for (int64_t m = 0; m < 3; ++m) {
    if (k < whole) step();
    if (k < whole) step();
    if (m < pending) reduce_row(previous.sum[m], to, m);
  }
  while (k < whole) step();
  if (k < at.depth) {
    const int64_t lanes = at.depth - k;
    Operand w[tile_cols];
#pragma GCC unroll 4
    for (int64_t c = 0; c < tile_cols; ++c) w[c] = Operand::load(weight + c * at.weight_stride + k, lanes);
#pragma GCC unroll 4
    for (int64_t m = 0; m < rows; ++m) {
      const Operand a = Operand::load(x + m * at.x_stride + k, lanes);
#pragma GCC unroll 4
      for (int64_t c = 0; c < tile_cols; ++c) multiply_add_in_order(half.sum[m][c], a, w[c]);
    }
  }
}

// Columns [0, steps * tile_cols): all rows for each step's columns, in tiles of 4 to 6 rows, three in the upper half. Each half prefetches
// `fetched` rows from next_prefetch() on.
template <int64_t fetched, class X, class Fetch>
__attribute__((noinline)) void linear_pipelined(const LinearPass<X, X>& at, int64_t steps, Fetch next_prefetch) {
  Half above, below;
  int64_t pending = 0;
  Results to_above = {at.start, at.out, at.start_stride, at.out_stride}, to_below = to_above;
  const int64_t tiles = (at.rows + Vec::tile_rows - 1) / Vec::tile_rows;  // callers count the calls of next_prefetch, two a tile
  for (int64_t step = 0; step < steps; ++step) {
    const int64_t n = step * tile_cols;
    const X* weight = at.weight + n * at.weight_stride;
    for (int64_t tile = 0; tile < tiles; ++tile) {
      const int64_t row = at.rows * tile / tiles, lower = at.rows * (tile + 1) / tiles - row - 3;
      const X* x = at.x + row * at.x_stride;
      accumulate_half<fetched, 3>(at, x, weight, above, below, pending, to_below, next_prefetch());
      to_above.start = at.start + row * at.start_stride + n, to_above.out = at.out + row * at.out_stride + n;
      to_below.start = to_above.start + 3 * at.start_stride, to_below.out = to_above.out + 3 * at.out_stride;
      x += 3 * at.x_stride;
      if (lower == 3)
        accumulate_half<fetched, 3>(at, x, weight, below, above, 3, to_above, next_prefetch());
      else if (lower == 2)
        accumulate_half<fetched, 2>(at, x, weight, below, above, 3, to_above, next_prefetch());
      else
        accumulate_half<fetched, 1>(at, x, weight, below, above, 3, to_above, next_prefetch());
      pending = lower;
    }
  }
#pragma GCC unroll 4
  for (int64_t m = 0; m < 3; ++m)
    if (m < pending) reduce_row(below.sum[m], to_below, m);
}

template <class X>
struct PipelinedTiles {
  static constexpr bool possible = true;

  // The first 4 * steps columns of 4 to 6 rows, or of 8 and more.
  template <int64_t fetched, class Fetch>
  static void compute(const LinearPass<X, X>& at, int64_t steps, Fetch next_prefetch) {
    linear_pipelined<fetched>(at, steps, next_prefetch);
  }
};

template <>
struct Pipelined<float, float> : PipelinedTiles<float> {};
#if defined(__AVX512BF16__)
template <>
struct Pipelined<bfloat16, bfloat16> : PipelinedTiles<bfloat16> {};
#endif

#endif

}  // namespace
}  // namespace bertfast::cpu::BERTFAST_ISA_NAME
