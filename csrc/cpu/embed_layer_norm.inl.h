// LayerNorm of the sum of a token's three embedding rows. Ids are checked here, where they are read: no row outside a table is touched.
#pragma once

#include "add_layer_norm.inl.h"
#include "int8_quantize.inl.h"
#include "vec.inl.h"

namespace bertfast::cpu::BERTFAST_ISA_NAME {
namespace {

inline bool outside(int64_t id, int64_t rows) { return static_cast<uint64_t>(id) >= static_cast<uint64_t>(rows); }

// The embedding row of a word; an int8 row is dequantized into `scratch`, [hidden].
template <class Number>
inline const Number* word_row(const EmbedLayerNormArgs<Number>& op, int64_t id, Number*) {
  return op.word_table + id * op.hidden;
}
inline const float* word_row(const EmbedLayerNormArgs<float, uint8_t>& op, int64_t id, float* scratch) {
  const int64_t blocks = (op.hidden + hadamard_block - 1) / hadamard_block, panel = id / op.word_width, word = id % op.word_width;
  const uint8_t* q = op.word_table + panel * blocks * hadamard_block * op.word_width + 4 * word;
  const float* scales = op.word_scales + panel * ((blocks + 1) / 2) * op.word_width + word;
  for (int64_t g = 0; g < blocks; ++g) {
    const int64_t left = op.hidden - g * hadamard_block;
    dequantize_block(q + g * hadamard_block * op.word_width, 4 * op.word_width, scales[g / 2 * op.word_width], scratch + g * hadamard_block,
                     left < hadamard_block ? left : hadamard_block);
  }
  return scratch;
}

template <class Number, class Word = Number>
bool embed_layer_norm(const EmbedLayerNormArgs<Number, Word>& op, int64_t first, int64_t last) {
  for (int64_t t = first; t < last; ++t) {
    const int64_t word_id = op.input_ids[t], position_id = op.position_ids[t], type_id = op.type_ids ? op.type_ids[t] : 0;
    if (outside(word_id, op.word_rows) || outside(position_id, op.position_rows) || outside(type_id, op.type_rows)) return false;
    const Number* word = word_row(op, word_id, op.out + t * op.hidden);
    const Number* position = op.position_table + position_id * op.hidden;
    const Number* type = op.type_table + type_id * op.hidden;
    normalise_row(op.out + t * op.hidden, op.weight, op.bias, op.hidden, op.eps, [=](int64_t i, int64_t lanes) {
      return Vec::load(word + i, lanes) + Vec::load(type + i, lanes) + Vec::load(position + i, lanes);
    });
  }
  return true;
}

}  // namespace
}  // namespace bertfast::cpu::BERTFAST_ISA_NAME
