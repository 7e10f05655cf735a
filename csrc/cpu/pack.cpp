#include <cstring>

#include "../check.h"
#include "items.h"
#include "ops.h"

namespace bertfast::cpu {

bool check_indices(const int64_t* indices, int64_t count, int64_t rows, const char* op) {
  bool ascending = true;
  for (int64_t t = 0; t < count; ++t) {
    BF_CHECK(indices[t] >= 0 && indices[t] < rows, op, ": indices[", t, "] is ", indices[t], ", expected 0 <= index < ", rows);
    if (t > 0) ascending &= indices[t - 1] < indices[t];
  }
  return ascending;
}

PackOp::PackOp(const Kernels&, const Args& args, int /*threads*/) : args_(args) {
  check_indices(args.indices, args.tokens, args.rows, "pack");
}

int64_t PackOp::items() const { return divide_up(args_.tokens, rows_per_item(args_.row_bytes / 4)); }

void PackOp::run(int64_t item) const {
  const auto [first, last] = rows_of_item(item, args_.tokens, args_.row_bytes / 4);
  const int64_t row_bytes = args_.row_bytes;
  for (int64_t t = first; t < last; ++t)
    std::memcpy(args_.out + t * row_bytes, args_.x + args_.indices[t] * row_bytes, static_cast<size_t>(row_bytes));
}

}  // namespace bertfast::cpu
