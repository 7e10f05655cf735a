// Packing and batches within a token budget.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <tuple>
#include <utility>

#include "../batching/packer.h"
#include "../batching/token_budget.h"
#include "../check.h"
#include "bind.h"

namespace py = pybind11;

namespace bertfast {

using Summary = std::tuple<int64_t, int64_t, int64_t, bool>;

static Summary summary_of(const Packed& packed) { return {packed.total, packed.longest, packed.shortest, packed.first_column_kept}; }

void bind_batching(py::module_& m) {
  using py::arg;

  m.def(
      "pack_mask",
      [](Address mask, int kind, int64_t rows, int64_t columns, int64_t row_stride, Address cu_seqlens, Address indices,
         Address positions) {
        return summary_of(pack_mask(at<const void>(mask), checked<MaskKind>(kind, "attention_mask: kind"), rows, columns, row_stride,
                                    at<int32_t>(cu_seqlens), at<int64_t>(indices), at<int64_t>(positions)));
      },
      release(), arg("mask"), arg("kind"), arg("rows"), arg("columns"), arg("row_stride"), arg("cu_seqlens"), arg("indices"),
      arg("positions"),
      "Writes cu_seqlens int32[rows + 1], and indices and positions int64[rows * columns], of which the first `total` count. mask 0: all "
      "tokens are real. Returns (total, longest, shortest, first_column_kept).");
  m.def(
      "mask_is_full",
      [](Address mask, int kind, int64_t rows, int64_t columns, int64_t row_stride) {
        return mask_is_full(at<const void>(mask), checked<MaskKind>(kind, "attention_mask: kind"), rows, columns, row_stride);
      },
      arg("mask"), arg("kind"), arg("rows"), arg("columns"), arg("row_stride"), "Whether a mask marks every token as real.");
  m.def(
      "integer_range",
      [](Address values, int kind, int64_t count) {
        const Range range = integer_range(at<const void>(values), checked<MaskKind>(kind, "integer_range: kind"), count);
        return std::pair(range.lowest, range.highest);
      },
      arg("values"), arg("kind"), arg("count"), "The lowest and the highest of contiguous integers.");
  m.def(
      "pack_lengths",
      [](Address lengths, int64_t rows, Address cu_seqlens) {
        return summary_of(pack_lengths(at<const int64_t>(lengths), rows, at<int32_t>(cu_seqlens)));
      },
      release(), arg("lengths"), arg("rows"), arg("cu_seqlens"),
      "Writes cu_seqlens int32[rows + 1] of lengths int64[rows]. Returns (total, longest, shortest, no length is 0).");
  m.def(
      "plan_batches",
      [](Address lengths, int64_t count, int64_t max_tokens, int64_t max_rows, Address order) {
        return plan_batches(at<const int64_t>(lengths), count, max_tokens, max_rows, at<int64_t>(order));
      },
      release(), arg("lengths"), arg("count"), arg("max_tokens"), arg("max_rows"), arg("order"),
      "Writes order int64[count], longest first; returns the cuts: batch i is order[cuts[i] : cuts[i + 1]].");

  m.attr("MASK_BOOL") = static_cast<int>(MaskKind::boolean);
  m.attr("MASK_UINT8") = static_cast<int>(MaskKind::uint8);
  m.attr("MASK_INT8") = static_cast<int>(MaskKind::int8);
  m.attr("MASK_INT16") = static_cast<int>(MaskKind::int16);
  m.attr("MASK_INT32") = static_cast<int>(MaskKind::int32);
  m.attr("MASK_INT64") = static_cast<int>(MaskKind::int64);
  m.attr("MASK_FLOAT16") = static_cast<int>(MaskKind::float16);
  m.attr("MASK_BFLOAT16") = static_cast<int>(MaskKind::bfloat16);
  m.attr("MASK_FLOAT32") = static_cast<int>(MaskKind::float32);
  m.attr("MASK_FLOAT64") = static_cast<int>(MaskKind::float64);
}

}  // namespace bertfast
