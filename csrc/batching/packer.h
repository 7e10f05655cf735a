// Packing: from attention masks or lengths to the cu_seqlens and indices of varlen kernels.
#pragma once

#include <cstdint>

namespace bertfast {

enum class MaskKind : int {
  boolean,
  uint8,
  int8,
  int16,
  int32,
  int64,
  float16,
  bfloat16,
  float32,
  float64,
  count
};  // count: how many; no kind

struct Packed {
  int64_t total;    // real tokens
  int64_t longest;  // length; 0 without sequences
  int64_t shortest;
  bool first_column_kept;  // column 0 of every row is a real token
};

// mask: [rows, columns], rows row_stride elements apart; a nonzero value marks a real token; null: all are real. Writes cu_seqlens
// [rows + 1], and for each real token its index in the padded matrix (indices) and its column (positions), both [rows * columns], of which
// the first `total` count.
Packed pack_mask(const void* mask, MaskKind kind, int64_t rows, int64_t columns, int64_t row_stride, int32_t* cu_seqlens, int64_t* indices,
                 int64_t* positions);

// Whether every token is real, so that nothing needs packing.
bool mask_is_full(const void* mask, MaskKind kind, int64_t rows, int64_t columns, int64_t row_stride);

struct Range {
  int64_t lowest, highest;
};

// Lowest and highest of contiguous integers or bools, at least one: validates token ids and masks.
Range integer_range(const void* values, MaskKind kind, int64_t count);

// Writes the cu_seqlens [rows + 1] of lengths, none negative.
Packed pack_lengths(const int64_t* lengths, int64_t rows, int32_t* cu_seqlens);

}  // namespace bertfast
