// Integer vectors beside Vec: products of bytes summed in int32, and the conversions of quantization.
//
// One operand of a product is unsigned, the only kind that AVX2 and AVX-512 have. Where the instruction adds two products in 16 bits,
// inputs keep 7 bits, so that nothing saturates: 2 * 255 * 63 = 32130.
#pragma once

#include "vec.inl.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace bertfast::cpu::BERTFAST_ISA_NAME {
namespace {

#if defined(__AVX512F__)

struct Ints {  // as many int32 as Vec has floats
  static constexpr int64_t tile_rows = 4, tile_sums = 16;
  __m512i v;
  static Ints all(int32_t a) { return {_mm512_set1_epi32(a)}; }
  static Ints load(const void* p) { return {_mm512_loadu_si512(p)}; }
  int32_t sum() const { return _mm512_reduce_add_epi32(v); }
  void store_bytes(int8_t* p) const { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(v)); }
};
inline Ints operator+(Ints a, Ints b) { return {_mm512_add_epi32(a.v, b.v)}; }
inline Vec to_float(Ints a) { return {_mm512_cvtepi32_ps(a.v)}; }
inline Ints to_int(Vec a) { return {_mm512_cvtps_epi32(a.v)}; }  // to nearest, ties to even
inline bool any_nan(Vec a) { return _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q) != 0; }

// Lane i of the result is lane i ^ distance.
template <int64_t distance>
inline Vec exchange(Vec a) {
  if constexpr (distance == 8) return {_mm512_shuffle_f32x4(a.v, a.v, 0x4e)};
  if constexpr (distance == 4) return {_mm512_shuffle_f32x4(a.v, a.v, 0xb1)};
  if constexpr (distance == 2) return {_mm512_permute_ps(a.v, 0x4e)};
  if constexpr (distance == 1) return {_mm512_permute_ps(a.v, 0xb1)};
}

#if defined(__AVX512VNNI__)
constexpr int int8_qmax = 127;
// sum += the dot product of four unsigned and four signed bytes, in every lane. As asm: with the intrinsic GCC 12 keeps half of a tile's
// sums in memory, at half the speed.
inline void dot4_add(Ints& sum, Ints weights, Ints inputs) { asm("vpdpbusd %2, %1, %0" : "+v"(sum.v) : "v"(weights.v), "v"(inputs.v)); }
#else
constexpr int int8_qmax = 63;
inline void dot4_add(Ints& sum, Ints weights, Ints inputs) {
  const __m512i pairs = _mm512_maddubs_epi16(weights.v, inputs.v);
  sum.v = _mm512_add_epi32(sum.v, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
}
#endif

#elif defined(__AVX2__)

struct Ints {
  static constexpr int64_t tile_rows = 4, tile_sums = 8;
  __m256i v;
  static Ints all(int32_t a) { return {_mm256_set1_epi32(a)}; }
  static Ints load(const void* p) { return {_mm256_loadu_si256(static_cast<const __m256i*>(p))}; }
  int32_t sum() const {
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
  }
  void store_bytes(int8_t* p) const {
    const __m128i halves = _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(halves, halves));
  }
};
inline Ints operator+(Ints a, Ints b) { return {_mm256_add_epi32(a.v, b.v)}; }
inline Vec to_float(Ints a) { return {_mm256_cvtepi32_ps(a.v)}; }
inline Ints to_int(Vec a) { return {_mm256_cvtps_epi32(a.v)}; }
inline bool any_nan(Vec a) { return _mm256_movemask_ps(_mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q)) != 0; }

template <int64_t distance>
inline Vec exchange(Vec a) {
  if constexpr (distance == 4) return {_mm256_permute2f128_ps(a.v, a.v, 1)};
  if constexpr (distance == 2) return {_mm256_permute_ps(a.v, 0x4e)};
  if constexpr (distance == 1) return {_mm256_permute_ps(a.v, 0xb1)};
}

constexpr int int8_qmax = 63;
inline void dot4_add(Ints& sum, Ints weights, Ints inputs) {
  const __m256i pairs = _mm256_maddubs_epi16(weights.v, inputs.v);
  sum.v = _mm256_add_epi32(sum.v, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

#else

struct Ints {
  static constexpr int64_t tile_rows = 2, tile_sums = 4;
  Vec::Ints v;
  static Ints all(int32_t a) { return {Vec::Ints{a, a, a, a}}; }
  static Ints load(const void* p) {
    Vec::Ints v;
    __builtin_memcpy(&v, p, sizeof v);
    return {v};
  }
  int32_t sum() const { return v[0] + v[1] + v[2] + v[3]; }
  void store_bytes(int8_t* p) const {
    for (int64_t i = 0; i < Vec::width; ++i) p[i] = static_cast<int8_t>(v[i]);
  }
};
inline Ints operator+(Ints a, Ints b) { return {a.v + b.v}; }
inline Vec to_float(Ints a) { return {__builtin_convertvector(a.v, Vec::Lanes)}; }
inline Ints to_int(Vec a) { return {__builtin_convertvector(round(a).v, Vec::Ints)}; }  // |a| < 2^22, as round asks
inline bool any_nan(Vec a) { return a.v[0] != a.v[0] || a.v[1] != a.v[1] || a.v[2] != a.v[2] || a.v[3] != a.v[3]; }

template <int64_t distance>
inline Vec exchange(Vec a) {
  if constexpr (distance == 2) return {Vec::Lanes{a.v[2], a.v[3], a.v[0], a.v[1]}};
  if constexpr (distance == 1) return {Vec::Lanes{a.v[1], a.v[0], a.v[3], a.v[2]}};
}

typedef int16_t Shorts __attribute__((vector_size(16)));

// Eight products, exact in 16 bits since 255 * 127 = 32385, summed in pairs.
inline Vec::Ints pairs_of(Shorts a, Shorts b) {
#if defined(__SSE2__)
  return Vec::Ints(_mm_madd_epi16(__m128i(a), __m128i(b)));
#else
  const Vec::Ints products = Vec::Ints(a * b);
  return (Vec::Ints(Vec::Bits(products) << 16) >> 16) + (products >> 16);
#endif
}

constexpr int int8_qmax = 127;
inline void dot4_add(Ints& sum, Ints weights, Ints inputs) {  // the even bytes of every lane, then the odd ones
  const Vec::Bits w = Vec::Bits(weights.v), a = Vec::Bits(inputs.v);
  sum.v += pairs_of(Shorts(w & 0x00ff00ff), Shorts(a << 8) >> 8) + pairs_of(Shorts((w >> 8) & 0x00ff00ff), Shorts(a) >> 8);
}

#endif

}  // namespace
}  // namespace bertfast::cpu::BERTFAST_ISA_NAME
