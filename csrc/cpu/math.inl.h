// exp and the activations of BERT, correct to a few units in the last place for every float, tails included.
//
// The polynomials are minimax fits of our own, each with its largest relative error before rounding.
#pragma once

#include "kernels.h"
#include "vec.h"

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

// 2^x for x of at most about 0, as a softmax asks for; NaN stays NaN.
inline Vec exp2_below(Vec x) {
  x = max(Vec::all(Vec::least_power), x);
  const Vec n = round(x);
  constexpr float c[] = {1.0f, 0.69314718f, 0.24022646f, 0.055503286f, 0.0096184891f, 0.0013399931f, 0.00015345812f};  // 2e-9
  return times_power_of_two(polynomial(x - n, c), n);
}

// The same to 13 bits, for what is rounded to bfloat16, which keeps 8.
inline Vec exp2_coarsely(Vec x) {
  x = max(Vec::all(Vec::least_power), x);
  const Vec n = round(x);
  constexpr float c[] = {0.99992806f, 0.69326097f, 0.24261113f, 0.055171669f};  // 7.5e-5
  return times_power_of_two(polynomial(x - n, c), n);
}

inline Vec sigmoid(Vec x) { return Vec::all(1.0f) / (Vec::all(1.0f) + exp(Vec::all(0.0f) - x)); }

// x Phi(x), Phi the normal distribution: Phi(-|x|) = exp(-x^2 / 2) R(|x|) with R smooth, so that the negative tail keeps
// all its digits, which 1 + erf(x / sqrt 2) cancels away.
inline Vec gelu(Vec x) {
  const Vec one = Vec::all(1.0f), a = magnitude(x);
  const Vec t = one / multiply_add(Vec::all(0.35f), a, one);
  constexpr float c[] = {0.13962157f, 0.13985908f,  0.11985243f, 0.10543295f,  -0.022937179f,
                         0.15892935f, -0.25550461f, 0.14387226f, -0.029125871f};  // R(a) / t for a up to 13.5: 3e-8
  const Vec below = exp(Vec::all(-0.5f) * a * a) * (t * polynomial(t, c));
  return x * where_less(x, Vec::all(0.0f), below, one - below);
}

inline Vec gelu_tanh(Vec x) {  // 0.5 x (1 + tanh u) = x sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3)
  const Vec inner = x * multiply_add(Vec::all(0.044715f), x * x, Vec::all(1.0f));
  return x * sigmoid(Vec::all(1.59576912f) * inner);
}

inline Vec tanh(Vec x) {
  const Vec a = magnitude(x), one = Vec::all(1.0f), square = x * x;
  constexpr float c[] = {-0.33333331f, 0.1333321f, -0.053947203f, 0.021702969f, -0.0081826774f, 0.00214754f};  // 2e-10
  const Vec small = multiply_add(x * square, polynomial(square, c), x);
  const Vec large = one - Vec::all(2.0f) / (exp(a + a) + one);
  return where_less(a, Vec::all(0.625f), small, where_less(x, Vec::all(0.0f), Vec::all(0.0f) - large, large));
}

template <class Function>
inline void map_row(float* row, int64_t n, Function f) {
  for_each_block(n, [&](int64_t i, int64_t lanes) { f(Vec::load(row + i, lanes)).store(row + i, lanes); });
}

inline void activate(Activation kind, float* row, int64_t n) {
  switch (kind) {
    case Activation::none:
      return;
    case Activation::gelu:
      return map_row(row, n, gelu);
    case Activation::gelu_tanh:
      return map_row(row, n, gelu_tanh);
    case Activation::relu:
      return map_row(row, n, [](Vec x) { return max(Vec::all(0.0f), x); });
    case Activation::silu:
      return map_row(row, n, [](Vec x) { return x * sigmoid(x); });
    case Activation::tanh:
      return map_row(row, n, tanh);
  }
}

}  // namespace
}  // namespace bertfast::cpu::BERTFAST_ISA_NAME
