// Batches within a budget of tokens.
#pragma once

#include <cstdint>
#include <vector>

namespace bertfast {

// Sorts sequences by length, longest first and stable, and cuts that order into batches of at most max_rows sequences and max_tokens real
// tokens; a sequence longer than max_tokens is its own batch. Writes order, [count] indices into lengths; returns the cuts: batch i is
// order[cuts[i] : cuts[i + 1]].
std::vector<int64_t> plan_batches(const int64_t* lengths, int64_t count, int64_t max_tokens, int64_t max_rows, int64_t* order);

}  // namespace bertfast
