// Vec: a register of floats, and the operations that the kernels need. Every kernel is written once against this interface.
//
// `lanes` is for ragged row ends: the first `lanes` floats are read or written, the others read as zero. The compiler contracts no multiply
// and add (-ffp-contract=off), so a row has the same bits in every tile shape.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels.h"

#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

namespace bertfast::cpu::BERTFAST_ISA_NAME {
namespace {

// Four floats: the horizontal sums of four vectors.
typedef float Quad __attribute__((vector_size(16)));

inline Quad load_quad(const float* p, int64_t lanes) {
  Quad q = {};
  __builtin_memcpy(&q, p, static_cast<size_t>(lanes) * sizeof(float));
  return q;
}
inline void store_quad(float* p, Quad q, int64_t lanes) { __builtin_memcpy(p, &q, static_cast<size_t>(lanes) * sizeof(float)); }

#if defined(__AVX512F__)

struct Vec {
  static constexpr int64_t width = 16;
  static constexpr int64_t tile_rows = 6;                 // 6 x 4 sums, 4 columns and a row: 29 of 32 registers
  static constexpr int64_t tall_rows = 8, tall_cols = 3;  // 8 x 3 sums, 3 columns and a row: 28 registers
  static constexpr float least_power = -160.0f;           // least n of times_power_of_two; gives 0
  static constexpr bool prefetch_in_tile = true;          // 24 multiply-adds hide 10 loads and a few prefetches
  __m512 v;

  static __mmask16 mask(int64_t lanes) { return static_cast<__mmask16>((1u << lanes) - 1); }
  static Vec all(float a) { return {_mm512_set1_ps(a)}; }
  static Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
  static Vec load(const float* p, int64_t lanes) { return {lanes == width ? _mm512_loadu_ps(p) : _mm512_maskz_loadu_ps(mask(lanes), p)}; }
  void store(float* p) const { _mm512_storeu_ps(p, v); }
  void store(float* p, int64_t lanes) const {
    if (lanes == width)
      _mm512_storeu_ps(p, v);
    else
      _mm512_mask_storeu_ps(p, mask(lanes), v);
  }
  static Vec load(const bfloat16* p, int64_t lanes = width) {
    const __m256i bits =
        lanes == width ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)) : _mm256_maskz_loadu_epi16(mask(lanes), p);
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16))};
  }
#if defined(__AVX512BF16__)
  void store(bfloat16* p, int64_t lanes = width) const {  // to nearest, ties to even; NaN stays NaN; subnormal numbers become 0
    const __m256i kept = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(v));
    if (lanes == width)
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), kept);
    else
      _mm256_mask_storeu_epi16(p, mask(lanes), kept);
  }
#else
  void store(bfloat16* p, int64_t lanes = width) const {  // to nearest, ties to even; NaN stays NaN
    const __m512i bits = _mm512_castps_si512(v), odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __m512i kept = _mm512_mask_mov_epi32(rounded, _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), _mm512_set1_epi32(0x7fc00000));
    _mm256_mask_storeu_epi16(p, mask(lanes), _mm512_cvtepi32_epi16(_mm512_srli_epi32(kept, 16)));
  }
#endif
  static Vec load(const int8_t* p, int64_t lanes = width) {
    const __m128i bytes = lanes == width ? _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)) : _mm_maskz_loadu_epi8(mask(lanes), p);
    return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes))};
  }
  // The first `lanes` of this, the others of rest.
  Vec blend(int64_t lanes, Vec rest) const { return {_mm512_mask_mov_ps(rest.v, mask(lanes), v)}; }
  float sum() const { return _mm512_reduce_add_ps(v); }
  float largest() const { return _mm512_reduce_max_ps(v); }
  __m256 halves() const {
    return _mm256_add_ps(_mm512_castps512_ps256(v), _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(v), 1)));
  }
  static Quad sums(const Vec (&v)[4]) {
    const __m256 ab = _mm256_hadd_ps(v[0].halves(), v[1].halves()), cd = _mm256_hadd_ps(v[2].halves(), v[3].halves());
    const __m256 all = _mm256_hadd_ps(ab, cd);
    return Quad(_mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1)));
  }
  // Swaps lane i of vector j and lane j of vector i.
  static void transpose(Vec (&r)[16]) {
    __m512 a[16], b[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i += 2) {
      a[i] = _mm512_unpacklo_ps(r[i].v, r[i + 1].v);
      a[i + 1] = _mm512_unpackhi_ps(r[i].v, r[i + 1].v);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; i += 4)
#pragma GCC unroll 2
      for (int j = 0; j < 2; ++j) {
        const __m512d low = _mm512_castps_pd(a[i + j]), high = _mm512_castps_pd(a[i + 2 + j]);
        b[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, high));  // columns 2 j and 2 j + 1 of every four
        b[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, high));
      }
