// Inputs of an int8 product: 64 at a time turned by a Hadamard matrix, given a scale and rounded.
//
// Bit for bit the definition in bertfast/ops/reference.py (quantize_inputs), on every instruction set: sums and differences are taken
// in its order, and all else is exact or rounds once.
#pragma once

#include "int8_vec.h"
#include "vec.h"

namespace bertfast::cpu::BERTFAST_ISA_NAME {
namespace {

constexpr int64_t group_vectors = int8_group / Vec::width;
constexpr float int8_zero = 0x1p-100f;  // what is smaller counts as 0: it could not be divided by

// Lanes i and i ^ distance become their sum and, in the upper of the two, their difference.
template <int64_t distance>
inline void turn_lanes(Vec (&v)[group_vectors]) {
  if constexpr (distance > 0) {
    float signs[Vec::width];
#pragma GCC unroll 16
    for (int64_t i = 0; i < Vec::width; ++i) signs[i] = (i & distance) != 0 ? -1.0f : 1.0f;
    const Vec sign = Vec::load(signs);
#pragma GCC unroll 16
    for (int64_t i = 0; i < group_vectors; ++i) v[i] = multiply_add(v[i], sign, exchange<distance>(v[i]));
    turn_lanes<distance / 2>(v);
  }
}

template <int64_t distance>
inline void turn_vectors(Vec (&v)[group_vectors]) {
  if constexpr (distance > 0) {
#pragma GCC unroll 16
    for (int64_t i = 0; i < group_vectors; ++i)
      if ((i & distance) == 0) {
        const Vec sum = v[i] + v[i + distance];
        v[i + distance] = v[i] - v[i + distance];
        v[i] = sum;
      }
    turn_vectors<distance / 2>(v);
  }
}

// The first `count` of a group, zeros after them. 8 times what a definition would call turned: a power of two, so it rounds alike.
inline void quantize_group(const float* x, int64_t count, int8_t* q, float* scale, int32_t* start) {
  Vec v[group_vectors];
  if (count == int8_group) {
#pragma GCC unroll 16
    for (int64_t i = 0; i < group_vectors; ++i) v[i] = Vec::load(x + i * Vec::width);
  } else {
#pragma GCC unroll 16
    for (int64_t i = 0; i < group_vectors; ++i) {
      const int64_t left = count - i * Vec::width;
      v[i] = left > 0 ? Vec::load(x + i * Vec::width, left < Vec::width ? left : Vec::width) : Vec::all(0.0f);
    }
  }
  turn_vectors<group_vectors / 2>(v);
  turn_lanes<Vec::width / 2>(v);

  Vec top = magnitude(v[0]), trouble = v[0] * Vec::all(0.0f);  // NaN where a value is not finite
#pragma GCC unroll 16
  for (int64_t i = 1; i < group_vectors; ++i) {
    top = max(top, magnitude(v[i]));
    trouble = multiply_add(v[i], Vec::all(0.0f), trouble);
  }
  float largest = top.largest() * 0.125f, factor = 0.0f;
  const bool finite = !any_nan(trouble);
  if (!finite || largest < int8_zero)
    largest = 0.0f;
  else
    factor = static_cast<float>(int8_levels) / largest * 0.125f;

  Ints total = Ints::all(0);
  if (finite) {
#pragma GCC unroll 16
    for (int64_t i = 0; i < group_vectors; ++i) {
      const Ints whole = to_int(v[i] * Vec::all(factor));
      whole.store_bytes(q + i * Vec::width);
      total = total + whole;
    }
  } else {
    __builtin_memset(q, 0, int8_group);
  }
  *scale = finite ? largest / static_cast<float>(int8_levels) : __builtin_nanf("");
  *start = -128 * total.sum();
}

// The first `count` numbers that a group of 64 quantized weights stands for. Four of them lie side by side, 128 too large, and the next
// four `stride` bytes on. Sums of whole numbers are exact, so a number is rounded once.
inline void turn_back(const uint8_t* q, int64_t stride, float scale, float* out, int64_t count) {
  alignas(64) int8_t bytes[int8_group];
#pragma GCC unroll 16
  for (int64_t i = 0; i < int8_group / 4; ++i) {
    uint32_t four;
    __builtin_memcpy(&four, q + i * stride, sizeof four);
    four ^= 0x80808080u;
    __builtin_memcpy(bytes + 4 * i, &four, sizeof four);
  }
  Vec v[group_vectors];
#pragma GCC unroll 16
  for (int64_t i = 0; i < group_vectors; ++i) v[i] = Vec::load(bytes + i * Vec::width);
  turn_vectors<group_vectors / 2>(v);
  turn_lanes<Vec::width / 2>(v);
#pragma GCC unroll 16
  for (int64_t i = 0; i < group_vectors; ++i) {
    const int64_t left = count - i * Vec::width;
    if (left > 0) (v[i] * Vec::all(0.125f) * Vec::all(scale)).store(out + i * Vec::width, left < Vec::width ? left : Vec::width);
  }
}

// Group `group` of a row: where its int8 lie, its scale and its start.
inline void quantize_into(char* row, int64_t groups, int64_t group, const float* x, int64_t count) {
  float* scales = reinterpret_cast<float*>(row + groups * int8_group);
  int32_t* starts = reinterpret_cast<int32_t*>(scales + groups);
  quantize_group(x, count, reinterpret_cast<int8_t*>(row + group * int8_group), scales + group, starts + group);
}

inline void int8_quantize(const Int8Quantize& op, int64_t first, int64_t last) {
  int64_t row = first / op.groups, group = first % op.groups;
  for (int64_t i = first; i < last; ++i) {
    const int64_t left = op.inputs - group * int8_group;
    quantize_into(op.out + row * op.groups * int8_group_bytes, op.groups, group, op.x + row * op.x_stride + group * int8_group,
                  left < int8_group ? left : int8_group);
    if (++group == op.groups) group = 0, ++row;
  }
}

}  // namespace
}  // namespace bertfast::cpu::BERTFAST_ISA_NAME
