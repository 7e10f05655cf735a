// Memory that begins at a multiple of so many bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

namespace bertfast {

template <class T, size_t alignment>
struct FreeAligned {
  void operator()(T* memory) const { ::operator delete(memory, std::align_val_t{alignment}); }
};

// For numbers: nothing is constructed or destroyed.
template <class T, size_t alignment>
using AlignedMemory = std::unique_ptr<T, FreeAligned<T, alignment>>;

// Uninitialised. Throws std::bad_alloc.
template <class T, size_t alignment>
AlignedMemory<T, alignment> allocate_aligned(int64_t count) {
  return AlignedMemory<T, alignment>(static_cast<T*>(::operator new(static_cast<size_t>(count) * sizeof(T), std::align_val_t{alignment})));
}

}  // namespace bertfast