#pragma GCC unroll 16
    for (int j = 0; j < 4; ++j) {
      const __m512 even = _mm512_shuffle_f32x4(b[j], b[4 + j], 0x88), odd = _mm512_shuffle_f32x4(b[j], b[4 + j], 0xdd);
      const __m512 even2 = _mm512_shuffle_f32x4(b[8 + j], b[12 + j], 0x88), odd2 = _mm512_shuffle_f32x4(b[8 + j], b[12 + j], 0xdd);
      r[j].v = _mm512_shuffle_f32x4(even, even2, 0x88);
      r[8 + j].v = _mm512_shuffle_f32x4(even, even2, 0xdd);
      r[4 + j].v = _mm512_shuffle_f32x4(odd, odd2, 0x88);
      r[12 + j].v = _mm512_shuffle_f32x4(odd, odd2, 0xdd);
    }
  }
};
inline Vec operator+(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Vec operator-(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Vec operator*(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Vec operator/(Vec a, Vec b) { return {_mm512_div_ps(a.v, b.v)}; }
inline Vec multiply_add(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
// The second operand where either is NaN.
inline Vec max(Vec a, Vec b) { return {_mm512_max_ps(a.v, b.v)}; }
inline Vec min(Vec a, Vec b) { return {_mm512_min_ps(a.v, b.v)}; }
inline Vec where_less(Vec a, Vec b, Vec yes, Vec no) { return {_mm512_mask_mov_ps(no.v, _mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ), yes.v)}; }
inline Vec magnitude(Vec a) { return {_mm512_abs_ps(a.v)}; }
inline Vec round(Vec a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
inline Vec times_power_of_two(Vec a, Vec n) { return {_mm512_scalef_ps(a.v, n.v)}; }

#elif defined(__AVX2__)

struct Vec {
  static constexpr int64_t width = 8;
  static constexpr int64_t tile_rows = 3;  // 3 x 4 sums, 4 columns: all 16 registers
  static constexpr int64_t tall_rows = 4, tall_cols = 3;
  static constexpr float least_power = -127.0f;    // least n of times_power_of_two; gives 0
  static constexpr bool prefetch_in_tile = false;  // 12 multiply-adds barely hide 7 loads
  __m256 v;

  static __m256i mask(int64_t lanes) {
    const __m256i index = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(lanes)), index);
  }
  static Vec all(float a) { return {_mm256_set1_ps(a)}; }
  static Vec load(const float* p) { return {_mm256_loadu_ps(p)}; }
  static Vec load(const float* p, int64_t lanes) { return {lanes == width ? _mm256_loadu_ps(p) : _mm256_maskload_ps(p, mask(lanes))}; }
  void store(float* p) const { _mm256_storeu_ps(p, v); }
  void store(float* p, int64_t lanes) const {
    if (lanes == width)
      _mm256_storeu_ps(p, v);
    else
      _mm256_maskstore_ps(p, mask(lanes), v);
  }
  static Vec load(const bfloat16* p, int64_t lanes = width) {
    __m128i bits = _mm_setzero_si128();
    if (lanes == width)
      bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    else
      __builtin_memcpy(&bits, p, static_cast<size_t>(lanes) * sizeof(bfloat16));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16))};
  }
  void store(bfloat16* p, int64_t lanes = width) const {  // to nearest, ties to even; NaN stays NaN
    const __m256i bits = _mm256_castps_si256(v), odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256 nan = _mm256_cmp_ps(v, v, _CMP_UNORD_Q);
    const __m256i kept =
        _mm256_castps_si256(_mm256_blendv_ps(_mm256_castsi256_ps(rounded), _mm256_castsi256_ps(_mm256_set1_epi32(0x7fc00000)), nan));
    const __m256i halves = _mm256_srli_epi32(kept, 16);
    const __m128i packed = _mm_packus_epi32(_mm256_castsi256_si128(halves), _mm256_extracti128_si256(halves, 1));
    if (lanes == width)
      _mm_storeu_si128(reinterpret_cast<__m128i*>(p), packed);
    else
      __builtin_memcpy(p, &packed, static_cast<size_t>(lanes) * sizeof(bfloat16));
  }
  static Vec load(const int8_t* p, int64_t lanes = width) {
    __m128i bytes = _mm_setzero_si128();
    if (lanes == width)
      bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
    else
      __builtin_memcpy(&bytes, p, static_cast<size_t>(lanes));
    return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes))};
  }
  Vec blend(int64_t lanes, Vec rest) const { return {_mm256_blendv_ps(rest.v, v, _mm256_castsi256_ps(mask(lanes)))}; }
  float sum() const {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
  }
  float largest() const {
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
  }
  static Quad sums(const Vec (&v)[4]) {
    const __m256 all = _mm256_hadd_ps(_mm256_hadd_ps(v[0].v, v[1].v), _mm256_hadd_ps(v[2].v, v[3].v));
    return Quad(_mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1)));
  }
  // Swaps lane i of vector j and lane j of vector i.
  static void transpose(Vec (&r)[8]) {
    __m256 a[8], b[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i += 2) {
      a[i] = _mm256_unpacklo_ps(r[i].v, r[i + 1].v);
      a[i + 1] = _mm256_unpackhi_ps(r[i].v, r[i + 1].v);
    }
#pragma GCC unroll 8
    for (int i = 0; i < 8; i += 4)
#pragma GCC unroll 2
      for (int j = 0; j < 2; ++j) {
        const __m256d low = _mm256_castps_pd(a[i + j]), high = _mm256_castps_pd(a[i + 2 + j]);
        b[i + 2 * j] = _mm256_castpd_ps(_mm256_unpacklo_pd(low, high));  // columns 2 j and 2 j + 1 of every four
        b[i + 2 * j + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(low, high));
      }
#pragma GCC unroll 8
    for (int j = 0; j < 4; ++j) {
      r[j].v = _mm256_permute2f128_ps(b[j], b[4 + j], 0x20);
      r[4 + j].v = _mm256_permute2f128_ps(b[j], b[4 + j], 0x31);
    }
  }
};
inline Vec operator+(Vec a, Vec b) { return {_mm256_add_ps(a.v, b.v)}; }
inline Vec operator-(Vec a, Vec b) { return {_mm256_sub_ps(a.v, b.v)}; }
inline Vec operator*(Vec a, Vec b) { return {_mm256_mul_ps(a.v, b.v)}; }
inline Vec operator/(Vec a, Vec b) { return {_mm256_div_ps(a.v, b.v)}; }
inline Vec multiply_add(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
inline Vec max(Vec a, Vec b) { return {_mm256_max_ps(a.v, b.v)}; }
inline Vec min(Vec a, Vec b) { return {_mm256_min_ps(a.v, b.v)}; }
inline Vec where_less(Vec a, Vec b, Vec yes, Vec no) { return {_mm256_blendv_ps(no.v, yes.v, _mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ))}; }
inline Vec magnitude(Vec a) { return {_mm256_andnot_ps(_mm256_set1_ps(-0.0f), a.v)}; }
inline Vec round(Vec a) { return {_mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
// n is an integer, from -127 (gives 0) to 128 (gives infinity).
inline Vec times_power_of_two(Vec a, Vec n) {
  const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n.v), _mm256_set1_epi32(127));
  return {_mm256_mul_ps(a.v, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)))};
}

