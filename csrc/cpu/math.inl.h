// Powers and the sigmoid, correct to a few units in the last place for every float, tails included. The polynomials are minimax fits, each
// with its largest relative error before rounding.
#pragma once

#include "kernels.h"
#include "vec.inl.h"

namespace bertfast::cpu::BERTFAST_ISA_NAME {
namespace {

// c[0] + c[1] x + c[2] x^2 + ...
template <size_t n>
inline Vec polynomial(Vec x, const float (&c)[n]) {
  Vec sum = Vec::all(c[n - 1]);
#pragma GCC unroll 16
  for (size_t i = n - 1; i > 0; --i) sum = multiply_add(sum, x, Vec::all(c[i - 1]));
  return sum;
}

// 0 where the result would be subnormal, infinity above 88.8 (88.4 without AVX-512); NaN stays NaN.
inline Vec exp(Vec x) {
  x = min(Vec::all(89.0f), x);
  const Vec n = round(x * Vec::all(1.44269504f));
  Vec r = multiply_add(n, Vec::all(-0.693359375f), x);  // ln 2 in two parts; n times the first is exact
  r = multiply_add(n, Vec::all(2.12194440e-4f), r);     // |r| <= 0.347
  constexpr float c[] = {0.49999994f, 0.1666652f, 0.0416684f, 0.0083688991f, 0.0013814222f};  // 3e-9
  const Vec tail = multiply_add(polynomial(r, c), r * r, r);
  return where_less(x, Vec::all(-87.33654f), Vec::all(0.0f), times_power_of_two(tail + Vec::all(1.0f), n));
}

// 2^x for x <= 0 up to rounding, for a softmax; NaN stays NaN.
inline Vec exp2_nonpositive(Vec x) {
  x = max(Vec::all(Vec::least_power), x);
  const Vec n = round(x);
  constexpr float c[] = {1.0f, 0.69314718f, 0.24022646f, 0.055503286f, 0.0096184891f, 0.0013399931f, 0.00015345812f};  // 2e-9
  return times_power_of_two(polynomial(x - n, c), n);
}

// The same to 13 bits, for a result that is rounded to bfloat16's 8.
inline Vec approx_exp2(Vec x) {
  x = max(Vec::all(Vec::least_power), x);
  const Vec n = round(x);
  constexpr float c[] = {0.99992806f, 0.69326097f, 0.24261113f, 0.055171669f};  // 7.5e-5
  return times_power_of_two(polynomial(x - n, c), n);
}

inline Vec sigmoid(Vec x) { return Vec::all(1.0f) / (Vec::all(1.0f) + exp(Vec::all(0.0f) - x)); }

}  // namespace
}  // namespace bertfast::cpu::BERTFAST_ISA_NAME
