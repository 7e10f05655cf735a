// Inputs of an int8 product: 64 at a time turned by a Hadamard matrix, given a scale and rounded.
//
// Two neighbours share a scale, as they do in weights, so that a product adds both up before it leaves the integers; not where inputs
// keep 7 bits, which the coarser scale would leave with too few.
//
// Bit for bit the definition in bertfast/ops/reference.py (quantize_inputs), on every instruction set: sums and differences are taken
// in its order, and all else is exact or rounds once.
#pragma once

#include "int8_vec.h"
#include "vec.h"

namespace bertfast::cpu::BERTFAST_ISA_NAME {
namespace {

constexpr int64_t group_vectors = int8_group / Vec::width;
constexpr int64_t int8_input_groups = int8_levels == 127 ? 2 : 1;  // that share a scale
constexpr float int8_zero = 0x1p-100f;                             // what is smaller counts as 0: it could not be divided by

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

// The first `count` of a group, zeros after them, turned: 8 times what a definition would call so, a power of two, so it rounds alike.
inline void turn_group(const float* x, int64_t count, Vec (&v)[group_vectors]) {
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
}

// Part of a row to quantize: `count` floats, 64 of them or the last of the row.
struct Part {
  const float* x;
  int64_t count;
};

// `groups` neighbours with one scale: the first part goes to q, scale and start, the next one 64 bytes, a float and an int32 further on.
template <int64_t groups>
inline void quantize_groups(const Part (&parts)[groups], int8_t* q, float* scale, int32_t* start) {
  Vec v[groups][group_vectors], top = Vec::all(0.0f), trouble = top;  // NaN where a value is not finite
#pragma GCC unroll 2
  for (int64_t g = 0; g < groups; ++g) {
    turn_group(parts[g].x, parts[g].count, v[g]);
#pragma GCC unroll 16
    for (int64_t i = 0; i < group_vectors; ++i) {
      top = max(top, magnitude(v[g][i]));
      trouble = multiply_add(v[g][i], Vec::all(0.0f), trouble);
    }
  }
  float largest = top.largest() * 0.125f, factor = 0.0f;
  const bool finite = !any_nan(trouble);
  if (!finite || largest < int8_zero)
    largest = 0.0f;
  else
    factor = static_cast<float>(int8_levels) / largest * 0.125f;

#pragma GCC unroll 2
  for (int64_t g = 0; g < groups; ++g) {
    Ints total = Ints::all(0);
    if (finite) {
#pragma GCC unroll 16
      for (int64_t i = 0; i < group_vectors; ++i) {
        const Ints whole = to_int(v[g][i] * Vec::all(factor));
        whole.store_bytes(q + g * int8_group + i * Vec::width);
        total = total + whole;
      }
    } else {
      __builtin_memset(q + g * int8_group, 0, int8_group);
    }
    scale[g] = finite ? largest / static_cast<float>(int8_levels) : __builtin_nanf("");
    start[g] = -128 * total.sum();
  }
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

// Groups of a row from an even one on: what a span's two halves are, or the only one that a row has left, where `second` is empty.
inline void quantize_span(char* row, int64_t groups, int64_t group, Part first, Part second) {
  int8_t* q = reinterpret_cast<int8_t*>(row) + group * int8_group;
  float* scale = reinterpret_cast<float*>(row + groups * int8_group) + group;
  int32_t* start = reinterpret_cast<int32_t*>(scale + groups);
  if (second.count == 0) return quantize_groups<1>({first}, q, scale, start);
  if constexpr (int8_input_groups == 2) {
    quantize_groups<2>({first, second}, q, scale, start);
  } else {
    quantize_groups<1>({first}, q, scale, start);
    quantize_groups<1>({second}, q + int8_group, scale + 1, start + 1);
  }
}

inline void int8_quantize(const Int8Quantize& op, int64_t first, int64_t last) {
  const int64_t spans = (op.groups + 1) / 2;
  int64_t row = first / spans, span = first % spans;
  const auto up_to_64 = [](int64_t count) { return count < 0 ? 0 : count < int8_group ? count : int8_group; };
  for (int64_t i = first; i < last; ++i) {
    const int64_t column = span * 2 * int8_group;
    const float* x = op.x + row * op.x_stride + column;
    quantize_span(op.out + row * op.groups * int8_group_bytes, op.groups, span * 2, {x, up_to_64(op.inputs - column)},
                  {x + int8_group, up_to_64(op.inputs - column - int8_group)});
    if (++span == spans) span = 0, ++row;
  }
}

}  // namespace
}  // namespace bertfast::cpu::BERTFAST_ISA_NAME