#else

// Any other CPU, by the compiler's vector extension: SSE2, NEON or scalars.
struct Vec {
  static constexpr int64_t width = 4;
  static constexpr int64_t tile_rows = 2;
  static constexpr int64_t tall_rows = 2, tall_cols = 4;
  static constexpr float least_power = -127.0f;  // least n of times_power_of_two; gives 0
  static constexpr bool prefetch_in_tile = false;
  typedef float Lanes __attribute__((vector_size(16)));
  typedef int32_t Ints __attribute__((vector_size(16)));
  typedef uint32_t Bits __attribute__((vector_size(16)));
  typedef uint16_t Halves __attribute__((vector_size(8)));
  Lanes v;

  static Vec all(float a) { return {Lanes{a, a, a, a}}; }
  static Vec load(const float* p) {
    Lanes v;
    __builtin_memcpy(&v, p, sizeof v);
    return {v};
  }
  static Vec load(const float* p, int64_t lanes) {
    Lanes v = {};
    __builtin_memcpy(&v, p, static_cast<size_t>(lanes) * sizeof(float));
    return {v};
  }
  void store(float* p) const { __builtin_memcpy(p, &v, sizeof v); }
  void store(float* p, int64_t lanes) const { __builtin_memcpy(p, &v, static_cast<size_t>(lanes) * sizeof(float)); }
  static Vec load(const bfloat16* p, int64_t lanes = width) {
    Halves bits = {};
    __builtin_memcpy(&bits, p, static_cast<size_t>(lanes) * sizeof(bfloat16));
    return {Lanes(__builtin_convertvector(bits, Bits) << 16)};
  }
  void store(bfloat16* p, int64_t lanes = width) const {  // to nearest, ties to even; NaN stays NaN
    const Bits bits = Bits(v), rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16, nan = Bits(v != v);
    const Halves kept = __builtin_convertvector((nan & 0x7fc0) | (~nan & rounded), Halves);
    __builtin_memcpy(p, &kept, static_cast<size_t>(lanes) * sizeof(bfloat16));
  }
  static Vec load(const int8_t* p, int64_t lanes = width) {
    Lanes v = {};
    for (int64_t i = 0; i < lanes; ++i) v[i] = p[i];
    return {v};
  }
  Vec blend(int64_t lanes, Vec rest) const {
    Lanes kept = rest.v;
    for (int64_t i = 0; i < lanes; ++i) kept[i] = v[i];
    return {kept};
  }
  float sum() const { return (v[0] + v[2]) + (v[1] + v[3]); }
  float largest() const {
    const float a = v[0] > v[2] ? v[0] : v[2], b = v[1] > v[3] ? v[1] : v[3];
    return a > b ? a : b;
  }
  static Quad sums(const Vec (&v)[4]) { return Quad{v[0].sum(), v[1].sum(), v[2].sum(), v[3].sum()}; }
  // Swaps lane i of vector j and lane j of vector i.
  static void transpose(Vec (&r)[4]) {
    const Vec was[4] = {r[0], r[1], r[2], r[3]};
    for (int i = 0; i < 4; ++i) r[i].v = Lanes{was[0].v[i], was[1].v[i], was[2].v[i], was[3].v[i]};
  }
};
inline Vec operator+(Vec a, Vec b) { return {a.v + b.v}; }
inline Vec operator-(Vec a, Vec b) { return {a.v - b.v}; }
inline Vec operator*(Vec a, Vec b) { return {a.v * b.v}; }
inline Vec operator/(Vec a, Vec b) { return {a.v / b.v}; }
inline Vec multiply_add(Vec a, Vec b, Vec c) {
#if defined(__ARM_NEON)
  return {vfmaq_f32(c.v, a.v, b.v)};
#else
  return {a.v * b.v + c.v};
#endif
}
inline Vec max(Vec a, Vec b) { return {a.v > b.v ? a.v : b.v}; }
inline Vec min(Vec a, Vec b) { return {a.v < b.v ? a.v : b.v}; }
inline Vec where_less(Vec a, Vec b, Vec yes, Vec no) { return {a.v < b.v ? yes.v : no.v}; }
inline Vec magnitude(Vec a) {
  Vec::Ints bits;
  __builtin_memcpy(&bits, &a.v, sizeof bits);
  bits &= 0x7fffffff;
  __builtin_memcpy(&a.v, &bits, sizeof bits);
  return a;
}
inline Vec round(Vec a) {  // |a| < 2^22: adding 1.5 * 2^23 leaves no bits for a fraction
  const Vec::Lanes shift = {12582912.0f, 12582912.0f, 12582912.0f, 12582912.0f};
  return {(a.v + shift) - shift};
}
inline Vec times_power_of_two(Vec a, Vec n) {
  const Vec::Ints bits = (__builtin_convertvector(n.v, Vec::Ints) + 127) << 23;
  Vec power;
  __builtin_memcpy(&power.v, &bits, sizeof bits);
  return a * power;
}

