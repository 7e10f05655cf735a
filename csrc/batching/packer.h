// From masks or lengths to what varlen kernels want.
#pragma once

#include <cstdint>

namespace bertfast {

enum class MaskKind : int { boolean, uint8, int8, int16, int32, int64, float16, bfloat16, float32, float64 };

struct Packed {
  int64_t total;    // T
  int64_t longest;  // of the B lengths; 0 without sequences
  int64_t shortest;
  bool first_column_kept;  // column 0 of every row is a real token
};

// mask: [rows, columns], columns back to back, rows row_stride elements apart; null: every position is real. A position
// whose value is not zero is real. Writes cu_seqlens [rows + 1], and for each real token, row by row, its place in the
// padded matrix (indices) and its column (positions); both need room for rows * columns.
Packed pack_mask(const void* mask, MaskKind kind, int64_t rows, int64_t columns, int64_t row_stride, int32_t* cu_seqlens, int64_t* indices,
                 int64_t* positions);

// Whether every position is real: most masks are, and need no packing.
bool mask_is_full(const void* mask, MaskKind kind, int64_t rows, int64_t columns, int64_t row_stride);

struct Range {
  int64_t lowest, highest;
};

// Of integers (or bools) that lie back to back, at least one. Where token ids and masks end says what most callers ask of them.
Range integer_range(const void* values, MaskKind kind, int64_t count);

// cu_seqlens [rows + 1] of given lengths, none negative.
Packed pack_lengths(const int64_t* lengths, int64_t rows, int32_t* cu_seqlens);

}  // namespace bertfast
