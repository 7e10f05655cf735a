// A product of int8: for all inputs that share a scale a tile of int32 sums in registers, exact, which becomes float sums in L1.
//
// A panel's 64 features pass step by step, at most 8 KB of weights at a time, under all rows of a block, so that weights are read from L2
// or memory once a block. What a row comes to depends on the row alone: integers have no order, and the float sums that of the inputs.
//
// A sum that leaves the integers is multiplied twice, by an input's scale and a weight's, where products of bytes are done as well: with a
// scale for every 64 inputs these two take an eighth of the time.
#pragma once

#include "coarse_activate.inl.h"
#include "int8_quantize.inl.h"
#include "int8_vec.h"
#include "vec.h"

namespace bertfast::cpu::BERTFAST_ISA_NAME {
namespace {

constexpr int64_t int8_steps = int8_group / 4;       // four inputs a step
constexpr int64_t int8_step_bytes = 4 * int8_group;  // of a panel
constexpr int64_t int8_group_weights = int8_steps * int8_step_bytes;
constexpr int64_t int8_block_rows = 48;  // their float sums and the weights of a pass stay in L1

// Registers across a tile of so many rows: as much of the panel as there are sums for, so that it is read from end to end.
constexpr int64_t int8_vectors(int64_t rows) {
  int64_t vectors = int8_group / Vec::width;
  while (vectors * rows > Ints::tile_sums) vectors /= 2;
  return vectors;
}

// While the first tiles of a block compute they fetch the next pass's weights, a cache line a step. Where a tile passes over the panel
// once and there are few tiles, the CPU's own prefetching does better.
constexpr int64_t int8_passes = int8_group / (int8_vectors(Ints::tile_rows) * Vec::width);
constexpr int64_t int8_tiles_to_fetch = int8_passes == 1 ? 4 : 1;

// The inputs of one scale, one group or two, under some rows; pointers are to the first row's.
struct Int8Pass {
  int64_t groups;
  const char* q;
  const char *scales, *starts;  // of the first group
  int64_t row_bytes;
  const uint8_t* panel;        // [16 groups, 64, 4]
  const float* weight_scales;  // [64]
  const float* from;           // what the float sums were, rows from_stride apart: the bias for the first inputs
  int64_t from_stride;
  float* sums;           // [rows, 64]
  const uint8_t* ahead;  // weights to fetch, or null
};

template <class T>
inline T read(const char* p) {
  T value;
  __builtin_memcpy(&value, p, sizeof value);
  return value;
}

template <int64_t rows, int64_t groups>
__attribute__((noinline)) void int8_tile(const Int8Pass& at) {
  constexpr int64_t vectors = int8_vectors(rows), width = Vec::width;
  constexpr int64_t steps = groups * int8_steps;
  for (int64_t column = 0; column < int8_group; column += vectors * width) {
    Ints sum[rows][vectors];
#pragma GCC unroll 8
    for (int64_t m = 0; m < rows; ++m) {
      const char* starts = at.starts + m * at.row_bytes;
      Ints start = Ints::all(read<int32_t>(starts));
      if constexpr (groups == 2) start = start + Ints::all(read<int32_t>(starts + sizeof(int32_t)));
#pragma GCC unroll 8
      for (int64_t c = 0; c < vectors; ++c) sum[m][c] = start;
    }
    const uint8_t* weights = at.panel + 4 * column;
    const char* inputs = at.q;
    const uint8_t* ahead = at.ahead;
    if (ahead != nullptr) ahead += column / (vectors * width) * steps * 64;
    for (int64_t step = 0; step < steps; ++step) {
      if (ahead != nullptr) __builtin_prefetch(ahead + step * 64, 0, 3);
      Ints w[vectors];
#pragma GCC unroll 8
      for (int64_t c = 0; c < vectors; ++c) w[c] = Ints::load(weights + 4 * width * c);
#pragma GCC unroll 8
      for (int64_t m = 0; m < rows; ++m) {
        const Ints a = Ints::all(read<int32_t>(inputs + m * at.row_bytes));
#pragma GCC unroll 8
        for (int64_t c = 0; c < vectors; ++c) add_products(sum[m][c], w[c], a);
      }
      weights += int8_step_bytes;
      inputs += 4;
    }
#pragma GCC unroll 8
    for (int64_t c = 0; c < vectors; ++c) {
      const int64_t n = column + c * width;
      const Vec scale = Vec::load(at.weight_scales + n);
#pragma GCC unroll 8
      for (int64_t m = 0; m < rows; ++m) {
        const Vec both = scale * Vec::all(read<float>(at.scales + m * at.row_bytes));
        multiply_add(to_float(sum[m][c]), both, Vec::load(at.from + m * at.from_stride + n)).store(at.sums + m * int8_group + n);
      }
    }
  }
}

// `count` rows, 1 .. rows.
template <int64_t rows>
inline void int8_some_rows(const Int8Pass& at, int64_t count) {
  if constexpr (rows > 1)
    if (count < rows) return int8_some_rows<rows - 1>(at, count);
  at.groups == 1 ? int8_tile<rows, 1>(at) : int8_tile<rows, int8_input_groups>(at);
}

// Rows [top, top + rows) of one panel, at most int8_block_rows: sums [rows, 64], bias and all.
inline void int8_panel(const Int8Linear& op, int64_t top, int64_t rows, int64_t panel, float* sums) {
  alignas(64) float bias[int8_group] = {};
  const int64_t column = panel * int8_group, left = op.features - column, features = left < int8_group ? left : int8_group;
  if (op.bias != nullptr) __builtin_memcpy(bias, op.bias + column, static_cast<size_t>(features) * sizeof(float));
  if (op.groups == 0)
    for (int64_t m = 0; m < rows; ++m) __builtin_memcpy(sums + m * int8_group, bias, sizeof bias);

  const uint8_t* end = op.panels + (column + features == op.features ? panel + 1 : panel + 2) * op.groups * int8_group_weights;
  const int64_t row_bytes = op.groups * int8_group_bytes, spans = (op.groups + 1) / 2;
  const int64_t tiles = (rows + Ints::tile_rows - 1) / Ints::tile_rows;
  for (int64_t g = 0; g < op.groups; g += int8_input_groups) {
    const int64_t groups = g + int8_input_groups < op.groups ? int8_input_groups : op.groups - g;
    const uint8_t* weights = op.panels + (panel * op.groups + g) * int8_group_weights;
    const uint8_t* next = weights + groups * int8_group_weights;
    const float* from = g == 0 ? bias : sums;
    const int64_t from_stride = g == 0 ? 0 : int8_group, to_fetch = groups * int8_group_weights;
    const bool fetch = tiles >= int8_tiles_to_fetch && next < end;
    for (int64_t tile = 0; tile < tiles; ++tile) {  // of nearly the same height
      const int64_t first = rows * tile / tiles, last = rows * (tile + 1) / tiles;
      const int64_t fetched = tile * int8_passes * groups * int8_steps * 64;
      const char* x = op.x + (top + first) * row_bytes;
      const char* scales = x + op.groups * int8_group + g * 4;
      int8_some_rows<Ints::tile_rows>(
          {groups, x + g * int8_group, scales, scales + op.groups * 4, row_bytes, weights, op.scales + (panel * spans + g / 2) * int8_group,
           from + first * from_stride, from_stride, sums + first * int8_group, fetch && fetched < to_fetch ? next + fetched : nullptr},
          last - first);
    }
  }
}

// Panels [panel0, panel1), one or two: the second is the other half of a span of the product that reads the result.
inline void int8_linear(const Int8Linear& op, int64_t row0, int64_t row1, int64_t panel0, int64_t panel1) {
  alignas(64) float sums[2][int8_block_rows * int8_group];
  const int64_t column = panel0 * int8_group, features = (panel1 * int8_group < op.features ? panel1 * int8_group : op.features) - column;
  const auto width = [=](int64_t half) {
    const int64_t left = features - half * int8_group;
    return left < 0 ? 0 : left < int8_group ? left : int8_group;
  };
  for (int64_t top = row0; top < row1; top += int8_block_rows) {
    const int64_t rows = top + int8_block_rows < row1 ? int8_block_rows : row1 - top;
    for (int64_t half = 0; half < panel1 - panel0; ++half) {
      int8_panel(op, top, rows, panel0 + half, sums[half]);
      for (int64_t m = 0; m < rows; ++m) {
        float* sum = sums[half] + m * int8_group;
        coarse_activate(op.activation, sum, int8_group);
        if (op.out != nullptr) {  // not by memcpy, which GCC makes a rep movs of: that waits for each line in turn
          float* out = op.out + (top + m) * op.out_stride + column + half * int8_group;
          for_each_block(width(half), [=](int64_t n, int64_t lanes) { Vec::load(sum + n).store(out + n, lanes); });
        }
      }
    }
    if (op.quantized != nullptr)
      for (int64_t m = 0; m < rows; ++m)
        quantize_span(op.quantized + (top + m) * op.out_groups * int8_group_bytes, op.out_groups, panel0,
                      {sums[0] + m * int8_group, width(0)}, {sums[1] + m * int8_group, width(1)});
  }
}

}  // namespace
}  // namespace bertfast::cpu::BERTFAST_ISA_NAME
