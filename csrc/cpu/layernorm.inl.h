// out = normalise(x + residual) * weight + bias, row by row.
//
// Three sweeps over a row that stays in L1: the sum, the squared distances from the mean, the affine map. In float the
// first sweep leaves x + residual in `out`; in bfloat16, where that would round it, each sweep adds them up again.
#pragma once

#include <math.h>

#include "vec.h"

namespace bertfast::cpu::BERTFAST_ISA_NAME {
namespace {

// value(i, lanes): what is to be normalised, from column i. Beside a large mean its own rounding shows in every distance,
// so the second sweep also measures how far off it was.
template <class Number, class Value>
inline void normalise_row(Number* out, const Number* weight, const Number* bias, int64_t hidden, float eps, Value value) {
  constexpr bool keep_sum = sizeof(Number) == sizeof(float);
  Vec total = Vec::all(0.0f);
  for_each_block(hidden, [&](int64_t i, int64_t lanes) {
    const Vec sum = value(i, lanes);
    if constexpr (keep_sum) sum.store(out + i, lanes);
    total = total + sum;
  });
  const auto again = [&](int64_t i, int64_t lanes) {
    if constexpr (keep_sum)
      return Vec::load(out + i, lanes);
    else
      return value(i, lanes);
  };

  const float count = static_cast<float>(hidden), mean = total.sum() / count;
  Vec distances = Vec::all(0.0f), squares = Vec::all(0.0f);
  for_each_block(hidden, [&](int64_t i, int64_t lanes) {
    Vec distance = again(i, lanes) - Vec::all(mean);
    if (lanes != Vec::width) distance = distance.keep(lanes, Vec::all(0.0f));
    distances = distances + distance;
    squares = multiply_add(distance, distance, squares);
  });
  const float off = distances.sum() / count, variance = squares.sum() / count - off * off;  // rounding may leave it below 0

  const Vec scale = Vec::all(1.0f / sqrtf((variance > 0.0f ? variance : 0.0f) + eps));
  for_each_block(hidden, [&](int64_t i, int64_t lanes) {
    const Vec normalised = (again(i, lanes) - Vec::all(mean) - Vec::all(off)) * scale;
    multiply_add(normalised, Vec::load(weight + i, lanes), Vec::load(bias + i, lanes)).store(out + i, lanes);
  });
}

template <class Number>
void add_layer_norm(const LayerNormOf<Number>& op, int64_t first, int64_t last) {
  for (int64_t r = first; r < last; ++r) {
    const Number* x = op.x + r * op.hidden;
    const Number* residual = op.residual ? op.residual + r * op.hidden : nullptr;
    normalise_row(op.out + r * op.hidden, op.weight, op.bias, op.hidden, op.eps, [=](int64_t i, int64_t lanes) {
      const Vec value = Vec::load(x + i, lanes);
      return residual ? value + Vec::load(residual + i, lanes) : value;
    });
  }
}

}  // namespace
}  // namespace bertfast::cpu::BERTFAST_ISA_NAME
