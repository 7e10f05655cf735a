// The three embedding rows of a token, added up on the way into LayerNorm. Ids are checked here, where they are read
// anyway: no row outside of a table is ever touched.
#pragma once

#include "layernorm.inl.h"
#include "vec.h"

namespace bertfast::cpu::BERTFAST_ISA_NAME {
namespace {

inline bool outside(int64_t id, int64_t rows) { return static_cast<uint64_t>(id) >= static_cast<uint64_t>(rows); }

// A piece of a word's row, as numbers.
template <class Number>
inline Vec load_word(const Number* row, const float*, int64_t, int64_t i, int64_t lanes) {
  return Vec::load(row + i, lanes);
}
inline Vec load_word(const int8_t* row, const float* scales, int64_t id, int64_t i, int64_t lanes) {
  return Vec::load(row + i, lanes) * Vec::all(scales[id]);
}

template <class Number, class Word = Number>
bool embed_layer_norm(const EmbeddingOf<Number, Word>& op, int64_t first, int64_t last) {
  for (int64_t t = first; t < last; ++t) {
    const int64_t word_id = op.input_ids[t], position_id = op.position_ids[t], type_id = op.type_ids ? op.type_ids[t] : 0;
    if (outside(word_id, op.word_rows) || outside(position_id, op.position_rows) || outside(type_id, op.type_rows)) return false;
    const Word* word = op.word_table + word_id * op.hidden;
    const Number* position = op.position_table + position_id * op.hidden;
    const Number* type = op.type_table + type_id * op.hidden;
    const float* scales = op.word_scales;
    normalise_row(op.out + t * op.hidden, op.weight, op.bias, op.hidden, op.eps, [=](int64_t i, int64_t lanes) {
      return load_word(word, scales, word_id, i, lanes) + Vec::load(type + i, lanes) + Vec::load(position + i, lanes);
    });
  }
  return true;
}

}  // namespace
}  // namespace bertfast::cpu::BERTFAST_ISA_NAME
