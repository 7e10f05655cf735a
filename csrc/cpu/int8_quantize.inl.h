// Quantizes inputs of an int8 product: rotates each block of 64 by a Hadamard transform, scales and rounds it.
//
// The two blocks of a group share a scale, as in weights, so that a product sums both in int32; not where inputs have 7 bits, for which the
// coarser scale would be too coarse.
//
// Bit for bit the definition in bertfast/ops/reference.py (quantize_inputs) on every instruction set: sums and differences are in its
// order, and all else is exact or rounds once.
#pragma once

#include "int8_vec.inl.h"
#include "vec.inl.h"

namespace bertfast::cpu::BERTFAST_ISA_NAME {
namespace {

constexpr int64_t block_vectors = hadamard_block / Vec::width;
constexpr int64_t int8_blocks_per_scale = int8_qmax == 127 ? 2 : 1;  // that share a scale
constexpr float int8_zero = 0x1p-100f;                               // a smaller largest magnitude counts as 0: 1 over it would overflow

// Butterflies between lanes: lane i becomes the sum with lane i ^ distance, or in the upper of the two the difference.
template <int64_t distance>
inline void hadamard_lanes(Vec (&v)[block_vectors]) {
  if constexpr (distance > 0) {
    float signs[Vec::width];
#pragma GCC unroll 16
    for (int64_t i = 0; i < Vec::width; ++i) signs[i] = (i & distance) != 0 ? -1.0f : 1.0f;
    const Vec sign = Vec::load(signs);
#pragma GCC unroll 16
    for (int64_t i = 0; i < block_vectors; ++i) v[i] = multiply_add(v[i], sign, exchange<distance>(v[i]));
    hadamard_lanes<distance / 2>(v);
  }
}

// Butterflies between vectors.
template <int64_t distance>
inline void hadamard_vectors(Vec (&v)[block_vectors]) {
  if constexpr (distance > 0) {
#pragma GCC unroll 16
    for (int64_t i = 0; i < block_vectors; ++i)
      if ((i & distance) == 0) {
        const Vec sum = v[i] + v[i + distance];
        v[i + distance] = v[i] - v[i + distance];
        v[i] = sum;
      }
    hadamard_vectors<distance / 2>(v);
  }
}

// v = 8 times the rotated block of x[0] .. x[count - 1] and zeros: the normalisation, a power of two, is left out and rounds alike.
inline void rotate_block(const float* x, int64_t count, Vec (&v)[block_vectors]) {
  if (count == hadamard_block) {
#pragma GCC unroll 16
    for (int64_t i = 0; i < block_vectors; ++i) v[i] = Vec::load(x + i * Vec::width);
  } else {
#pragma GCC unroll 16
    for (int64_t i = 0; i < block_vectors; ++i) {
      const int64_t left = count - i * Vec::width;
      v[i] = left > 0 ? Vec::load(x + i * Vec::width, left < Vec::width ? left : Vec::width) : Vec::all(0.0f);
    }
  }
  hadamard_vectors<block_vectors / 2>(v);
  hadamard_lanes<Vec::width / 2>(v);
}

// A block of a row to quantize: `count` floats, 64 or the last of the row.
struct BlockInput {
  const float* x;
  int64_t count;
};

// Neighbouring blocks with one scale, into q, scale and compensation; the second is 64 bytes, a float and an int32 further on.
template <int64_t blocks>
inline void quantize_blocks(const BlockInput (&parts)[blocks], int8_t* q, float* scale, int32_t* compensation) {
  Vec v[blocks][block_vectors], top = Vec::all(0.0f), nan_probe = top;  // NaN where a value is not finite
#pragma GCC unroll 2
  for (int64_t g = 0; g < blocks; ++g) {
    rotate_block(parts[g].x, parts[g].count, v[g]);
#pragma GCC unroll 16
    for (int64_t i = 0; i < block_vectors; ++i) {
      top = max(top, magnitude(v[g][i]));
      nan_probe = multiply_add(v[g][i], Vec::all(0.0f), nan_probe);
    }
  }
  float largest = top.largest() * 0.125f, factor = 0.0f;
  const bool finite = !any_nan(nan_probe);
  if (!finite || largest < int8_zero)
    largest = 0.0f;
  else
    factor = static_cast<float>(int8_qmax) / largest * 0.125f;

#pragma GCC unroll 2
  for (int64_t g = 0; g < blocks; ++g) {
    Ints total = Ints::all(0);
    if (finite) {
#pragma GCC unroll 16
      for (int64_t i = 0; i < block_vectors; ++i) {
        const Ints whole = to_int(v[g][i] * Vec::all(factor));
        whole.store_bytes(q + g * hadamard_block + i * Vec::width);
        total = total + whole;
      }
    } else {
      __builtin_memset(q + g * hadamard_block, 0, hadamard_block);
    }
    scale[g] = finite ? largest / static_cast<float>(int8_qmax) : __builtin_nanf("");
    compensation[g] = -128 * total.sum();
  }
}

// Dequantizes and rotates back the first `count` weights of a block, which are stored plus 128, four contiguous and the next four `stride`
// bytes on. Sums of integers are exact, so a result is rounded once.
inline void dequantize_block(const uint8_t* q, int64_t stride, float scale, float* out, int64_t count) {
  alignas(64) int8_t bytes[hadamard_block];
#pragma GCC unroll 16
  for (int64_t i = 0; i < hadamard_block / 4; ++i) {
    uint32_t four;
    __builtin_memcpy(&four, q + i * stride, sizeof four);
    four ^= 0x80808080u;
    __builtin_memcpy(bytes + 4 * i, &four, sizeof four);
  }
  Vec v[block_vectors];
#pragma GCC unroll 16
  for (int64_t i = 0; i < block_vectors; ++i) v[i] = Vec::load(bytes + i * Vec::width);
  hadamard_vectors<block_vectors / 2>(v);
  hadamard_lanes<Vec::width / 2>(v);
#pragma GCC unroll 16
  for (int64_t i = 0; i < block_vectors; ++i) {
    const int64_t left = count - i * Vec::width;
    if (left > 0) (v[i] * Vec::all(0.125f) * Vec::all(scale)).store(out + i * Vec::width, left < Vec::width ? left : Vec::width);
  }
}

// A group of a row, from its even block on; `second` is empty if the row ends with `first`.
inline void quantize_group(char* row, int64_t blocks, int64_t block, BlockInput first, BlockInput second) {
  int8_t* q = reinterpret_cast<int8_t*>(row) + block * hadamard_block;
  float* scale = reinterpret_cast<float*>(row + blocks * hadamard_block) + block;
  int32_t* compensation = reinterpret_cast<int32_t*>(scale + blocks);
  if (second.count == 0) return quantize_blocks<1>({first}, q, scale, compensation);
  if constexpr (int8_blocks_per_scale == 2) {
    quantize_blocks<2>({first, second}, q, scale, compensation);
  } else {
    quantize_blocks<1>({first}, q, scale, compensation);
    quantize_blocks<1>({second}, q + hadamard_block, scale + 1, compensation + 1);
  }
}

inline void int8_quantize(const Int8QuantizeArgs& op, int64_t first, int64_t last) {
  const int64_t groups = (op.blocks + 1) / 2;
  int64_t row = first / groups, group = first % groups;
  const auto up_to_64 = [](int64_t count) { return count < 0 ? 0 : count < hadamard_block ? count : hadamard_block; };
  for (int64_t i = first; i < last; ++i) {
    const int64_t column = group * 2 * hadamard_block;
    const float* x = op.x + row * op.x_stride + column;
    quantize_group(op.out + row * op.blocks * int8_block_bytes, op.blocks, group * 2, {x, up_to_64(op.inputs - column)},
                   {x + hadamard_block, up_to_64(op.inputs - column - hadamard_block)});
    if (++group == groups) group = 0, ++row;
  }
}

}  // namespace
}  // namespace bertfast::cpu::BERTFAST_ISA_NAME
