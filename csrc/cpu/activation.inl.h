// The activations of BERT, correct to a few units in the last place for every float, tails included. The polynomials are minimax fits, each
// with its largest relative error before rounding.
#pragma once

#include "kernels.h"
#include "math.inl.h"
#include "vec.inl.h"

namespace bertfast::cpu::BERTFAST_ISA_NAME {
namespace {

// x Phi(x), Phi the normal distribution function: Phi(-|x|) = exp(-x^2 / 2) R(|x|) with a smooth R keeps the digits of the negative tail
// that 1 + erf(x / sqrt 2) would cancel.
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
    case Activation::count:
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
