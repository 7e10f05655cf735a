// Operands of attention's products: vectors of 32-bit lanes that hold one float, or two bfloat16, neighbours along the summed dimension,
// which one instruction multiplies and adds.
#pragma once

#include "math.inl.h"
#include "vec.inl.h"

namespace bertfast::cpu::BERTFAST_ISA_NAME {
namespace {

// One float a lane.
struct FloatLanes {
  static constexpr int64_t terms = 1;
  Vec v;
  static FloatLanes broadcast(const float* lane) { return {Vec::all(*lane)}; }
  static FloatLanes load(const float* lanes) { return {Vec::load(lanes)}; }
  // The first `numbers` of a row, neighbours along the row in one lane.
  template <class Number>
  static Vec pack_row(const Number* row, int64_t numbers) {
    return Vec::load(row, numbers);
  }
  // The first `lanes` columns of `count` rows, neighbours along the column in one lane.
  template <class Number>
  static Vec pack_columns(const Number* rows, int64_t, int64_t, int64_t lanes) {
    return Vec::load(rows, lanes);
  }
  static Vec exp2(Vec power) { return exp2_nonpositive(power); }
  // From number `at` of a row on.
  static void store_weights(float* row, int64_t at, Vec x) { x.store(row + at); }
};
inline Vec multiply_add(FloatLanes a, FloatLanes b, Vec c) { return multiply_add(a.v, b.v, c); }

#if defined(__AVX512BF16__)

// Two bfloat16 a lane.
struct PairLanes {
  static constexpr int64_t terms = 2;
  Pairs v;
  static PairLanes broadcast(const float* lane) {
    int32_t bits;
    __builtin_memcpy(&bits, lane, sizeof bits);
    return {{reinterpret_cast<__m512bh>(_mm512_set1_epi32(bits))}};
  }
  static PairLanes load(const float* lanes) { return {{reinterpret_cast<__m512bh>(_mm512_loadu_si512(lanes))}}; }
  static Vec pack_row(const float* row, int64_t numbers) {
    const Vec low = Vec::load(row, numbers < Vec::width ? numbers : Vec::width);
    const Vec high = numbers > Vec::width ? Vec::load(row + Vec::width, numbers - Vec::width) : Vec::all(0.0f);
    return {_mm512_castsi512_ps(reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high.v, low.v)))};
  }
  static Vec pack_columns(const float* rows, int64_t stride, int64_t count, int64_t lanes) {
    const Vec low = Vec::load(rows, lanes), high = count > 1 ? Vec::load(rows + stride, lanes) : Vec::all(0.0f);
    return pair(reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high.v, low.v)));
  }
  static Vec pack_row(const bfloat16* row, int64_t numbers) {
    return {_mm512_castsi512_ps(reinterpret_cast<__m512i>(Pairs::load(row, numbers).v))};
  }
  static Vec pack_columns(const bfloat16* rows, int64_t stride, int64_t count, int64_t lanes) {
    const __m256i low = half(rows, lanes), high = count > 1 ? half(rows + stride, lanes) : _mm256_setzero_si256();
    return pair(_mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1));
  }
  static __m256i half(const bfloat16* p, int64_t lanes) {
    return lanes == Vec::width ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)) : _mm256_maskz_loadu_epi16(Vec::mask(lanes), p);
  }
  // Interleaves the lower and the upper half.
  static Vec pair(__m512i halves) {
    alignas(64) constexpr uint16_t order[] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                              8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    return {_mm512_castsi512_ps(_mm512_permutexvar_epi16(_mm512_load_si512(order), halves))};
  }
  static Vec exp2(Vec power) { return approx_exp2(power); }  // bfloat16 keeps 8 of its 13 bits
  static void store_weights(float* row, int64_t at, Vec x) { x.store(reinterpret_cast<bfloat16*>(row) + at); }
};
inline Vec multiply_add(PairLanes a, PairLanes b, Vec c) { return multiply_add(a.v, b.v, c); }
using Bfloat16Lanes = PairLanes;

#else

using Bfloat16Lanes = FloatLanes;

#endif

// Lanes that n numbers take.
template <class Operand>
inline int64_t lanes_of(int64_t n) {
  return (n + Operand::terms - 1) / Operand::terms;
}

}  // namespace
}  // namespace bertfast::cpu::BERTFAST_ISA_NAME
