// The part of DLPack's C exchange API that tells a tensor's address and layout without a dependency on torch. Struct layouts as in
// DLPack 1.3, https://github.com/dmlc/dlpack, include/dlpack/dlpack.h; they are stable within a major version.
#pragma once

#include <cstdint>

namespace bertfast {
namespace dlpack {

constexpr uint32_t major_version = 1;
constexpr const char* capsule_name = "dlpack_exchange_api";  // the capsule in __dlpack_c_exchange_api__ of a tensor type

struct Device {
  int32_t type, id;
};

struct DataType {
  uint8_t code, bits;
  uint16_t lanes;
};

struct Tensor {  // DLTensor; data, shape and strides belong to the tensor it was read from
  void* data;
  Device device;
  int32_t ndim;
  DataType dtype;
  int64_t* shape;
  int64_t* strides;  // in elements
  uint64_t byte_offset;
};

struct ExchangeApi {  // DLPackExchangeAPI; entries that are not called have no parameter types
  struct {
    uint32_t major, minor;
  } version;
  const void* previous;
  void (*allocate)();
  void (*managed_from_object)();
  void (*managed_to_object)();
  int (*from_object)(void* object, Tensor* out);  // may be null; returns -1 with a Python exception set
  void (*current_stream)();
};

}  // namespace dlpack
}  // namespace bertfast
