#include "cached_ops.h"

#include <algorithm>
#include <cstring>

#include "../check.h"
#include "../parallel.h"

namespace bertfast::cpu {
namespace {

// Below this many floats handing a piece out costs more than copying it.
constexpr int64_t grain = 16384;

void check_row(const char* op, int64_t i, int64_t row, int64_t rows) {
  BF_CHECK(row >= 0 && row < rows, op, ": rows[", i, "] is ", row, ", expected 0 <= row < ", rows, ", the rows of the cache");
}

}  // namespace

template <class Number>
CachedAttentionOp<Number>::CachedAttentionOp(const Kernels& kernels, const CachedAttentionOf<Number>& args, int64_t rows, int64_t cells)
    : kernels_(kernels), args_(args) {
  for (int64_t t = 0; t < args.queries; ++t) {
    const int64_t first = args.first ? args.first[t] : 0, last = args.last[t];
    check_row("cached_attention", t, args.rows[t], rows);
    BF_CHECK(first >= 0 && first <= last && last <= cells, "cached_attention: query ", t, " reads cells ", first, " to ", last,
             ", expected 0 <= first <= last <= ", cells, ", the cells of the cache");
    longest_ = std::max(longest_, last - first);
  }
}

template <class Number>
void CachedAttentionOp<Number>::run(int64_t item) const {
  const KernelsOf<Number>* table;
  if constexpr (sizeof(Number) == sizeof(float))
    table = &kernels_.of_float;
  else
    table = &kernels_.of_bfloat16;
  table->cached_attention(args_, item / args_.heads, item % args_.heads, scratch(longest_));
}

template <class Number>
CacheWriteOp<Number>::CacheWriteOp(const CacheWrite<Number>& args, int64_t rows, int64_t cells) : args_(args) {
  tokens_per_item_ = std::max<int64_t>(1, grain / std::max<int64_t>(1, args.heads * args.head_size));
  for (int64_t t = 0; t < args.tokens; ++t) {
    check_row("write_cache", t, args.rows[t], rows);
    BF_CHECK(args.cells[t] >= 0 && args.cells[t] < cells, "write_cache: cells[", t, "] is ", args.cells[t], ", expected 0 <= cell < ",
             cells, ", the cells of the cache");
  }
}

template <class Number>
int64_t CacheWriteOp<Number>::items() const {
  return (args_.tokens + tokens_per_item_ - 1) / tokens_per_item_;
}

template <class Number>
void CacheWriteOp<Number>::run(int64_t item) const {
  const size_t bytes = static_cast<size_t>(args_.head_size) * sizeof(Number);
  const int64_t last = std::min(args_.tokens, (item + 1) * tokens_per_item_);
  for (int64_t t = item * tokens_per_item_; t < last; ++t) {
    const Number *k = args_.k + t * args_.k_stride, *v = args_.v + t * args_.v_stride;
    Number* key = args_.keys + args_.rows[t] * args_.strides.key_row + args_.cells[t] * args_.strides.key_cell;
    Number* value = args_.values + args_.rows[t] * args_.strides.value_row + args_.cells[t] * args_.strides.value_cell;
    for (int64_t n = 0; n < args_.heads; ++n) {
      std::memcpy(key + n * args_.strides.key_head, k + n * args_.head_size, bytes);
      std::memcpy(value + n * args_.strides.value_head, v + n * args_.head_size, bytes);
    }
  }
}

void ArgmaxOp::run(int64_t row) const {
  const float* x = scores + row * columns;
  constexpr int64_t lanes = 8;  // chains that do not wait for one another
  float best[lanes];
  int64_t at[lanes];
  for (int64_t i = 0; i < lanes; ++i) best[i] = x[0], at[i] = 0;
  for (int64_t c = 0; c < columns; ++c) {
    const int64_t i = c % lanes;
    if (x[c] > best[i] || (x[c] != x[c] && best[i] == best[i])) best[i] = x[c], at[i] = c;
  }
  int64_t first = 0;
  for (int64_t i = 1; i < lanes; ++i) {
    const bool nan = best[i] != best[i], old_nan = best[first] != best[first];
    const bool more = nan ? !old_nan : best[i] > best[first], same = nan ? old_nan : best[i] == best[first];
    if (more || (same && at[i] < at[first])) first = i;
  }
  out[row] = at[first];
}

template class CachedAttentionOp<float>;
template class CachedAttentionOp<bfloat16>;
template class CacheWriteOp<float>;
template class CacheWriteOp<bfloat16>;

}  // namespace bertfast::cpu
