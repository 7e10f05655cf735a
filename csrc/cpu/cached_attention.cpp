#include <algorithm>

#include "../check.h"
#include "../parallel.h"
#include "items.h"
#include "ops.h"

namespace bertfast::cpu {

template <class Number>
CachedAttentionOp<Number>::CachedAttentionOp(const Kernels& kernels, const Args& args, int /*threads*/) : kernels_(kernels), args_(args) {
  for (int64_t t = 0; t < args.queries; ++t) {
    const int64_t first = args.first ? args.first[t] : 0, last = args.last[t];
    check_cache_row("cached_attention", t, args.rows[t], args.cache_rows);
    BF_CHECK(first >= 0 && first <= last && last <= args.cache_positions, "cached_attention: query ", t, " reads positions ", first, " to ",
             last, ", expected 0 <= first <= last <= ", args.cache_positions, ", the positions of the cache");
    longest_range_ = std::max(longest_range_, last - first);
  }
}

template <class Number>
void CachedAttentionOp<Number>::run(int64_t item) const {
  kernels_of<Number>(kernels_).cached_attention(args_, item / args_.heads, item % args_.heads, scratch(longest_range_));
}

template class CachedAttentionOp<float>;
template class CachedAttentionOp<bfloat16>;

}  // namespace bertfast::cpu
