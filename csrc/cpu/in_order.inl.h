// Instructions that the compiler does not reorder among each other.
//
// The sums of pipelined tiles take 24 of 32 registers, and the reduction of one half must be interleaved with the multiply-adds of the
// other. GCC 12 would group the loads and the reductions, run out of registers and keep sums in memory, at half the speed; volatile asm it
// leaves in order. AddressSanitizer does not see into asm: under it operands are loaded as usual.
#pragma once

#include "vec.inl.h"

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

// The four sums are final here; no read of them moves before this point.
BERTFAST_INLINE void complete_in_order(Vec (&sum)[4]) { asm volatile("" : "+v"(sum[0].v), "+v"(sum[1].v), "+v"(sum[2].v), "+v"(sum[3].v)); }

#endif

}  // namespace
}  // namespace bertfast::cpu::BERTFAST_ISA_NAME
