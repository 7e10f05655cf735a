#include "int8_ops.h"

#include <algorithm>

namespace bertfast::cpu {
namespace {

constexpr int64_t quantize_grain = 128;  // groups: a few microseconds
constexpr int64_t most_rows = 192;       // in an item: a panel is read from L2 once for each 48 of them

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

int64_t Int8QuantizeOp::items() const { return divide_up(rows * args.groups, quantize_grain); }

void Int8QuantizeOp::run(int64_t item) const {
  kernels.of_int8.quantize(args, item * quantize_grain, std::min(rows * args.groups, (item + 1) * quantize_grain));
}

Int8LinearOp::Int8LinearOp(const Kernels& kernels, std::vector<Int8Linear> parts, int64_t rows)
    : kernels_(kernels), parts_(std::move(parts)), rows_(rows), panels_(0), row_blocks_(divide_up(rows, most_rows)) {
  for (const Int8Linear& part : parts_) panels_ += int8_groups(part.features);
}

void Int8LinearOp::run(int64_t item) const {
  int64_t panel = item % panels_;
  const int64_t block = item / panels_;
  size_t p = 0;
  for (; panel >= int8_groups(parts_[p].features); ++p) panel -= int8_groups(parts_[p].features);
  kernels_.of_int8.linear(parts_[p], rows_ * block / row_blocks_, rows_ * (block + 1) / row_blocks_, panel);
}

}  // namespace bertfast::cpu
