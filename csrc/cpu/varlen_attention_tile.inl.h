// The products of a step: scores S = Q K^T, and outputs P V of the softmax weights P.
//
// An out-of-order core overlaps softmax and products only within some hundred instructions, so the softmax is interleaved a vector at a
// time. In one go it adds an eighth to the products' time in float32, in bfloat16 a quarter, or half at head size 32.
#pragma once

#include "varlen_attention_operands.inl.h"
#include "varlen_attention_softmax.inl.h"
#include "vec.inl.h"

namespace bertfast::cpu::BERTFAST_ISA_NAME {
namespace {

constexpr int64_t attention_depth = 64;  // products of a score summed in one register: longer sums lose precision

// With 32 registers, the weights of so many keys are computed between the products of the keys before, beside sums of two vectors of
// values; with 16, all weights before all products.
constexpr bool many_registers = Vec::width == 16;
constexpr int64_t keys_per_step = many_registers ? Vec::width : attention_keys;
constexpr int64_t value_blocks = many_registers ? 2 : 4;

struct AttentionTile {
  float* keys;         // operand lanes [depth, attention_keys], zeros after the last key
  float* values;       // operand lanes [attention_keys / terms, padded]
  float* outputs;      // [attention_rows, padded]: unnormalised sums so far, if there are several tiles
  float* queries;      // operand lanes [attention_rows, depth], if the queries are not read in place
  float* scores;       // [2, Vec::tile_rows, attention_keys]: double-buffered steps
  float* weight_sums;  // [attention_rows, Vec::width]: sums of weights so far, by lane
  float* row_max;      // [attention_rows]
  int64_t head_size, padded;
  float scale;    // |scale| log2(e), above 0: weights are powers of two
  bool negative;  // the sign of the op's scale
  bool first;     // tile of the sequence
};

inline int64_t padded_to_vec(int64_t n) { return (n + Vec::width - 1) / Vec::width * Vec::width; }

// With sanitizers GCC 12 takes minutes to compile a value_tile at -O2.
#if defined(__SANITIZE_ADDRESS__)
#define BERTFAST_VALUE_TILE __attribute__((noinline, optimize("O1")))
#else
#define BERTFAST_VALUE_TILE __attribute__((noinline))
#endif

template <int64_t n>
struct Constant {
  static constexpr int64_t value = n;
};

// Calls body(Constant<min(count, most)>), for a count from 1 on.
template <int64_t most, class Body>
inline void with_constant(int64_t count, Body body) {
  if constexpr (most > 1)
    if (count < most) return with_constant<most - 1>(count, body);
  body(Constant<most>());
}

// Loads `count` keys, transposed, and values into the tile.
template <class Operand, class Number>
void load_keys(const AttentionTile& tile, const Number* k, int64_t k_stride, const Number* v, int64_t v_stride, int64_t count) {
  constexpr int64_t W = Vec::width, terms = Operand::terms;
  for (int64_t j0 = 0; j0 < count; j0 += W)
    for_each_block<W * terms>(tile.head_size, [&](int64_t d, int64_t numbers) {
      Vec block[W];
#pragma GCC unroll 16
      for (int64_t i = 0; i < W; ++i) block[i] = j0 + i < count ? Operand::pack_row(k + (j0 + i) * k_stride + d, numbers) : Vec::all(0.0f);
      Vec::transpose(block);
#pragma GCC unroll 16
      for (int64_t i = 0; i < W; ++i)
        if (i * terms < numbers) block[i].store(tile.keys + (d / terms + i) * attention_keys + j0);
    });
  for (int64_t j = 0; j < count; j += terms)
    for_each_block(tile.head_size, [&](int64_t d, int64_t lanes) {
      const Number* rows = v + j * v_stride + d;
      Operand::pack_columns(rows, v_stride, count - j, lanes).store(tile.values + j / terms * tile.padded + d);
    });
}

// scores[m, j] = (add ? scores[m, j] : 0) + sum over k of q[m, k] * keys[k, j], for `rows` queries and `blocks` vectors of keys; strides
// and depth count operand lanes.
template <class Operand, int64_t rows, int64_t blocks>
inline void key_tile(const float* q, int64_t q_stride, const float* keys, float* scores, int64_t depth, bool add) {
  Vec sum[rows][blocks];
#pragma GCC unroll 8
  for (int64_t m = 0; m < rows; ++m)
#pragma GCC unroll 8
    for (int64_t c = 0; c < blocks; ++c) sum[m][c] = Vec::all(0.0f);
  for (int64_t k = 0; k < depth; ++k) {
    Operand a[rows];
#pragma GCC unroll 8
    for (int64_t m = 0; m < rows; ++m) a[m] = Operand::broadcast(q + m * q_stride + k);
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

// The scores of a step, [rows, keys rounded up to vectors]. q: the piece's queries, rows q_stride operand lanes apart.
template <class Operand, int64_t rows>
__attribute__((noinline)) void multiply_keys(const AttentionTile& tile, const AttentionStep& step, const float* q, int64_t q_stride) {
  constexpr int64_t most = attention_depth / Operand::terms, W = Vec::width;
  const int64_t columns = padded_to_vec(step.keys), depth = lanes_of<Operand>(tile.head_size);
  q += step.first * q_stride;
  for (int64_t k = 0; k < depth; k += most)
    for (int64_t j = 0; j < columns; j += 4 * W)
      with_constant<4>((columns - j) / W, [&](auto blocks) {
        key_tile<Operand, rows, blocks.value>(q + k, q_stride, tile.keys + k * attention_keys + j, step.scores + j,
                                              depth - k < most ? depth - k : most, k != 0);
      });
  if (tile.negative)
    for (float* row = step.scores; row < step.scores + rows * attention_keys; row += attention_keys)
      for (int64_t j = 0; j < columns; j += W) (Vec::all(0.0f) - Vec::load(row + j)).store(row + j);
}

// Accumulates the products of the step's weights with `blocks` vectors of values, from column d on; the last tile normalises them into
// `out`. with_softmax: computes the weights on the way; once a step.
template <class Operand, int64_t rows, int64_t blocks, bool with_softmax, class Number>
BERTFAST_VALUE_TILE void value_tile(const AttentionTile& tile, AttentionStep& step, int64_t d, Number* out, int64_t out_stride) {
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
        const Operand a = Operand::broadcast(weights + m * attention_keys);
#pragma GCC unroll 8
        for (int64_t c = 0; c < blocks; ++c) sum[m][c] = multiply_add(a, b[c], sum[m][c]);
      }
    }
  };
  Vec total[rows];
  if constexpr (with_softmax) {
#pragma GCC unroll 8
    for (int64_t m = 0; m < rows; ++m)
      total[m] = tile.first ? Vec::all(0.0f) : Vec::load(step.weight_sums + m * Vec::width) * Vec::all(step.rescale[m]);
    for (int64_t i = 0; i < keys_per_step && i < keys; i += Vec::width)
#pragma GCC unroll 8
      for (int64_t m = 0; m < rows; ++m) exp_weights<Operand>(step, m, i, scale, total[m]);
  }
  int64_t j = keys_per_step;
  for (; j < keys; j += keys_per_step) {
    constexpr int64_t words = keys_per_step / Operand::terms;
    if constexpr (with_softmax) {
#pragma GCC unroll 8
      for (int64_t m = 0; m < rows; ++m) {
        exp_weights<Operand>(step, m, j, scale, total[m]);
        multiply(words * (m + 1) / rows - words * m / rows);
      }
    } else {
      multiply(words);
    }
  }
  if constexpr (with_softmax) {
    if (step.last)
      finish_softmax(step, total);
    else
#pragma GCC unroll 8
      for (int64_t m = 0; m < rows; ++m) total[m].store(step.weight_sums + m * Vec::width);
  }
  multiply(lanes_of<Operand>(keys - (j - keys_per_step)));

