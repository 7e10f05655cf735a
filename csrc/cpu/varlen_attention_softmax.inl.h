// The online softmax (Milakov and Gimelshein 2018) of a step: a few queries against a tile of keys.
//
// update_row_max: a latency-bound reduction over all scores, issued before the next step's Q K^T so that they overlap. exp_weights: one
// vector of scores at a time, interleaved with the P V products of the weights before.
#pragma once

#include <float.h>
#include <math.h>

#include "varlen_attention_operands.inl.h"
#include "vec.inl.h"

namespace bertfast::cpu::BERTFAST_ISA_NAME {
namespace {

struct AttentionStep {
  float* scores;                       // [Vec::tile_rows, attention_keys]; exp_weights overwrites them by the weights, as operand lanes
  float* weight_sums;                  // [rows, Vec::width]: each row's sum of weights so far, by lane
  int64_t first, rows;                 // queries [first, first + rows) of the piece
  int64_t keys;                        // number of the tile's keys that the last query sees
  int64_t seen[Vec::tile_rows];        // and that each query sees, ascending
  float neg_row_max[Vec::width] = {};  // -1 times each query's maximum so far
  float rescale[Vec::width] = {};      // factor of earlier sums: 2^(old maximum - new maximum)
  bool last;                           // no query sees keys after this tile
  float inv_sum[Vec::tile_rows];       // in the last tile: 1 / sum of weights, the factor of the outputs

  int64_t lanes(int64_t m, int64_t j) const {  // of the vector of scores at j that query m sees
    const int64_t lanes = seen[m] - j;
    return lanes < 0 ? 0 : lanes < Vec::width ? lanes : Vec::width;
  }
};

// From here on a maximum's rounding error may move powers of two by more than a bit. Below, it is a factor of all weights of a row.
constexpr float large_score = 0x1p20f;

// exp_weights subtracts the rounded maximum from an unrounded product. For large scores that difference overflows, so these rows' scores
// become differences of rounded products, and their maximum 0.
inline void subtract_large_max(AttentionStep& step, int64_t rows, const float* row_max, float scale) {
  for (int64_t m = 0; m < rows; ++m) {
    if (!(fabsf(row_max[m]) >= large_score && fabsf(row_max[m]) <= FLT_MAX)) continue;
    float* scores = step.scores + m * attention_keys;
    for (int64_t j = 0; j < step.keys; j += Vec::width) {
      const Vec below = min(Vec::load(scores + j) * Vec::all(scale) - Vec::all(row_max[m]), Vec::all(0.0f));
      (below / Vec::all(scale)).store(scores + j);
    }
    step.neg_row_max[m] = 0.0f;
  }
}

// row_max: [rows], of score * scale so far, scale >= 0; not read in the `first` tile. Sets unseen scores to -inf.
template <int64_t rows>
inline void update_row_max(AttentionStep& step, float* row_max, float scale, bool first) {
  Vec tile_max[rows];
#pragma GCC unroll 8
  for (int64_t m = 0; m < rows; ++m) tile_max[m] = Vec::all(-INFINITY);
  int64_t j = 0;
  for (; j + Vec::width <= step.seen[0]; j += Vec::width)
#pragma GCC unroll 8
    for (int64_t m = 0; m < rows; ++m) tile_max[m] = max(Vec::load(step.scores + m * attention_keys + j), tile_max[m]);
  for (; j < step.keys; j += Vec::width)
#pragma GCC unroll 8
    for (int64_t m = 0; m < rows; ++m) {
      float* scores = step.scores + m * attention_keys + j;
      const Vec seen = Vec::load(scores).blend(step.lanes(m, j), Vec::all(-INFINITY));
      seen.store(scores);
      tile_max[m] = max(seen, tile_max[m]);
    }
  float raw[Vec::width] = {};
#pragma GCC unroll 8
  for (int64_t m = 0; m < rows; ++m) raw[m] = tile_max[m].largest();
  const Vec before = first ? Vec::all(-INFINITY) : Vec::load(row_max, rows);
  const Vec now = max(Vec::load(raw) * Vec::all(scale), before);
  now.store(row_max, rows);
  (Vec::all(0.0f) - now).store(step.neg_row_max);
  if (magnitude(now).blend(rows, Vec::all(0.0f)).largest() >= large_score) [[unlikely]]
    subtract_large_max(step, rows, row_max, scale);
  if (!first) exp2_nonpositive(before - now).store(step.rescale);
}

// Makes scores j .. j + Vec::width of row m weights, 2^(score * scale - maximum), and adds them to the row's total, by lane.
template <class Operand>
inline __attribute__((always_inline)) void exp_weights(const AttentionStep& step, int64_t m, int64_t j, Vec scale, Vec& total) {
  float* scores = step.scores + m * attention_keys;
  const Vec weight = Operand::exp2(multiply_add(Vec::load(scores + j), scale, Vec::all(step.neg_row_max[m])));
  Operand::store_weights(scores, j, weight);  // overwrites only scores that were read
  total = total + weight;
}

template <int64_t rows>
inline void finish_softmax(AttentionStep& step, const Vec (&total)[rows]) {
#pragma GCC unroll 8
  for (int64_t m = 0; m < rows; ++m) step.inv_sum[m] = 1.0f / total[m].sum();
}

}  // namespace
}  // namespace bertfast::cpu::BERTFAST_ISA_NAME
