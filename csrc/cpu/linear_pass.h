// What the tiles of linear.inl.h and linear_in_flight.inl.h share: where a pass's operands lie, and how they are read.
#pragma once

#include "vec.h"

namespace bertfast::cpu::BERTFAST_ISA_NAME {
namespace {

constexpr int64_t tile_cols = 4;  // at most: Vec::sums adds up four vectors at once

// One pass over a range of k for a block of rows and columns; pointers are to its first row, column and k.
template <class X, class W>
struct LinearPass {
  const X* x;
  const W* weight;
  const float* start;  // what the products are added to: one row, the bias, or the sums of the passes before
  float* out;
  int64_t x_stride, weight_stride, start_stride, out_stride;
  int64_t rows, cols, depth;
  const W* soon;  // rows of weight that the next pass reads, as far apart; fetched meanwhile
  int64_t soon_rows;
};

// What a tile fetches into L2 while it computes: some rows of weight that are needed soon.
template <class W>
struct Ahead {
  const W* weight;
  int64_t rows;
};

// How a tile reads its operands: a register of each, multiplied lane by lane.
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

template <class X, class W>
LinearPass<X, W> some_rows(const LinearPass<X, W>& at, int64_t row, int64_t end) {
  LinearPass<X, W> some = at;
  some.x += row * at.x_stride;
  some.start += row * at.start_stride;
  some.out += row * at.out_stride;
  some.rows = end - row;
  return some;
}

template <class X, class W>
LinearPass<X, W> columns_from(const LinearPass<X, W>& at, int64_t n) {
  LinearPass<X, W> rest = at;
  rest.weight += n * at.weight_stride;
  rest.start += n;
  rest.out += n;
  rest.cols -= n;
  return rest;
}

}  // namespace
}  // namespace bertfast::cpu::BERTFAST_ISA_NAME