#endif

#if defined(__AVX512BF16__)

// 32 bfloat16, multiplied and added in pairs.
constexpr bool multiplies_bfloat16 = true;
struct Pairs {
  static constexpr int64_t width = 32;
  __m512bh v;
  static Pairs load(const bfloat16* p, int64_t lanes) {
    const __mmask32 mask = lanes == width ? ~__mmask32{0} : (__mmask32{1} << lanes) - 1;
    return {reinterpret_cast<__m512bh>(_mm512_maskz_loadu_epi16(mask, p))};
  }
};
inline Vec multiply_add(Pairs a, Pairs b, Vec c) { return {_mm512_dpbf16_ps(c.v, a.v, b.v)}; }

#else

constexpr bool multiplies_bfloat16 = false;

#endif

// Prefetches into L2. GCC drops calls of a function that only prefetches, as free of side effects: hence the empty asm.
template <class Number>
inline void prefetch(const Number* p) {
  __builtin_prefetch(p, 0, 2);
  asm volatile("");
}

// Calls body(column, lanes) over [0, n). `lanes` is the constant `step` except at the end, so that masks fold away in the main loop.
template <int64_t step = Vec::width, class Body>
inline void for_each_block(int64_t n, Body body) {
  int64_t i = 0;
  for (; i + step <= n; i += step) body(i, step);
  if (i < n) body(i, n - i);
}

}  // namespace
}  // namespace bertfast::cpu::BERTFAST_ISA_NAME
