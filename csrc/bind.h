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

}  // namespace bertfast
