#include "int8_ops.h"

#include <algorithm>

namespace bertfast::cpu {
namespace {

constexpr int64_t quantize_grain = 64;  // spans: a few microseconds
constexpr int64_t most_rows = 192;      // in an item: a panel is read from L2 once for each 48 of them

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

int64_t Int8QuantizeOp::items() const { return divide_up(rows * int8_spans(args.groups), quantize_grain); }

void Int8QuantizeOp::run(int64_t item) const {
  kernels.of_int8.quantize(args, item * quantize_grain, std::min(rows * int8_spans(args.groups), (item + 1) * quantize_grain));
}

Int8LinearOp::Int8LinearOp(const Kernels& kernels, std::vector<Int8Linear> parts, int64_t rows)
    : kernels_(kernels),
      parts_(std::move(parts)),
      rows_(rows),
      block_panels_(parts_[0].quantized == nullptr ? 1 : 2),
      column_blocks_(0),
      row_blocks_(divide_up(rows, most_rows)) {
  for (const Int8Linear& part : parts_) column_blocks_ += blocks_of(part);
}

void Int8LinearOp::run(int64_t item) const {
  int64_t column = item % column_blocks_;
  const int64_t row = item / column_blocks_;
  size_t p = 0;
  for (; column >= blocks_of(parts_[p]); ++p) column -= blocks_of(parts_[p]);
  const int64_t panel0 = column * block_panels_, panel1 = std::min(panel0 + block_panels_, int8_groups(parts_[p].features));
  kernels_.of_int8.linear(parts_[p], rows_ * row / row_blocks_, rows_ * (row + 1) / row_blocks_, panel0, panel1);
}

}  // namespace bertfast::cpu
