// The products of a step: its scores, and the values weighed by what the softmax makes of them.
//
// A CPU multiplies, adds and compares at the same time, but looks ahead only some hundred instructions: the softmax comes a vector at a
// time, a few products apart. In one go it adds an eighth to the products' time in float32, and in bfloat16 a quarter, or half at 32
// numbers a head.
#pragma once

#include "attention_operands.inl.h"
#include "attention_softmax.inl.h"
#include "vec.h"

namespace bertfast::cpu::BERTFAST_ISA_NAME {
namespace {

constexpr int64_t attention_depth = 64;  // terms of a score added up in one go: long sums in one register lose digits

// Where many registers are, weights of as many keys are made among the products of the keys before, beside sums of two vectors of values;
// elsewhere before all products.
constexpr bool many_registers = Vec::width == 16;
constexpr int64_t softened = many_registers ? Vec::width : attention_keys;
constexpr int64_t value_blocks = many_registers ? 2 : 4;

struct AttentionTile {
  float* keys;     // words [depth, attention_keys]; beyond the last key: 0
  float* values;   // words [attention_keys / terms, padded]
  float* sums;     // [attention_rows, padded]: the output so far, where keys are more than a tile
  float* queries;  // words [attention_rows, depth], where they are not read as they lie
  float* scores;   // [2, Vec::tile_rows, attention_keys]: of two steps
  float* totals;   // [attention_rows, Vec::width]: of the weights so far, a sum for each lane
  float* maximum;  // [attention_rows]
  int64_t head_size, padded;
  float scale;    // of powers of two; above 0
  bool negative;  // the scale was
  bool first;     // of its sequence's tiles
};

inline int64_t padded_to_vec(int64_t n) { return (n + Vec::width - 1) / Vec::width * Vec::width; }

// With a sanitizer's checks in it, GCC 12 takes minutes for a weigh_tile at -O2.
#if defined(__SANITIZE_ADDRESS__)
#define BERTFAST_WEIGH __attribute__((noinline, optimize("O1")))
#else
#define BERTFAST_WEIGH __attribute__((noinline))
#endif

template <int64_t n>
struct Constant {
  static constexpr int64_t value = n;
};

// body(Constant<count>), for a count of 1 to `most`; a larger one is `most`.
template <int64_t most, class Body>
inline void with_constant(int64_t count, Body body) {
  if constexpr (most > 1)
    if (count < most) return with_constant<most - 1>(count, body);
  body(Constant<most>());
}

// Lays out the tile's `count` keys and values, from k and v on.
template <class Operand, class Number>
void load_keys(const AttentionTile& tile, const Number* k, int64_t k_stride, const Number* v, int64_t v_stride, int64_t count) {
  constexpr int64_t W = Vec::width, terms = Operand::terms;
  for (int64_t j0 = 0; j0 < count; j0 += W)
    for_each_block<W * terms>(tile.head_size, [&](int64_t d, int64_t numbers) {
      Vec block[W];
#pragma GCC unroll 16
      for (int64_t i = 0; i < W; ++i) block[i] = j0 + i < count ? Operand::words(k + (j0 + i) * k_stride + d, numbers) : Vec::all(0.0f);
      Vec::transpose(block);
#pragma GCC unroll 16
      for (int64_t i = 0; i < W; ++i)
        if (i * terms < numbers) block[i].store(tile.keys + (d / terms + i) * attention_keys + j0);
    });
  for (int64_t j = 0; j < count; j += terms)
    for_each_block(tile.head_size, [&](int64_t d, int64_t lanes) {
      const Number* rows = v + j * v_stride + d;
      Operand::columns(rows, v_stride, count - j, lanes).store(tile.values + j / terms * tile.padded + d);
    });
}

// scores[m, j] = sum over k of q[m, k] * keys[k, j], or added to them, for `rows` queries and `blocks` vectors of keys; in words.
template <class Operand, int64_t rows, int64_t blocks>
inline void score_tile(const float* q, int64_t q_stride, const float* keys, float* scores, int64_t depth, bool add) {
  Vec sum[rows][blocks];
#pragma GCC unroll 8
  for (int64_t m = 0; m < rows; ++m)
#pragma GCC unroll 8
    for (int64_t c = 0; c < blocks; ++c) sum[m][c] = Vec::all(0.0f);
  for (int64_t k = 0; k < depth; ++k) {
    Operand a[rows];
#pragma GCC unroll 8
    for (int64_t m = 0; m < rows; ++m) a[m] = Operand::all(q + m * q_stride + k);
#pragma GCC unroll 8
    for (int64_t c = 0; c < blocks; ++c) {
      const Operand b = Operand::load(keys + k * attention_keys + c * Vec::width);
#pragma GCC unroll 8
      for (int64_t m = 0; m < rows; ++m) sum[m][c] = multiply_add(a[m], b, sum[m][c]);
    }
  }
#pragma GCC unroll 8
  for (int64_t m = 0; m < rows; ++m)
#pragma GCC unroll 8
    for (int64_t c = 0; c < blocks; ++c) {
      float* to = scores + m * attention_keys + c * Vec::width;
      (add ? Vec::load(to) + sum[m][c] : sum[m][c]).store(to);
    }
}

// The scores of a step: [rows, keys rounded up to vectors]. q: words of the piece's queries, rows q_stride apart.
template <class Operand, int64_t rows>
__attribute__((noinline)) void score(const AttentionTile& tile, const AttentionStep& step, const float* q, int64_t q_stride) {
  constexpr int64_t most = attention_depth / Operand::terms, W = Vec::width;
  const int64_t columns = padded_to_vec(step.keys), depth = words_of<Operand>(tile.head_size);
  q += step.first * q_stride;
  for (int64_t k = 0; k < depth; k += most)
    for (int64_t j = 0; j < columns; j += 4 * W)
      with_constant<4>((columns - j) / W, [&](auto blocks) {
        score_tile<Operand, rows, blocks.value>(q + k, q_stride, tile.keys + k * attention_keys + j, step.scores + j,
                                                depth - k < most ? depth - k : most, k != 0);
      });
  if (tile.negative)
    for (float* row = step.scores; row < step.scores + rows * attention_keys; row += attention_keys)
      for (int64_t j = 0; j < columns; j += W) (Vec::all(0.0f) - Vec::load(row + j)).store(row + j);
}

// Weighs the values at column d, `blocks` vectors of them: into the sums, and with a step's last keys out of them into `out`. If it
// `softens`, makes the weights on the way.
template <class Operand, int64_t rows, int64_t blocks, bool softens, class Number>
BERTFAST_WEIGH void weigh_tile(const AttentionTile& tile, AttentionStep& step, int64_t d, Number* out, int64_t out_stride) {
  const int64_t padded = tile.padded, keys = step.keys;
  const Vec scale = Vec::all(tile.scale);
  const float *values = tile.values + d, *weights = step.scores;
  Vec sum[rows][blocks];
#pragma GCC unroll 8
  for (int64_t m = 0; m < rows; ++m)
#pragma GCC unroll 8
    for (int64_t c = 0; c < blocks; ++c) sum[m][c] = Vec::all(0.0f);
  const auto multiply = [&](int64_t words) __attribute__((always_inline)) {
#pragma GCC unroll 1
    for (const float* end = weights + words; weights < end; ++weights, values += padded) {
      Operand b[blocks];
#pragma GCC unroll 8
      for (int64_t c = 0; c < blocks; ++c) b[c] = Operand::load(values + c * Vec::width);
#pragma GCC unroll 8
      for (int64_t m = 0; m < rows; ++m) {
        const Operand a = Operand::all(weights + m * attention_keys);
#pragma GCC unroll 8
        for (int64_t c = 0; c < blocks; ++c) sum[m][c] = multiply_add(a, b[c], sum[m][c]);
      }
    }
  };
  Vec total[rows];
  if constexpr (softens) {
#pragma GCC unroll 8
    for (int64_t m = 0; m < rows; ++m)
      total[m] = tile.first ? Vec::all(0.0f) : Vec::load(step.totals + m * Vec::width) * Vec::all(step.shrink[m]);
    for (int64_t i = 0; i < softened && i < keys; i += Vec::width)
#pragma GCC unroll 8
      for (int64_t m = 0; m < rows; ++m) soften<Operand>(step, m, i, scale, total[m]);
  }
  int64_t j = softened;
  for (; j < keys; j += softened) {
    constexpr int64_t words = softened / Operand::terms;
    if constexpr (softens) {
#pragma GCC unroll 8
      for (int64_t m = 0; m < rows; ++m) {
        soften<Operand>(step, m, j, scale, total[m]);
        multiply(words * (m + 1) / rows - words * m / rows);
      }
    } else {
      multiply(words);
    }
  }
  if constexpr (softens) {
    if (step.last)
      end_softmax(step, total);
    else
#pragma GCC unroll 8
      for (int64_t m = 0; m < rows; ++m) total[m].store(step.totals + m * Vec::width);
  }
  multiply(words_of<Operand>(keys - (j - softened)));

  float* sums = tile.sums + step.first * padded + d;
  if (!tile.first)
#pragma GCC unroll 8
    for (int64_t m = 0; m < rows; ++m)
#pragma GCC unroll 8
      for (int64_t c = 0; c < blocks; ++c)
        sum[m][c] = multiply_add(Vec::load(sums + m * padded + c * Vec::width), Vec::all(step.shrink[m]), sum[m][c]);
  if (!step.last) {
#pragma GCC unroll 8
    for (int64_t m = 0; m < rows; ++m)
#pragma GCC unroll 8
      for (int64_t c = 0; c < blocks; ++c) sum[m][c].store(sums + m * padded + c * Vec::width);
    return;
  }
  const int64_t lanes = tile.head_size - d - (blocks - 1) * Vec::width;  // of the last vector
#pragma GCC unroll 8
  for (int64_t m = 0; m < rows; ++m, out += out_stride)
#pragma GCC unroll 8
    for (int64_t c = 0; c < blocks; ++c) {
      const Vec result = sum[m][c] * Vec::all(step.share[m]);
      if (c + 1 < blocks || lanes >= Vec::width)
        result.store(out + d + c * Vec::width);
      else
        result.store(out + d + c * Vec::width, lanes);
    }
}

// Weighs all values of a step. out: of its first query.
template <class Operand, int64_t rows, class Number>
void weigh(const AttentionTile& tile, AttentionStep& step, Number* out, int64_t out_stride) {
  with_constant<value_blocks>(tile.padded / Vec::width,
                              [&](auto blocks) { weigh_tile<Operand, rows, blocks.value, true>(tile, step, 0, out, out_stride); });
  for (int64_t d = value_blocks * Vec::width; d < tile.padded; d += value_blocks * Vec::width)
    with_constant<value_blocks>((tile.padded - d) / Vec::width,
                                [&](auto blocks) { weigh_tile<Operand, rows, blocks.value, false>(tile, step, d, out, out_stride); });
}

}  // namespace
}  // namespace bertfast::cpu::BERTFAST_ISA_NAME
