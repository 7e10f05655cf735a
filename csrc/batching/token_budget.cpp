#include "token_budget.h"

#include <algorithm>
#include <numeric>

#include "../check.h"

namespace bertfast {

std::vector<int64_t> plan_batches(const int64_t* lengths, int64_t count, int64_t max_tokens, int64_t max_rows, int64_t* order) {
  BF_CHECK(max_tokens > 0, "max_tokens: got ", max_tokens, ", expected 1 or more");
  BF_CHECK(max_rows > 0, "max_rows: got ", max_rows, ", expected 1 or more");
  for (int64_t i = 0; i < count; ++i) BF_CHECK(lengths[i] >= 0, "lengths[", i, "] is ", lengths[i], ", expected 0 or more");
  std::iota(order, order + count, int64_t{0});
  std::stable_sort(order, order + count, [lengths](int64_t a, int64_t b) { return lengths[a] > lengths[b]; });

  std::vector<int64_t> cuts = {0};
  int64_t tokens = 0;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t length = lengths[order[i]];
    const bool fits = length <= max_tokens - tokens && i - cuts.back() < max_rows;
    if (i > cuts.back() && !fits) {
      cuts.push_back(i);
      tokens = 0;
    }
    tokens += length;
  }
  if (count > 0) cuts.push_back(count);
  return cuts;
}

}  // namespace bertfast
