#include <algorithm>
#include <type_traits>

#include "../check.h"
#include "items.h"
#include "ops.h"

namespace bertfast::cpu {
namespace {

void check_ids_of(const char* name, const int64_t* ids, int64_t count, int64_t rows) {
  if (ids == nullptr || count == 0) return;
  const auto [low, high] = std::minmax_element(ids, ids + count);
  const int64_t bad = *low < 0 ? *low : *high;
  BF_CHECK(*low >= 0 && *high < rows, name, ": got ", bad, ", expected 0 <= ", name, " < ", rows, ", the rows of its embedding table");
}

}  // namespace

template <class Number, class Word>
int64_t EmbedLayerNormOp<Number, Word>::items() const {
  return divide_up(args_.tokens, rows_per_item(args_.hidden));
}

template <class Number, class Word>
void EmbedLayerNormOp<Number, Word>::run(int64_t item) const {
  const RowRange tokens = rows_of_item(item, args_.tokens, args_.hidden);
  bool good;
  if constexpr (std::is_same_v<Word, uint8_t>)
    good = kernels_.of_int8.embed_layer_norm(args_, tokens.first, tokens.last);
  else
    good = kernels_of<Number>(kernels_).embed_layer_norm(args_, tokens.first, tokens.last);
  if (!good) return bad_id_.store(true, std::memory_order_relaxed);
  if constexpr (std::is_same_v<Number, float>)
    if (args_.quantized != nullptr) quantize_rows(kernels_, args_.out, args_.hidden, args_.quantized, tokens);
}

template <class Number, class Word>
void EmbedLayerNormOp<Number, Word>::check_ids(bool elsewhere) const {
  if (!elsewhere && !bad_id()) return;
  check_ids_of("input_ids", args_.input_ids, args_.tokens, args_.word_rows);
  check_ids_of("position_ids", args_.position_ids, args_.tokens, args_.position_rows);
  check_ids_of("token_type_ids", args_.type_ids, args_.tokens, args_.type_rows);
  fail("token_type_ids: the embedding table is empty, expected a row for type 0");
}

template class EmbedLayerNormOp<float>;
template class EmbedLayerNormOp<bfloat16>;
template class EmbedLayerNormOp<float, uint8_t>;

}  // namespace bertfast::cpu
