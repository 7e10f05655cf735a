// out = normalise(x + residual) * weight + bias, row by row.
//
// Three sweeps over a row that stays in L1: the sum, the squared distances from the mean, the affine map. The first
// sweep leaves x + residual in `out`, so memory is read once.
#pragma once

#include <math.h>

#include "vec.h"

namespace bertfast::cpu::BERTFAST_ISA_NAME {
namespace {

// The second and third sweep, in place; `total` is the sum of the row. Beside a large mean its own rounding shows in
// every distance, so the second sweep also measures how far off it was.
inline void normalise_row(float* row, Vec total, const float* weight, const float* bias, int64_t hidden, float eps) {
  const float count = static_cast<float>(hidden), mean = total.sum() / count;
  Vec distances = Vec::all(0.0f), squares = Vec::all(0.0f);
  for_each_block(hidden, [&](int64_t i, int64_t lanes) {
    Vec distance = Vec::load(row + i, lanes) - Vec::all(mean);
    if (lanes != Vec::width) distance = distance.keep(lanes, Vec::all(0.0f));
    distances = distances + distance;
    squares = multiply_add(distance, distance, squares);
  });
  const float off = distances.sum() / count, variance = squares.sum() / count - off * off;  // rounding may leave it below 0
  const Vec scale = Vec::all(1.0f / sqrtf((variance > 0.0f ? variance : 0.0f) + eps));
  for_each_block(hidden, [&](int64_t i, int64_t lanes) {
    const Vec normalised = (Vec::load(row + i, lanes) - Vec::all(mean) - Vec::all(off)) * scale;
    multiply_add(normalised, Vec::load(weight + i, lanes), Vec::load(bias + i, lanes)).store(row + i, lanes);
  });
}

inline void add_layer_norm(const LayerNorm& op, int64_t first, int64_t last) {
  for (int64_t r = first; r < last; ++r) {
    const float* x = op.x + r * op.hidden;
    const float* residual = op.residual ? op.residual + r * op.hidden : nullptr;
    float* out = op.out + r * op.hidden;
    Vec total = Vec::all(0.0f);
    for_each_block(op.hidden, [&](int64_t i, int64_t lanes) {
      Vec value = Vec::load(x + i, lanes);
      if (residual) value = value + Vec::load(residual + i, lanes);
      value.store(out + i, lanes);
      total = total + value;
    });
    normalise_row(out, total, op.weight, op.bias, op.hidden, op.eps);
  }
}

}  // namespace
}  // namespace bertfast::cpu::BERTFAST_ISA_NAME
