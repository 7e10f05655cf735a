// The softmax of a step, which is a few queries against a tile of keys, with the running maximum (Milakov and Gimelshein 2018).
//
// It comes in two parts. raise_maxima needs all scores of the step, and is little work in a long chain: it runs ahead of the next step's
// products, which fill the gaps. soften makes weights of a vector of scores of each row, the same instructions over and over, and runs
// among the products of the weights before with the values.
#pragma once

#include <math.h>

#include "attention_operands.inl.h"
#include "vec.h"

namespace bertfast::cpu::BERTFAST_ISA_NAME {
namespace {

struct AttentionStep {
  float* scores;                         // [Vec::tile_rows, attention_keys]; then as words, the weights
  float* totals;                         // [rows, Vec::width]: of each row's weights so far, a sum for each lane
  int64_t first, rows;                   // which queries, counted from those of the piece
  int64_t keys;                          // how many of the tile's the last query sees
  int64_t seen[Vec::tile_rows];          // and each of them, the first the fewest
  float minus_maximum[Vec::width] = {};  // each query's so far, negative
  float shrink[Vec::width] = {};         // what sums so far are multiplied by, since the maximum has risen
  bool last;                             // no query sees keys beyond this tile
  float share[Vec::tile_rows];           // then: what sums are multiplied by at the end, one over the total

  int64_t lanes(int64_t m, int64_t j) const {  // of the vector of scores at j, how many query m sees
    const int64_t lanes = seen[m] - j;
    return lanes < 0 ? 0 : lanes < Vec::width ? lanes : Vec::width;
  }
};

// Scores are multiplied by `scale`, 0 or more, which gives powers of two. maximum: [rows], the queries' so far, unless this is their
// `first` tile.
template <int64_t rows>
inline void raise_maxima(AttentionStep& step, float* maximum, float scale, bool first) {
  Vec highest[rows];
#pragma GCC unroll 8
  for (int64_t m = 0; m < rows; ++m) highest[m] = Vec::all(-INFINITY);
  int64_t j = 0;
  for (; j + Vec::width <= step.seen[0]; j += Vec::width)
#pragma GCC unroll 8
    for (int64_t m = 0; m < rows; ++m) highest[m] = max(Vec::load(step.scores + m * attention_keys + j), highest[m]);
  for (; j < step.keys; j += Vec::width)
#pragma GCC unroll 8
    for (int64_t m = 0; m < rows; ++m) {
      float* scores = step.scores + m * attention_keys + j;
      const Vec seen = Vec::load(scores).keep(step.lanes(m, j), Vec::all(-INFINITY));
      seen.store(scores);
      highest[m] = max(seen, highest[m]);
    }
  float raw[Vec::width] = {};
#pragma GCC unroll 8
  for (int64_t m = 0; m < rows; ++m) raw[m] = highest[m].largest();
  const Vec before = first ? Vec::all(-INFINITY) : Vec::load(maximum, rows);
  const Vec now = max(Vec::load(raw) * Vec::all(scale), before);
  now.store(maximum, rows);
  (Vec::all(0.0f) - now).store(step.minus_maximum);
  if (!first) exp2_below(before - now).store(step.shrink);
}

// Weights 2^(score * scale - maximum) of the vector at j of row m; adds them to the row's total, a sum for each lane.
template <class Operand>
inline __attribute__((always_inline)) void soften(const AttentionStep& step, int64_t m, int64_t j, Vec scale, Vec& total) {
  float* scores = step.scores + m * attention_keys;
  const Vec weight = Operand::weight(multiply_add(Vec::load(scores + j), scale, Vec::all(step.minus_maximum[m])));
  Operand::put(scores, j, weight);  // never beyond the scores that were read
  total = total + weight;
}

template <int64_t rows>
inline void end_softmax(AttentionStep& step, const Vec (&total)[rows]) {
#pragma GCC unroll 8
  for (int64_t m = 0; m < rows; ++m) step.share[m] = 1.0f / total[m].sum();
}

}  // namespace
}  // namespace bertfast::cpu::BERTFAST_ISA_NAME
