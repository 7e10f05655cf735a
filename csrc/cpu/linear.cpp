#include <algorithm>
#include <utility>

#include "../parallel.h"
#include "items.h"
#include "ops.h"

namespace bertfast::cpu {

template <class Number>
LinearOp<Number>::LinearOp(const Kernels& kernels, Args parts, int threads)
    : kernels_(kernels), parts_(std::move(parts)), threads_(threads) {
  int64_t rows = parts_[0].rows, columns = 0;
  for (const LinearArgs<Number>& part : parts_) columns += part.features;
  // A block of weights stays in L2 while all rows pass over it; few columns for many threads make narrower blocks.
  block_columns_ = 96;
  while (block_columns_ > 16 && divide_up(columns, block_columns_) < 2 * threads) block_columns_ /= 2;
  block_rows_ = linear_rows;
  row_blocks_ = std::max<int64_t>(rows > 0, divide_up(rows, block_rows_));
  column_blocks_ = 0;
  first_block_.push_back(0);
  for (const LinearArgs<Number>& part : parts_) first_block_.push_back(column_blocks_ += divide_up(part.features, block_columns_));
}

template <class Number>
typename LinearOp<Number>::Piece LinearOp<Number>::piece(int64_t item) const {
  const int64_t block = item % column_blocks_, row_block = item / column_blocks_;
  size_t p = 0;
  while (first_block_[p + 1] <= block) ++p;
  const LinearArgs<Number>& part = parts_[p];
  const int64_t column = (block - first_block_[p]) * block_columns_;
  return {part, row_block * block_rows_, std::min(part.rows, (row_block + 1) * block_rows_), column,
          std::min(part.features, column + block_columns_)};
}

template <class Number>
void LinearOp<Number>::run(int64_t item) const {
  const Piece now = piece(item);
  WeightRows<Number> next = {nullptr, 0};
  if (item + threads_ < items()) {  // prefetch item + threads: with equal items this thread claims it next
    const Piece then = piece(item + threads_);
    next = {then.part.weight + then.col0 * then.part.inputs, then.col1 - then.col0};
  }
  kernels_of<Number>(kernels_).linear(now.part, now.row0, now.row1, now.col0, now.col1, next, scratch(kernels_.linear_scratch));
}

template class LinearOp<float>;
template class LinearOp<bfloat16>;

}  // namespace bertfast::cpu
