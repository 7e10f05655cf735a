// The int8 product: for the inputs that share a scale, a tile of exact int32 sums in registers, which is scaled and added to float sums in
// L1.
//
// The weights of a panel of 64 features are read pass by pass, at most 8 KB, under all rows of a row block, so that L2 or memory gives them
// once a row block. A row's bits depend on the row alone: integer sums are exact, and float sums are in the order of the inputs.
//
// Scaling a sum takes two multiplications, by the input's and the weight's scale, on the ports that multiply bytes: with a scale for every
// 64 inputs they take an eighth of the time.
#pragma once

#include "approx_activation.inl.h"
#include "int8_quantize.inl.h"
#include "int8_vec.inl.h"
#include "vec.inl.h"

namespace bertfast::cpu::BERTFAST_ISA_NAME {
namespace {

constexpr int64_t int8_steps = hadamard_block / 4;       // four inputs a step
constexpr int64_t int8_step_bytes = 4 * hadamard_block;  // bytes of a panel
constexpr int64_t int8_block_weights = int8_steps * int8_step_bytes;
constexpr int64_t int8_pass_rows = 48;  // rows of a row block: their float sums and the weights of a pass stay in L1

// Vectors of features in a tile of so many rows: as many as there are registers for sums, so that the panel is read contiguously.
constexpr int64_t int8_vectors(int64_t rows) {
  int64_t vectors = hadamard_block / Vec::width;
  while (vectors * rows > Ints::tile_sums) vectors /= 2;
  return vectors;
}

// The first tiles of a pass prefetch the next pass's weights, a cache line a step. If a tile reads the panel once and tiles are few, the
// hardware prefetcher does better.
constexpr int64_t int8_passes = hadamard_block / (int8_vectors(Ints::tile_rows) * Vec::width);
constexpr int64_t int8_least_tiles_to_prefetch = int8_passes == 1 ? 4 : 1;

// The inputs that share a scale, one Hadamard block or two, of some rows; pointers are to the first row's.
struct Int8Pass {
  int64_t blocks;
  const char* q;
  const char *scales, *compensation;  // of the first block
  int64_t row_bytes;
  const uint8_t* panel;        // [16 blocks, 64, 4]
  const float* weight_scales;  // [64]
  const float* from;           // float sums so far, rows from_stride apart: the bias in the first pass
  int64_t from_stride;
  float* sums;              // [rows, 64]
  const uint8_t* prefetch;  // weights to prefetch, or null
};

template <class T>
inline T read(const char* p) {
  T value;
  __builtin_memcpy(&value, p, sizeof value);
  return value;
}

template <int64_t rows, int64_t blocks>
__attribute__((noinline)) void int8_tile(const Int8Pass& at) {
  constexpr int64_t vectors = int8_vectors(rows), width = Vec::width;
  constexpr int64_t steps = blocks * int8_steps;
  for (int64_t column = 0; column < hadamard_block; column += vectors * width) {
    Ints sum[rows][vectors];
#pragma GCC unroll 8
    for (int64_t m = 0; m < rows; ++m) {
      const char* compensation = at.compensation + m * at.row_bytes;
      Ints start = Ints::all(read<int32_t>(compensation));
      if constexpr (blocks == 2) start = start + Ints::all(read<int32_t>(compensation + sizeof(int32_t)));
#pragma GCC unroll 8
      for (int64_t c = 0; c < vectors; ++c) sum[m][c] = start;
    }
    const uint8_t* weights = at.panel + 4 * column;
    const char* inputs = at.q;
    const uint8_t* prefetch = at.prefetch;
    if (prefetch != nullptr) prefetch += column / (vectors * width) * steps * 64;
    for (int64_t step = 0; step < steps; ++step) {
      if (prefetch != nullptr) __builtin_prefetch(prefetch + step * 64, 0, 3);
      Ints w[vectors];
#pragma GCC unroll 8
      for (int64_t c = 0; c < vectors; ++c) w[c] = Ints::load(weights + 4 * width * c);
#pragma GCC unroll 8
      for (int64_t m = 0; m < rows; ++m) {
        const Ints a = Ints::all(read<int32_t>(inputs + m * at.row_bytes));
#pragma GCC unroll 8
        for (int64_t c = 0; c < vectors; ++c) dot4_add(sum[m][c], w[c], a);
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
        multiply_add(to_float(sum[m][c]), both, Vec::load(at.from + m * at.from_stride + n)).store(at.sums + m * hadamard_block + n);
      }
    }
  }
}

// The tile of `count` rows, 1 to `rows`.
template <int64_t rows>
inline void int8_tile_of_rows(const Int8Pass& at, int64_t count) {
  if constexpr (rows > 1)
    if (count < rows) return int8_tile_of_rows<rows - 1>(at, count);
  at.blocks == 1 ? int8_tile<rows, 1>(at) : int8_tile<rows, int8_blocks_per_scale>(at);
}

// sums[rows, 64] = products plus bias of rows [top, top + rows), at most int8_pass_rows, of one panel.
inline void int8_panel(const Int8LinearArgs& op, int64_t top, int64_t rows, int64_t panel, float* sums) {
  alignas(64) float bias[hadamard_block] = {};
  const int64_t column = panel * hadamard_block, left = op.features - column, features = left < hadamard_block ? left : hadamard_block;
  if (op.bias != nullptr) __builtin_memcpy(bias, op.bias + column, static_cast<size_t>(features) * sizeof(float));
  if (op.blocks == 0)
    for (int64_t m = 0; m < rows; ++m) __builtin_memcpy(sums + m * hadamard_block, bias, sizeof bias);

  const uint8_t* end = op.panels + (column + features == op.features ? panel + 1 : panel + 2) * op.blocks * int8_block_weights;
  const int64_t row_bytes = op.blocks * int8_block_bytes, groups = (op.blocks + 1) / 2;
  const int64_t tiles = (rows + Ints::tile_rows - 1) / Ints::tile_rows;
  for (int64_t g = 0; g < op.blocks; g += int8_blocks_per_scale) {
    const int64_t blocks = g + int8_blocks_per_scale < op.blocks ? int8_blocks_per_scale : op.blocks - g;
    const uint8_t* weights = op.panels + (panel * op.blocks + g) * int8_block_weights;
    const uint8_t* next = weights + blocks * int8_block_weights;
    const float* from = g == 0 ? bias : sums;
    const int64_t from_stride = g == 0 ? 0 : hadamard_block, to_prefetch = blocks * int8_block_weights;
    const bool prefetches = tiles >= int8_least_tiles_to_prefetch && next < end;
    for (int64_t tile = 0; tile < tiles; ++tile) {  // tiles of nearly equal height
      const int64_t first = rows * tile / tiles, last = rows * (tile + 1) / tiles;
      const int64_t prefetched = tile * int8_passes * blocks * int8_steps * 64;
      const char* x = op.x + (top + first) * row_bytes;
      const char* scales = x + op.blocks * hadamard_block + g * 4;
      int8_tile_of_rows<Ints::tile_rows>(
          {blocks, x + g * hadamard_block, scales, scales + op.blocks * 4, row_bytes, weights,
           op.scales + (panel * groups + g / 2) * hadamard_block, from + first * from_stride, from_stride, sums + first * hadamard_block,
           prefetches && prefetched < to_prefetch ? next + prefetched : nullptr},
          last - first);
    }
  }
}

// Panels [panel0, panel1): one, or the two halves of a group of the product that reads the result.
inline void int8_linear(const Int8LinearArgs& op, int64_t row0, int64_t row1, int64_t panel0, int64_t panel1) {
  alignas(64) float sums[2][int8_pass_rows * hadamard_block];
  const int64_t column = panel0 * hadamard_block,
                features = (panel1 * hadamard_block < op.features ? panel1 * hadamard_block : op.features) - column;
  const auto width = [=](int64_t half) {
    const int64_t left = features - half * hadamard_block;
    return left < 0 ? 0 : left < hadamard_block ? left : hadamard_block;
  };
  for (int64_t top = row0; top < row1; top += int8_pass_rows) {
    const int64_t rows = top + int8_pass_rows < row1 ? int8_pass_rows : row1 - top;
    for (int64_t half = 0; half < panel1 - panel0; ++half) {
      int8_panel(op, top, rows, panel0 + half, sums[half]);
      for (int64_t m = 0; m < rows; ++m) {
        float* sum = sums[half] + m * hadamard_block;
        approx_activate(op.activation, sum, hadamard_block);
        if (op.out != nullptr) {  // not memcpy, which GCC makes a rep movs: it waits for each line in turn
          float* out = op.out + (top + m) * op.out_stride + column + half * hadamard_block;
          for_each_block(width(half), [=](int64_t n, int64_t lanes) { Vec::load(sum + n).store(out + n, lanes); });
        }
      }
    }
    if (op.quantized != nullptr)
      for (int64_t m = 0; m < rows; ++m)
        quantize_group(op.quantized + (top + m) * op.out_blocks * int8_block_bytes, op.out_blocks, panel0,
                       {sums[0] + m * hadamard_block, width(0)}, {sums[1] + m * hadamard_block, width(1)});
  }
}

}  // namespace
}  // namespace bertfast::cpu::BERTFAST_ISA_NAME
