#include <algorithm>

#include "../check.h"
#include "../parallel.h"
#include "items.h"
#include "ops.h"

namespace bertfast::cpu {
namespace {

void check_boundaries(const char* name, const int32_t* bounds, int64_t sequences, int64_t rows) {
  BF_CHECK(bounds[0] == 0, "varlen_attention: ", name, "[0] is ", bounds[0], ", expected 0");
  for (int64_t b = 0; b < sequences; ++b)
    BF_CHECK(bounds[b] <= bounds[b + 1], "varlen_attention: ", name, " falls from ", bounds[b], " to ", bounds[b + 1], " at ", b + 1,
             ", expected to ascend");
  BF_CHECK(bounds[sequences] <= rows, "varlen_attention: ", name, " ends at ", bounds[sequences], ", expected at most ", rows, " rows");
}

}  // namespace

template <class Number>
VarlenAttentionOp<Number>::VarlenAttentionOp(const Kernels& kernels, const Args& args, int threads)
    : kernels_(kernels), args_(args), threads_(threads) {
  BF_CHECK(args.head_size <= max_head_size, "varlen_attention: head size ", args.head_size, ", expected at most ", max_head_size);
  check_boundaries("cu_seqlens_q", args.cu_seqlens_q, args.sequences, args.queries);
  check_boundaries("cu_seqlens_k", args.cu_seqlens_k, args.sequences, args.keys);
  // Long pieces load a sequence's keys fewer times; every thread must be left a few items.
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
  const auto more_work = [](const Piece& a, const Piece& b) { return a.work > b.work; };
  if (!std::is_sorted(pieces_.begin(), pieces_.end(), more_work))  // stable_sort allocates
    std::stable_sort(pieces_.begin(), pieces_.end(), more_work);
}

template <class Number>
AttentionPiece VarlenAttentionOp<Number>::piece(int64_t item) const {
  if (item >= items()) return {0, 0, 0, 0};
  const Piece& piece = pieces_[static_cast<size_t>(item / args_.heads)];
  return {piece.sequence, item % args_.heads, piece.first, piece.last};
}

template <class Number>
void VarlenAttentionOp<Number>::run(int64_t item) const {
  const KernelsOf<Number>& kernels = kernels_of<Number>(kernels_);
  const auto attention = args_.bfloat16_products ? kernels.varlen_attention_bfloat16_products : kernels.varlen_attention;
  // Prefetch item + threads: with equal items this thread claims it next.
  attention(args_, piece(item), piece(item + threads_), scratch(kernels_.attention_scratch));
}

template class VarlenAttentionOp<float>;
template class VarlenAttentionOp<bfloat16>;

}  // namespace bertfast::cpu
