#include <algorithm>
#include <utility>

#include "items.h"
#include "ops.h"

namespace bertfast::cpu {
namespace {

constexpr int64_t most_item_rows = 192;  // a panel is read from L2 once for each 48 of them

}  // namespace

Int8LinearOp::Int8LinearOp(const Kernels& kernels, Args parts, int /*threads*/)
    : kernels_(kernels),
      parts_(std::move(parts)),
      block_panels_(parts_[0].quantized == nullptr ? 1 : 2),
      column_blocks_(0),
      row_blocks_(divide_up(parts_[0].rows, most_item_rows)) {
  for (const Int8LinearArgs& part : parts_) column_blocks_ += column_blocks(part);
}

int64_t Int8LinearOp::column_blocks(const Int8LinearArgs& part) const { return divide_up(hadamard_blocks(part.features), block_panels_); }

void Int8LinearOp::run(int64_t item) const {
  int64_t column = item % column_blocks_;
  const int64_t row = item / column_blocks_;
  size_t p = 0;
  for (; column >= column_blocks(parts_[p]); ++p) column -= column_blocks(parts_[p]);
  const Int8LinearArgs& part = parts_[p];
  const int64_t panel0 = column * block_panels_, panel1 = std::min(panel0 + block_panels_, hadamard_blocks(part.features));
  kernels_.of_int8.linear(part, part.rows * row / row_blocks_, part.rows * (row + 1) / row_blocks_, panel0, panel1);
}

}  // namespace bertfast::cpu
