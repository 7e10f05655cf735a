// Where a tensor lies, asked of the library that made it without knowing that library: DLPack's C exchange API, as much of it as
// is called here. Layout from DLPack 1.3, https://github.com/dmlc/dlpack, include/dlpack/dlpack.h; within a major version it stays.
#pragma once

#include <cstdint>

namespace bertfast {
namespace dlpack {

constexpr uint32_t major_version = 1;
constexpr const char* capsule_name = "dlpack_exchange_api";  // of the attribute __dlpack_c_exchange_api__ of a tensor type

struct Device {
  int32_t type, id;
};

struct DataType {
  uint8_t code, bits;
  uint16_t lanes;
};

struct Tensor {  // DLTensor; what it points to belongs to the tensor it was read from
  void* data;
  Device device;
  int32_t ndim;
  DataType dtype;
  int64_t* shape;
  int64_t* strides;  // in elements
  uint64_t byte_offset;
};

struct ExchangeApi {  // DLPackExchangeAPI; entries that are not called have no types here
  struct {
    uint32_t major, minor;
  } version;
  const void* previous;
  void (*allocate)();
  void (*managed_from_object)();
  void (*managed_to_object)();
  int (*from_object)(void* object, Tensor* out);  // null where there is none; -1 with a Python exception set
  void (*current_stream)();
};

// Whether the rows of a tensor lie one after the other, without gaps.
inline bool row_by_row(const Tensor& t) {
  int64_t next = 1;
  for (int32_t i = t.ndim - 1; i >= 0; --i) {
    if (t.shape[i] == 0) return true;
    if (t.shape[i] != 1 && t.strides[i] != next) return false;
    next *= t.shape[i];
  }
  return true;
}

}  // namespace dlpack
}  // namespace bertfast
