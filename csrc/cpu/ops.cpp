#include "ops.h"

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "../check.h"
#include "../parallel.h"
#include "int8_ops.h"

namespace bertfast::cpu {
namespace {

// A piece of a memory-bound op: a few microseconds, more than it costs to hand it out.
constexpr int64_t grain = 8192;  // floats

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t rows_per_item(int64_t columns) { return std::max<int64_t>(1, grain / std::max<int64_t>(1, columns)); }

struct Range {
  int64_t first, last;
};

Range rows_of(int64_t item, int64_t rows, int64_t columns) {
  const int64_t step = rows_per_item(columns);
  return {item * step, std::min(rows, (item + 1) * step)};
}

template <class Number>
const KernelsOf<Number>& of(const Kernels& kernels) {
  if constexpr (sizeof(Number) == sizeof(float))
    return kernels.of_float;
  else
    return kernels.of_bfloat16;
}

void quantize(const Kernels& kernels, const Quantize& then, Range rows) {
  if (then.out != nullptr) kernels.of_int8.quantize(then, rows.first * int8_spans(then.groups), rows.last * int8_spans(then.groups));
}

void check_ids(const char* name, const int64_t* ids, int64_t count, int64_t rows) {
  if (ids == nullptr || count == 0) return;
  const auto [low, high] = std::minmax_element(ids, ids + count);
  const int64_t bad = *low < 0 ? *low : *high;
  BF_CHECK(*low >= 0 && *high < rows, name, ": got ", bad, ", expected 0 <= ", name, " < ", rows, ", the rows of its embedding table");
}

}  // namespace

template <class Number, class Word>
int64_t EmbeddingOpOf<Number, Word>::items() const {
  return divide_up(args.tokens, rows_per_item(args.hidden));
}

template <class Number, class Word>
void EmbeddingOpOf<Number, Word>::run(int64_t item) const {
  const Range r = rows_of(item, args.tokens, args.hidden);
  bool good;
  if constexpr (std::is_same_v<Word, uint8_t>)
    good = kernels.of_int8.embed_layer_norm(args, r.first, r.last);
  else
    good = of<Number>(kernels).embed_layer_norm(args, r.first, r.last);
  if (!good) return bad_id.store(true, std::memory_order_relaxed);
  quantize(kernels, then, r);
}

template <class Number, class Word>
void EmbeddingOpOf<Number, Word>::check(bool bad) const {
  if (!bad && !bad_id.load(std::memory_order_relaxed)) return;
  check_ids("input_ids", args.input_ids, args.tokens, args.word_rows);
  check_ids("position_ids", args.position_ids, args.tokens, args.position_rows);
  check_ids("token_type_ids", args.type_ids, args.tokens, args.type_rows);
  fail("token_type_ids: the embedding table is empty");
}

template <class Number>
int64_t LayerNormOpOf<Number>::items() const {
  return divide_up(args.rows, rows_per_item(args.hidden));
}

template <class Number>
void LayerNormOpOf<Number>::run(int64_t item) const {
  const Range r = rows_of(item, args.rows, args.hidden);
  of<Number>(kernels).add_layer_norm(args, r.first, r.last);
  quantize(kernels, then, r);
}

template <class Number>
LinearOpOf<Number>::LinearOpOf(const Kernels& kernels, std::vector<LinearOf<Number>> parts, int threads)
    : kernels_(kernels), parts_(std::move(parts)), threads_(threads) {
  int64_t rows = parts_[0].rows, columns = 0;
  for (const LinearOf<Number>& part : parts_) columns += part.features;
  // A block of weights stays in L2 while the rows pass it; few columns for many cores make narrower blocks.
  block_columns_ = 96;
  while (block_columns_ > 16 && divide_up(columns, block_columns_) < 2 * threads) block_columns_ /= 2;
  block_rows_ = linear_rows;
  row_blocks_ = std::max<int64_t>(rows > 0, divide_up(rows, block_rows_));
  first_block_.push_back(0);
  for (const LinearOf<Number>& part : parts_) first_block_.push_back(first_block_.back() + divide_up(part.features, block_columns_));
  column_blocks_ = first_block_.back();
}

template <class Number>
typename LinearOpOf<Number>::Piece LinearOpOf<Number>::piece(int64_t item) const {
  const int64_t block = item % column_blocks_, row_block = item / column_blocks_;
  size_t p = 0;
  while (first_block_[p + 1] <= block) ++p;
  const LinearOf<Number>& part = parts_[p];
  const int64_t column = (block - first_block_[p]) * block_columns_;
  return {part, row_block * block_rows_, std::min(part.rows, (row_block + 1) * block_rows_), column,
          std::min(part.features, column + block_columns_)};
}

template <class Number>
void LinearOpOf<Number>::run(int64_t item) const {
  const Piece now = piece(item);
  WeightsOf<Number> next = {nullptr, 0};
  if (item + threads_ < items()) {  // which this thread takes next, if all are alike
    const Piece then = piece(item + threads_);
    next = {then.part.weight + then.col0 * then.part.inputs, then.col1 - then.col0};
  }
  of<Number>(kernels_).linear(now.part, now.row0, now.row1, now.col0, now.col1, next, scratch(kernels_.linear_scratch));
}

template <class Number>
AttentionOpOf<Number>::AttentionOpOf(const Kernels& kernels, const AttentionOf<Number>& args, int threads)
    : kernels_(kernels), args_(args), threads_(threads) {
  BF_CHECK(args.head_size <= max_head_size, "varlen_attention: head size ", args.head_size, ", expected at most ", max_head_size);
  // Long pieces lay out a sequence's keys less often; a few items must be left for every core.
  int64_t step = attention_rows;
  while (step > 32 && divide_up(args.cu_seqlens_q[args.sequences], step) * args.heads < 8 * threads) step /= 2;
  for (int64_t b = 0; b < args.sequences; ++b) {
    const int64_t queries = args.cu_seqlens_q[b + 1] - args.cu_seqlens_q[b], keys = args.cu_seqlens_k[b + 1] - args.cu_seqlens_k[b];
    for (int64_t first = 0; first < queries; first += step) {
      const int64_t last = std::min(queries, first + step);
      const int64_t seen = args.causal ? std::clamp<int64_t>(last + keys - queries, 0, keys) : keys;
      pieces_.push_back({static_cast<int32_t>(b), static_cast<int32_t>(first), static_cast<int32_t>(last), (last - first + 8) * seen});
    }
  }
  const auto more = [](const Piece& a, const Piece& b) { return a.work > b.work; };
  std::stable_sort(pieces_.begin(), pieces_.end(), more);
}

template <class Number>
AttentionPiece AttentionOpOf<Number>::piece(int64_t item) const {
  if (item >= items()) return {0, 0, 0, 0};
  const Piece& piece = pieces_[static_cast<size_t>(item / args_.heads)];
  return {piece.sequence, item % args_.heads, piece.first, piece.last};
}

template <class Number>
void AttentionOpOf<Number>::run(int64_t item) const {  // and this thread, if all are alike, will take the item after every other's next
  const auto attention = args_.bfloat16_products ? of<Number>(kernels_).rounded_attention : of<Number>(kernels_).attention;
  attention(args_, piece(item), piece(item + threads_), scratch(kernels_.attention_scratch));
}

int64_t PackOp::items() const { return divide_up(tokens, rows_per_item(row_bytes / 4)); }

void PackOp::run(int64_t item) const {
  const Range r = rows_of(item, tokens, row_bytes / 4);
  for (int64_t t = r.first; t < r.last; ++t) std::memcpy(out + t * row_bytes, x + indices[t] * row_bytes, static_cast<size_t>(row_bytes));
}

template <class Number>
int64_t UnpackOpOf<Number>::items() const {
  return ascending ? divide_up(rows, rows_per_item(columns)) : 1;
}

template <class Number>
void UnpackOpOf<Number>::run(int64_t item) const {
  if (!ascending) {
    std::fill(out, out + rows * columns, fill);
    for (int64_t t = 0; t < tokens; ++t) std::copy(x + t * columns, x + (t + 1) * columns, out + indices[t] * columns);
    return;
  }
  const Range r = rows_of(item, rows, columns);
  int64_t t = std::lower_bound(indices, indices + tokens, r.first) - indices;
  for (int64_t row = r.first; row < r.last; ++row) {
    Number* to = out + row * columns;
    if (t < tokens && indices[t] == row) {
      std::copy(x + t * columns, x + (t + 1) * columns, to);
      ++t;
    } else {
      std::fill(to, to + columns, fill);
    }
  }
}

float rounded(float x, float) { return x; }

bfloat16 rounded(float x, bfloat16) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  if (x != x) return {0x7fc0};
  return {static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}

bool check_indices(const int64_t* indices, int64_t count, int64_t rows, const char* op) {
  bool ascending = true;
  for (int64_t t = 0; t < count; ++t) {
    BF_CHECK(indices[t] >= 0 && indices[t] < rows, op, ": indices[", t, "] is ", indices[t], ", expected 0 <= index < ", rows);
    if (t > 0) ascending &= indices[t - 1] < indices[t];
  }
  return ascending;
}

void check_boundaries(const char* name, const int32_t* bounds, int64_t sequences, int64_t rows) {
  BF_CHECK(bounds[0] == 0, "varlen_attention: ", name, "[0] is ", bounds[0], ", expected 0");
  for (int64_t b = 0; b < sequences; ++b)
    BF_CHECK(bounds[b] <= bounds[b + 1], "varlen_attention: ", name, " falls from ", bounds[b], " to ", bounds[b + 1], " at ", b + 1);
  BF_CHECK(bounds[sequences] <= rows, "varlen_attention: ", name, " ends at ", bounds[sequences], ", expected at most ", rows, " rows");
}

template struct EmbeddingOpOf<float>;
template struct EmbeddingOpOf<bfloat16>;
template struct EmbeddingOpOf<float, uint8_t>;
template struct LayerNormOpOf<float>;
template struct LayerNormOpOf<bfloat16>;
template class LinearOpOf<float>;
template class LinearOpOf<bfloat16>;
template class AttentionOpOf<float>;
template class AttentionOpOf<bfloat16>;
template struct UnpackOpOf<float>;
template struct UnpackOpOf<bfloat16>;

}  // namespace bertfast::cpu
