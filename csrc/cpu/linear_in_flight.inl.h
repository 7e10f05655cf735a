// A tile of linear.inl.h in two halves, one above the other: while the products of one are added up, the other is finished.
//
// A tile ends with additions across lanes, some 25 instructions a row, that wait for its last products. The next tile's products queue
// behind them, and the multipliers stand still: for some 36 cycles of the 612 that a tile of six rows takes at K = 384, and of 324 for
// pairs of bfloat16. Here the ends lie among the products of the other half, a row at a time. A row's sums are the same numbers in the same
// order.
#pragma once

#include "in_order.h"
#include "linear_pass.h"

namespace bertfast::cpu::BERTFAST_ISA_NAME {
namespace {

// Whether a pass of these operands can be computed so, and how.
template <class X, class W>
struct InFlight {
  static constexpr bool possible = false;
};

#if defined(__AVX512F__)

struct Half {
  Vec sum[3][tile_cols];
};

// Where a half's results go.
struct Results {
  const float* start;
  float* out;
  int64_t start_stride, out_stride;
};

BERTFAST_INLINE void finish_row(Vec (&sum)[tile_cols], const Results& to, int64_t m) {
  complete_in_order(sum);
  store_quad(to.out + m * to.out_stride, Vec::sums(sum) + load_quad(to.start + m * to.start_stride, tile_cols), tile_cols);
}

// The sums of `rows` rows of x and four of weight, from zero; meanwhile the `ended` rows of the half before are finished, one after every
// second step. Fetches `fetched` rows of weight, from `ahead` on, into L2.
template <int64_t fetched, int64_t rows, class X>
BERTFAST_INLINE void multiply_half(const LinearPass<X, X>& at, const X* x, const X* weight, Half& half, Half& before, int64_t ended,
                                   const Results& to, const X* ahead) {
  using Operand = typename OperandsOf<X, X>::Type;
#pragma GCC unroll 4
  for (int64_t m = 0; m < rows; ++m)
#pragma GCC unroll 4
    for (int64_t c = 0; c < tile_cols; ++c) half.sum[m][c] = Vec::all(0.0f);

  const int64_t whole = at.depth - at.depth % Operand::width;
  int64_t k = 0;
  const auto step = [&]() __attribute__((always_inline)) {
#pragma GCC unroll 4
    for (int64_t row = 0; row < fetched; ++row) __builtin_prefetch(ahead + row * at.weight_stride + k, 0, 2);
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
    if (m < ended) finish_row(before.sum[m], to, m);
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

// Columns [0, steps * tile_cols), all rows for each step's before the next: tiles of 4 to 6 rows, three above and the others below.
template <int64_t fetched, class X, class Fetch>
__attribute__((noinline)) void linear_in_flight(const LinearPass<X, X>& at, int64_t steps, Fetch ahead) {
  Half above, below;
  int64_t ended = 0;
  Results to_above = {at.start, at.out, at.start_stride, at.out_stride}, to_below = to_above;
  const int64_t tiles = (at.rows + Vec::tile_rows - 1) / Vec::tile_rows;  // as callers count them, who fetch by halves
  for (int64_t step = 0; step < steps; ++step) {
    const int64_t n = step * tile_cols;
    const X* weight = at.weight + n * at.weight_stride;
    for (int64_t tile = 0; tile < tiles; ++tile) {
      const int64_t row = at.rows * tile / tiles, lower = at.rows * (tile + 1) / tiles - row - 3;
      const X* x = at.x + row * at.x_stride;
      multiply_half<fetched, 3>(at, x, weight, above, below, ended, to_below, ahead());
      to_above.start = at.start + row * at.start_stride + n, to_above.out = at.out + row * at.out_stride + n;
      to_below.start = to_above.start + 3 * at.start_stride, to_below.out = to_above.out + 3 * at.out_stride;
      x += 3 * at.x_stride;
      if (lower == 3)
        multiply_half<fetched, 3>(at, x, weight, below, above, 3, to_above, ahead());
      else if (lower == 2)
        multiply_half<fetched, 2>(at, x, weight, below, above, 3, to_above, ahead());
      else
        multiply_half<fetched, 1>(at, x, weight, below, above, 3, to_above, ahead());
      ended = lower;
    }
  }
#pragma GCC unroll 4
  for (int64_t m = 0; m < 3; ++m)
    if (m < ended) finish_row(below.sum[m], to_below, m);
}

template <class X>
struct InFlightAsTheyLie {
  static constexpr bool possible = true;

  // The first `steps` times four columns of 4 to 6 rows, or of 8 and more. Each half, two a tile, fetches `fetched` rows from ahead() on.
  template <int64_t fetched, class Fetch>
  static void compute(const LinearPass<X, X>& at, int64_t steps, Fetch ahead) {
    linear_in_flight<fetched>(at, steps, ahead);
  }
};

template <>
struct InFlight<float, float> : InFlightAsTheyLie<float> {};
#if defined(__AVX512BF16__)
template <>
struct InFlight<bfloat16, bfloat16> : InFlightAsTheyLie<bfloat16> {};
#endif

#endif

}  // namespace
}  // namespace bertfast::cpu::BERTFAST_ISA_NAME
