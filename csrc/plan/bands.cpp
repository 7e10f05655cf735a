#include "bands.h"

#include <algorithm>

namespace bertfast::plan {
namespace {

constexpr int64_t least_band_rows = 128;  // every band reads all weights: with fewer rows, too many bytes per multiplication
constexpr double most_uneven = 1.06;      // rows of the busiest thread over an even share

}  // namespace

std::vector<int64_t> cut_into_bands(const int32_t* cu_seqlens, int64_t sequences, int threads) {
  const int64_t rows = cu_seqlens[sequences];
  const int64_t count = std::min(rows / (least_band_rows * threads) * threads, sequences);
  if (count < 2) return {};
  std::vector<int64_t> cuts = {0}, sizes;
  for (int64_t band = 1; band <= count; ++band) {  // cut at the boundary nearest to an even cut
    const int64_t wanted = rows * band / count, last = cuts.back();
    int64_t next = std::lower_bound(cu_seqlens + last, cu_seqlens + sequences, wanted) - cu_seqlens;
    if (band < count && next > last + 1 && wanted - cu_seqlens[next - 1] < cu_seqlens[next] - wanted) --next;
    if (band == count) next = sequences;
    if (cu_seqlens[next] == cu_seqlens[last]) continue;  // sequences without rows go with the next band
    sizes.push_back(cu_seqlens[next] - cu_seqlens[last]);
    cuts.push_back(next);
  }
  cuts.back() = sequences;
  std::vector<int64_t> busy(static_cast<size_t>(threads), 0);  // rows of each thread, which claims a band when it has the fewest
  for (const int64_t size : sizes) *std::min_element(busy.begin(), busy.end()) += size;
  const int64_t most = *std::max_element(busy.begin(), busy.end());
  if (sizes.size() < 2 || static_cast<double>(most * threads) > most_uneven * static_cast<double>(rows)) return {};
  return cuts;
}

}  // namespace bertfast::plan