  float* outputs = tile.outputs + step.first * padded + d;
  if (!tile.first)
#pragma GCC unroll 8
    for (int64_t m = 0; m < rows; ++m)
#pragma GCC unroll 8
      for (int64_t c = 0; c < blocks; ++c)
        sum[m][c] = multiply_add(Vec::load(outputs + m * padded + c * Vec::width), Vec::all(step.rescale[m]), sum[m][c]);
  if (!step.last) {
#pragma GCC unroll 8
    for (int64_t m = 0; m < rows; ++m)
#pragma GCC unroll 8
      for (int64_t c = 0; c < blocks; ++c) sum[m][c].store(outputs + m * padded + c * Vec::width);
    return;
  }
  const int64_t lanes = tile.head_size - d - (blocks - 1) * Vec::width;  // of the last vector of values
#pragma GCC unroll 8
  for (int64_t m = 0; m < rows; ++m, out += out_stride)
#pragma GCC unroll 8
    for (int64_t c = 0; c < blocks; ++c) {
      const Vec result = sum[m][c] * Vec::all(step.inv_sum[m]);
      if (c + 1 < blocks || lanes >= Vec::width)
        result.store(out + d + c * Vec::width);
      else
        result.store(out + d + c * Vec::width, lanes);
    }
}

// P V of a step; out: of its first query.
template <class Operand, int64_t rows, class Number>
void multiply_values(const AttentionTile& tile, AttentionStep& step, Number* out, int64_t out_stride) {
  with_constant<value_blocks>(tile.padded / Vec::width,
                              [&](auto blocks) { value_tile<Operand, rows, blocks.value, true>(tile, step, 0, out, out_stride); });
  for (int64_t d = value_blocks * Vec::width; d < tile.padded; d += value_blocks * Vec::width)
    with_constant<value_blocks>((tile.padded - d) / Vec::width,
                                [&](auto blocks) { value_tile<Operand, rows, blocks.value, false>(tile, step, d, out, out_stride); });
}

}  // namespace
}  // namespace bertfast::cpu::BERTFAST_ISA_NAME
