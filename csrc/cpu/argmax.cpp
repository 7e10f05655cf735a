#include "../check.h"
#include "ops.h"

namespace bertfast::cpu {

ArgmaxOp::ArgmaxOp(const Kernels&, const Args& args, int /*threads*/) : args_(args) {
  BF_CHECK(args.rows == 0 || args.columns > 0, "argmax: scores have ", args.columns, " columns, expected 1 or more");
}

void ArgmaxOp::run(int64_t row) const {
  const float* x = args_.scores + row * args_.columns;
  constexpr int64_t lanes = 8;  // independent chains of comparisons
  float best[lanes];
  int64_t at[lanes];
  for (int64_t i = 0; i < lanes; ++i) best[i] = x[0], at[i] = 0;
  for (int64_t c = 0; c < args_.columns; ++c) {
    const int64_t i = c % lanes;
    if (x[c] > best[i] || (x[c] != x[c] && best[i] == best[i])) best[i] = x[c], at[i] = c;
  }
  int64_t first = 0;
  for (int64_t i = 1; i < lanes; ++i) {
    const bool nan = best[i] != best[i], old_nan = best[first] != best[first];
    const bool more = nan ? !old_nan : best[i] > best[first], same = nan ? old_nan : best[i] == best[first];
    if (more || (same && at[i] < at[first])) first = i;
  }
  args_.out[row] = at[first];
}

}  // namespace bertfast::cpu
