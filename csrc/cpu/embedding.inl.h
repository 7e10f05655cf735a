// The three embedding rows of a token, added up on the way into LayerNorm. Ids are checked here, where they are read
// anyway: no row outside of a table is ever touched.
#pragma once

#include "layernorm.inl.h"
#include "vec.h"

namespace bertfast::cpu::BERTFAST_ISA_NAME {
namespace {

inline bool outside(int64_t id, int64_t rows) { return static_cast<uint64_t>(id) >= static_cast<uint64_t>(rows); }

inline bool embed_layer_norm(const Embedding& op, int64_t first, int64_t last) {
  for (int64_t t = first; t < last; ++t) {
    const int64_t word_id = op.input_ids[t], position_id = op.position_ids[t], type_id = op.type_ids ? op.type_ids[t] : 0;
    if (outside(word_id, op.word_rows) || outside(position_id, op.position_rows) || outside(type_id, op.type_rows)) return false;
    const float* word = op.word_table + word_id * op.hidden;
    const float* position = op.position_table + position_id * op.hidden;
    const float* type = op.type_table + type_id * op.hidden;
    float* out = op.out + t * op.hidden;
    Vec total = Vec::all(0.0f);
    for_each_block(op.hidden, [&](int64_t i, int64_t lanes) {
      const Vec value = Vec::load(word + i, lanes) + Vec::load(type + i, lanes) + Vec::load(position + i, lanes);
      value.store(out + i, lanes);
      total = total + value;
    });
    normalise_row(out, total, op.weight, op.bias, op.hidden, op.eps);
  }
  return true;
}

}  // namespace
}  // namespace bertfast::cpu::BERTFAST_ISA_NAME
