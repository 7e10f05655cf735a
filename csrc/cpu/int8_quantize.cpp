#include <algorithm>

#include "items.h"
#include "ops.h"

namespace bertfast::cpu {
namespace {

constexpr int64_t grain = 64;  // groups in an item: a few microseconds

}  // namespace

int64_t Int8QuantizeOp::items() const { return divide_up(args_.rows * int8_groups(args_.blocks), grain); }

void Int8QuantizeOp::run(int64_t item) const {
  const int64_t groups = args_.rows * int8_groups(args_.blocks);
  kernels_.of_int8.quantize(args_, item * grain, std::min(groups, (item + 1) * grain));
}

}  // namespace bertfast::cpu
