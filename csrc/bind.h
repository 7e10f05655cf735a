// What all bindings share.
#pragma once

#include <cstdint>

namespace bertfast {

// An address, as torch's data_ptr() gives it; 0 where an argument may be absent. Passing one costs 0.4 us, an array 2.
using Address = std::uintptr_t;

template <class T>
T* at(Address a) {
  return reinterpret_cast<T*>(a);
}

// One Python function for an op's two C++ ones, of float and of bfloat16: its last argument tells which.
template <class... Args>
auto either(void (*of_float)(Args...), void (*of_bfloat16)(Args...)) {
  return [=](Args... args, bool bfloat16) { (bfloat16 ? of_bfloat16 : of_float)(args...); };
}
#define BERTFAST_EITHER(op) either(op<float>, op<cpu::bfloat16>), release()

}  // namespace bertfast
