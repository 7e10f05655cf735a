#include "packer.h"

#include <algorithm>
#include <limits>

#include "../check.h"

namespace bertfast {
namespace {

constexpr int64_t most_tokens = std::numeric_limits<int32_t>::max();

// Compares bits; `significant` leaves out the sign bit of a float, as -0.0 is zero.
template <class Bits, Bits significant>
int64_t keep_row(const void* mask, int64_t offset, int64_t columns, int64_t first_index, int64_t* indices, int64_t* positions) {
  const Bits* row = static_cast<const Bits*>(mask) + offset;
  int64_t kept = 0;
  for (int64_t c = 0; c < columns; ++c) {  // branch-free: masks are unpredictable
    indices[kept] = first_index + c;
    positions[kept] = c;
    kept += (row[c] & significant) != 0;
  }
  return kept;
}

template <class Bits, Bits significant>
bool is_full_row(const void* mask, int64_t offset, int64_t columns) {
  const Bits* row = static_cast<const Bits*>(mask) + offset;
  bool full = true;
  for (int64_t c = 0; c < columns; ++c) full &= (row[c] & significant) != 0;
  return full;
}

struct RowReaders {  // of a kind of mask
  int64_t (*keep)(const void*, int64_t, int64_t, int64_t, int64_t*, int64_t*);
  bool (*is_full)(const void*, int64_t, int64_t);
};

template <class Bits, Bits significant>
constexpr RowReaders rows_of{keep_row<Bits, significant>, is_full_row<Bits, significant>};

const RowReaders& rows_of_kind(MaskKind kind) {
  switch (kind) {
    case MaskKind::boolean:
    case MaskKind::uint8:
    case MaskKind::int8:
      return rows_of<uint8_t, 0xff>;
    case MaskKind::int16:
      return rows_of<uint16_t, 0xffff>;
    case MaskKind::float16:
    case MaskKind::bfloat16:
      return rows_of<uint16_t, 0x7fff>;
    case MaskKind::int32:
      return rows_of<uint32_t, 0xffffffff>;
    case MaskKind::float32:
      return rows_of<uint32_t, 0x7fffffff>;
    case MaskKind::int64:
      return rows_of<uint64_t, ~uint64_t{0}>;
    case MaskKind::float64:
      return rows_of<uint64_t, ~uint64_t{0} / 2>;
    case MaskKind::count:
      break;
  }
  fail("attention_mask: kind: got ", static_cast<int>(kind), ", expected one of MaskKind");
}

template <class Integer>
Range range_of(const void* values, int64_t count) {
  const auto* ids = static_cast<const Integer*>(values);
  Integer lowest = ids[0], highest = ids[0];
  for (int64_t i = 1; i < count; ++i) {
    lowest = std::min(lowest, ids[i]);
    highest = std::max(highest, ids[i]);
  }
  return {static_cast<int64_t>(lowest), static_cast<int64_t>(highest)};
}

int64_t keep_all(const void*, int64_t, int64_t columns, int64_t first_index, int64_t* indices, int64_t* positions) {
  for (int64_t c = 0; c < columns; ++c) {
    indices[c] = first_index + c;
    positions[c] = c;
  }
  return columns;
}

}  // namespace

Packed pack_mask(const void* mask, MaskKind kind, int64_t rows, int64_t columns, int64_t row_stride, int32_t* cu_seqlens, int64_t* indices,
                 int64_t* positions) {
  BF_CHECK(rows >= 0 && columns >= 0, "attention_mask: ", rows, " rows of ", columns, " columns");
  BF_CHECK(rows == 0 || columns <= most_tokens / rows, "a batch of ", rows, " x ", columns, " tokens; expected at most ", most_tokens);
  const auto keep = mask == nullptr ? keep_all : rows_of_kind(kind).keep;
  Packed packed = {0, 0, rows == 0 ? 0 : columns, true};
  cu_seqlens[0] = 0;
  for (int64_t b = 0; b < rows; ++b) {
    // keep writes at most one entry past the kept ones, which is still within rows * columns.
    const int64_t kept = keep(mask, b * row_stride, columns, b * columns, indices + packed.total, positions + packed.total);
    packed.first_column_kept &= kept > 0 && positions[packed.total] == 0;
    packed.total += kept;
    packed.longest = std::max(packed.longest, kept);
    packed.shortest = std::min(packed.shortest, kept);
    cu_seqlens[b + 1] = static_cast<int32_t>(packed.total);
  }
  return packed;
}

bool mask_is_full(const void* mask, MaskKind kind, int64_t rows, int64_t columns, int64_t row_stride) {
  const auto is_full = rows_of_kind(kind).is_full;
  for (int64_t b = 0; b < rows; ++b)
    if (!is_full(mask, b * row_stride, columns)) return false;
  return true;
}

Range integer_range(const void* values, MaskKind kind, int64_t count) {
  BF_CHECK(count > 0, "integer_range: of ", count, " values, expected 1 or more");
  switch (kind) {
    case MaskKind::boolean:
    case MaskKind::uint8:
      return range_of<uint8_t>(values, count);
    case MaskKind::int8:
      return range_of<int8_t>(values, count);
    case MaskKind::int16:
      return range_of<int16_t>(values, count);
    case MaskKind::int32:
      return range_of<int32_t>(values, count);
    case MaskKind::int64:
      return range_of<int64_t>(values, count);
    case MaskKind::float16:
    case MaskKind::bfloat16:
    case MaskKind::float32:
    case MaskKind::float64:
    case MaskKind::count:
      break;
  }
  fail("integer_range: kind: got ", static_cast<int>(kind), ", expected one of integers");
}

Packed pack_lengths(const int64_t* lengths, int64_t rows, int32_t* cu_seqlens) {
  Packed packed = {0, 0, rows == 0 ? 0 : most_tokens, true};
  cu_seqlens[0] = 0;
  for (int64_t b = 0; b < rows; ++b) {
    BF_CHECK(lengths[b] >= 0, "lengths[", b, "] is ", lengths[b], ", expected 0 or more");
    BF_CHECK(lengths[b] <= most_tokens - packed.total, "the first ", b + 1, " lengths add up to more than ", most_tokens, " tokens");
    packed.total += lengths[b];
    packed.longest = std::max(packed.longest, lengths[b]);
    packed.shortest = std::min(packed.shortest, lengths[b]);
    packed.first_column_kept &= lengths[b] > 0;
    cu_seqlens[b + 1] = static_cast<int32_t>(packed.total);
  }
  return packed;
}

}  // namespace bertfast
