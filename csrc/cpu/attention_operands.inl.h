// What attention multiplies: words of 32 bits, which are a float, or two bfloat16 that are multiplied and added up in one instruction,
// neighbours along what is summed over.
#pragma once

#include "math.inl.h"
#include "vec.h"

namespace bertfast::cpu::BERTFAST_ISA_NAME {
namespace {

// A word is one float.
struct Floats {
  static constexpr int64_t terms = 1;
  Vec v;
  static Floats all(const float* word) { return {Vec::all(*word)}; }
  static Floats load(const float* words) { return {Vec::load(words)}; }
  // A row of the first `numbers`.
  template <class Number>
  static Vec words(const Number* row, int64_t numbers) {
    return Vec::load(row, numbers);
  }
  // What is summed over lies in rows, `count` of them: the first `lanes` columns.
  template <class Number>
  static Vec columns(const Number* rows, int64_t, int64_t, int64_t lanes) {
    return Vec::load(rows, lanes);
  }
  static Vec weight(Vec power) { return exp2_below(power); }
  // As numbers at, at + 1, ... of a row.
  static void put(float* row, int64_t at, Vec x) { x.store(row + at); }
};
inline Vec multiply_add(Floats a, Floats b, Vec c) { return multiply_add(a.v, b.v, c); }

#if defined(__AVX512BF16__)

// A word is two bfloat16.
struct PairWords {
  static constexpr int64_t terms = 2;
  Pairs v;
  static PairWords all(const float* word) {
    int32_t bits;
    __builtin_memcpy(&bits, word, sizeof bits);
    return {{reinterpret_cast<__m512bh>(_mm512_set1_epi32(bits))}};
  }
  static PairWords load(const float* words) { return {{reinterpret_cast<__m512bh>(_mm512_loadu_si512(words))}}; }
  static Vec words(const float* row, int64_t numbers) {
    const Vec low = Vec::load(row, numbers < Vec::width ? numbers : Vec::width);
    const Vec high = numbers > Vec::width ? Vec::load(row + Vec::width, numbers - Vec::width) : Vec::all(0.0f);
    return {_mm512_castsi512_ps(reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high.v, low.v)))};
  }
  static Vec columns(const float* rows, int64_t stride, int64_t count, int64_t lanes) {
    const Vec low = Vec::load(rows, lanes), high = count > 1 ? Vec::load(rows + stride, lanes) : Vec::all(0.0f);
    return pair(reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high.v, low.v)));
  }
  static Vec words(const bfloat16* row, int64_t numbers) {
    return {_mm512_castsi512_ps(reinterpret_cast<__m512i>(Pairs::load(row, numbers).v))};
  }
  static Vec columns(const bfloat16* rows, int64_t stride, int64_t count, int64_t lanes) {
    const __m256i low = half(rows, lanes), high = count > 1 ? half(rows + stride, lanes) : _mm256_setzero_si256();
    return pair(_mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1));
  }
  static __m256i half(const bfloat16* p, int64_t lanes) {
    return lanes == Vec::width ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)) : _mm256_maskz_loadu_epi16(Vec::mask(lanes), p);
  }
  // Each number of the lower half with its like in the upper half.
  static Vec pair(__m512i halves) {
    alignas(64) constexpr uint16_t order[] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                              8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    return {_mm512_castsi512_ps(_mm512_permutexvar_epi16(_mm512_load_si512(order), halves))};
  }
  static Vec weight(Vec power) { return exp2_coarsely(power); }  // before it is rounded to 8 bits
  static void put(float* row, int64_t at, Vec x) { x.store(reinterpret_cast<bfloat16*>(row) + at); }
};
inline Vec multiply_add(PairWords a, PairWords b, Vec c) { return multiply_add(a.v, b.v, c); }
using HalfWords = PairWords;

#else

using HalfWords = Floats;

#endif

template <class Operand>
inline int64_t words_of(int64_t n) {
  return (n + Operand::terms - 1) / Operand::terms;
}

}  // namespace
}  // namespace bertfast::cpu::BERTFAST_ISA_NAME
