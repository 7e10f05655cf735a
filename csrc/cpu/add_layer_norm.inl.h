// out = normalise(x + residual) * weight + bias, row by row.
//
// Three sweeps over a row that stays in L1: mean, variance, affine map. For float the first sweep stores x + residual in `out`; for
// bfloat16, which would round it, every sweep adds again.
#pragma once

#include <math.h>

#include "vec.inl.h"

namespace bertfast::cpu::BERTFAST_ISA_NAME {
namespace {

// value(i, lanes): the input from column i on. The second sweep also sums the distances from the mean, which corrects the mean's own
// rounding where it is large.
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
    if (lanes != Vec::width) distance = distance.blend(lanes, Vec::all(0.0f));
    distances = distances + distance;
    squares = multiply_add(distance, distance, squares);
  });
  const float off = distances.sum() / count, variance = squares.sum() / count - off * off;  // rounding may make it negative

  const Vec scale = Vec::all(1.0f / sqrtf((variance > 0.0f ? variance : 0.0f) + eps));
  for_each_block(hidden, [&](int64_t i, int64_t lanes) {
    const Vec normalised = (again(i, lanes) - Vec::all(mean) - Vec::all(off)) * scale;
    multiply_add(normalised, Vec::load(weight + i, lanes), Vec::load(bias + i, lanes)).store(out + i, lanes);
  });
}

template <class Number>
void add_layer_norm(const AddLayerNormArgs<Number>& op, int64_t first, int64_t last) {
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
