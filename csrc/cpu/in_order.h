// Instructions that stay in the order in which they are written, among each other.
//
// Where two tiles are in flight their sums take 24 of 32 registers, and the end of one must lie among the products of the other. GCC 12
// moves loads and ends together, for which registers do not suffice, and keeps sums in memory then, at half the speed. Volatile asm it
// leaves as it lies. AddressSanitizer does not see into asm: where it watches, operands are loaded as usual.
#pragma once

#include "vec.h"

namespace bertfast::cpu::BERTFAST_ISA_NAME {
namespace {

#if defined(__AVX512F__)

#define BERTFAST_INLINE inline __attribute__((always_inline))

template <class Operand, class Number>
BERTFAST_INLINE Operand load_in_order(const Number* p) {
  Operand a;
#if defined(__SANITIZE_ADDRESS__)
  a = Operand::load(p, Operand::width);
#else
  asm volatile("vmovups %1, %0" : "=v"(a.v) : "m"(*reinterpret_cast<const __m512_u*>(p)));
#endif
  return a;
}

BERTFAST_INLINE void multiply_add_in_order(Vec& sum, Vec a, Vec b) {
  asm volatile("vfmadd231ps %2, %1, %0" : "+v"(sum.v) : "v"(a.v), "v"(b.v));
}

#if defined(__AVX512BF16__)
BERTFAST_INLINE void multiply_add_in_order(Vec& sum, Pairs a, Pairs b) {
  asm volatile("vdpbf16ps %2, %1, %0" : "+v"(sum.v) : "v"(a.v), "v"(b.v));
}
#endif

// Four registers are complete here, and not read before.
BERTFAST_INLINE void complete_in_order(Vec (&sum)[4]) { asm volatile("" : "+v"(sum[0].v), "+v"(sum[1].v), "+v"(sum[2].v), "+v"(sum[3].v)); }

#endif

}  // namespace
}  // namespace bertfast::cpu::BERTFAST_ISA_NAME
