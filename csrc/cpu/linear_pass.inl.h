// What linear.inl.h and linear_pipelined.inl.h share: the operands of a pass, and how a tile reads them.
#pragma once

#include "vec.inl.h"

namespace bertfast::cpu::BERTFAST_ISA_NAME {
namespace {

constexpr int64_t tile_cols = 4;  // at most: Vec::sums reduces four vectors at once

// A range of k of a block of rows and columns; pointers are to its first row, column and k.
template <class X, class W>
struct LinearPass {
  const X* x;
  const W* weight;
  const float* start;  // initial sums: the bias, one row for all, or the sums of earlier passes
  float* out;
  int64_t x_stride, weight_stride, start_stride, out_stride;
  int64_t rows, cols, depth;
  const W* next_weight;  // weights of the next pass, weight_stride apart, to prefetch
  int64_t next_rows;
};

// Rows of weight that a tile prefetches into L2 while it computes.
template <class W>
struct PrefetchRows {
  const W* weight;
  int64_t rows;
};

// The register type of a tile's operands.
template <class X, class W>
struct OperandsOf {
  using Type = Vec;
};
#if defined(__AVX512BF16__)
template <>
struct OperandsOf<bfloat16, bfloat16> {
  using Type = Pairs;
};
#endif

// Rows [row, end) of a pass.
template <class X, class W>
LinearPass<X, W> rows_of_pass(const LinearPass<X, W>& at, int64_t row, int64_t end) {
  LinearPass<X, W> some = at;
  some.x += row * at.x_stride;
  some.start += row * at.start_stride;
  some.out += row * at.out_stride;
  some.rows = end - row;
  return some;
}

// Columns from n on.
template <class X, class W>
LinearPass<X, W> columns_of_pass(const LinearPass<X, W>& at, int64_t n) {
  LinearPass<X, W> rest = at;
  rest.weight += n * at.weight_stride;
  rest.start += n;
  rest.out += n;
  rest.cols -= n;
  return rest;
}

}  // namespace
}  // namespace bertfast::cpu::BERTFAST_ISA_NAME
