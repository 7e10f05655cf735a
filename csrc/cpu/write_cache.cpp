#include <algorithm>
#include <cstring>

#include "../check.h"
#include "items.h"
#include "ops.h"

namespace bertfast::cpu {
namespace {

constexpr int64_t grain = 16384;  // elements: handing a smaller item out costs more than copying it

}  // namespace

void check_cache_row(const char* op, int64_t token, int64_t row, int64_t rows) {
  BF_CHECK(row >= 0 && row < rows, op, ": rows[", token, "] is ", row, ", expected 0 <= row < ", rows, ", the rows of the cache");
}

template <class Number>
WriteCacheOp<Number>::WriteCacheOp(const Kernels&, const Args& args, int /*threads*/) : args_(args) {
  tokens_per_item_ = std::max<int64_t>(1, grain / std::max<int64_t>(1, args.heads * args.head_size));
  for (int64_t t = 0; t < args.tokens; ++t) {
    check_cache_row("write_cache", t, args.rows[t], args.cache_rows);
    BF_CHECK(args.positions[t] >= 0 && args.positions[t] < args.cache_positions, "write_cache: positions[", t, "] is ", args.positions[t],
             ", expected 0 <= position < ", args.cache_positions, ", the positions of the cache");
  }
}

template <class Number>
int64_t WriteCacheOp<Number>::items() const {
  return divide_up(args_.tokens, tokens_per_item_);
}

template <class Number>
void WriteCacheOp<Number>::run(int64_t item) const {
  const size_t bytes = static_cast<size_t>(args_.head_size) * sizeof(Number);
  const CacheStrides& strides = args_.strides;
  const int64_t last = std::min(args_.tokens, (item + 1) * tokens_per_item_);
  for (int64_t t = item * tokens_per_item_; t < last; ++t) {
    const Number *k = args_.k + t * args_.k_stride, *v = args_.v + t * args_.v_stride;
    Number* key = args_.keys + args_.rows[t] * strides.key_row + args_.positions[t] * strides.key_position;
    Number* value = args_.values + args_.rows[t] * strides.value_row + args_.positions[t] * strides.value_position;
    for (int64_t n = 0; n < args_.heads; ++n) {
      std::memcpy(key + n * strides.key_head, k + n * args_.head_size, bytes);
      std::memcpy(value + n * strides.value_head, v + n * args_.head_size, bytes);
    }
  }
}

template class WriteCacheOp<float>;
template class WriteCacheOp<bfloat16>;

}  // namespace bertfast::cpu
