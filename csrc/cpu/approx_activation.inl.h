// The activation of an int8 product, or of a result that is rounded to bfloat16.
//
// A GELU with a small relative error in its negative tail takes a seventh of the time of the bfloat16 product before it, and a third of an
// int8 product's. Both products have larger errors than that tail, so this one bounds the absolute error: 2.3e-7 for |x| < 3, a rounding of
// x above. On AVX-512 it is a table of polynomials, in less than half the time.
#pragma once

#include "activation.inl.h"
#include "vec.inl.h"

namespace bertfast::cpu::BERTFAST_ISA_NAME {
namespace {

#if defined(__AVX512F__) && defined(__AVX512DQ__)

// x / 2 + |x| (Phi(|x|) - 1/2); the second factor is a minimax polynomial for each of 15 intervals of width 0.3625, error 1.3e-7, and 1/2
// from 5.4375 on. NaN stays NaN.
inline Vec approx_gelu(Vec x) {
  alignas(64) static constexpr float c[5][16] = {
      {1.12856917e-07f, 0.141510844f, 0.265773952f, 0.361591965f, 0.426470667f, 0.465045482f, 0.485184938f, 0.494417638f, 0.498134196f,
       0.499447823f, 0.499855518f, 0.499966621f, 0.499993205f, 0.499998778f, 0.499999791f, 0.5f},
      {0.144610897f, 0.1354177f, 0.111195132f, 0.0800621361f, 0.05054681f, 0.027982017f, 0.0135823917f, 0.00578067591f, 0.00215714588f,
       0.000705785293f, 0.000202465904f, 5.09227539e-05f, 1.12291682e-05f, 2.1709734e-06f, 3.67983773e-07f, 0.0f},
      {4.57175483e-05f, -0.00887629949f, -0.014622476f, -0.0158090554f, -0.0133096082f, -0.00920457952f, -0.00535476534f, -0.00265383231f,
       -0.00112897507f, -0.000414276845f, -0.000131564972f, -3.62466963e-05f, -8.67844938e-06f, -1.80820007e-06f, -3.28200173e-07f, 0.0f},
      {-0.00329667819f, -0.00263969298f, -0.00112828449f, 0.000399765209f, 0.00129481952f, 0.00143736147f, 0.00111189729f, 0.000674633018f,
       0.000335411285f, 0.000139613359f, 4.92571126e-05f, 1.48455192e-05f, 3.84245277e-06f, 8.57338932e-07f, 1.65366728e-07f, 0.0f},
      {0.00015062232f, 0.000361401646f, 0.000373761985f, 0.000225989061f, 4.28767125e-05f, -7.53146305e-05f, -0.000106835869f,
       -8.49480348e-05f, -4.9965096e-05f, -2.34473446e-05f, -9.07128015e-06f, -2.94462939e-06f, -8.10641666e-07f, -1.90606585e-07f,
       -3.84692811e-08f, 0.0f},
  };
  const Vec a = magnitude(x), at = min(a * Vec::all(1.0f / 0.3625f), Vec::all(15.5f));
  const __m512i interval = _mm512_cvttps_epi32(at.v);
  const Vec fraction = {_mm512_reduce_ps(at.v, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC)};
  Vec half = {_mm512_permutexvar_ps(interval, Vec::load(c[4]).v)};
#pragma GCC unroll 4
  for (int i = 3; i >= 0; --i) half = multiply_add(half, fraction, {_mm512_permutexvar_ps(interval, Vec::load(c[i]).v)});
  return multiply_add(a, half, Vec::all(0.5f) * x);
}

#else

inline Vec approx_gelu(Vec x) { return gelu(x); }

#endif

inline void approx_activate(Activation kind, float* row, int64_t n) {
  if (kind == Activation::gelu) return map_row(row, n, approx_gelu);
  activate(kind, row, n);
}

}  // namespace
}  // namespace bertfast::cpu::BERTFAST_ISA_NAME
