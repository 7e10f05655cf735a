#include <algorithm>
#include <cstring>

#include "items.h"
#include "ops.h"

namespace bertfast::cpu {

float rounded(float x, float) { return x; }

bfloat16 rounded(float x, bfloat16) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  if (x != x) return {0x7fc0};
  return {static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}

template <class Number>
UnpackOp<Number>::UnpackOp(const Kernels&, const Args& args, int /*threads*/)
    : args_(args), fill_(rounded(args.fill, Number{})), ascending_(check_indices(args.indices, args.tokens, args.rows, "unpack")) {}

template <class Number>
int64_t UnpackOp<Number>::items() const {
  return ascending_ ? divide_up(args_.rows, rows_per_item(args_.columns)) : 1;
}

template <class Number>
void UnpackOp<Number>::run(int64_t item) const {
  const auto& [x, indices, out, tokens, rows, columns, fill] = args_;
  if (!ascending_) {
    std::fill(out, out + rows * columns, fill_);
    for (int64_t t = 0; t < tokens; ++t) std::copy(x + t * columns, x + (t + 1) * columns, out + indices[t] * columns);
    return;
  }
  const RowRange range = rows_of_item(item, rows, columns);
  int64_t t = std::lower_bound(indices, indices + tokens, range.first) - indices;
  for (int64_t row = range.first; row < range.last; ++row) {
    Number* to = out + row * columns;
    if (t < tokens && indices[t] == row) {
      std::copy(x + t * columns, x + (t + 1) * columns, to);
      ++t;
    } else {
      std::fill(to, to + columns, fill_);
    }
  }
}

template class UnpackOp<float>;
template class UnpackOp<bfloat16>;

}  // namespace bertfast::cpu
