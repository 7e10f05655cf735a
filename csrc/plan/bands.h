// Bands: a batch cut between sequences, so that a core takes some of them through all layers while what is computed of them stays in its
// cache, and waits for nobody in between.
#pragma once

#include <cstdint>
#include <vector>

namespace bertfast::plan {

// Where to cut a batch of [sequences + 1] boundaries for so many threads: the first sequence of each band, and `sequences` at the end.
// Empty where bands would be few or uneven, so that op by op the threads are busier.
std::vector<int64_t> cut_into_bands(const int32_t* cu_seqlens, int64_t sequences, int threads);

}  // namespace bertfast::plan
