// bertfast._C; each bind_*.cpp registers a part of it.

#include <pybind11/pybind11.h>

#include "built_from.h"  // written by CMake

namespace bertfast {
void bind_ops(pybind11::module_& m);
void bind_int8(pybind11::module_& m);
void bind_batching(pybind11::module_& m);
void bind_kv_cache(pybind11::module_& m);
void bind_runtime(pybind11::module_& m);
void bind_guard(pybind11::module_& m);
void bind_plan(pybind11::module_& m);
}  // namespace bertfast

PYBIND11_MODULE(_C, m) {
  m.doc() = "bertfast's native module: CPU kernels, plans, batching. Functions take addresses and sizes and write results in place.";
  pybind11::dict built_from;  // bertfast/runtime/native.py compares the hashes with the files of a checkout
  for (const auto& [path, hash] : bertfast::built_from) built_from[path] = hash;
  m.attr("BUILT_FROM") = built_from;
  bertfast::bind_ops(m);
  bertfast::bind_int8(m);
  bertfast::bind_batching(m);
  bertfast::bind_kv_cache(m);
  bertfast::bind_runtime(m);
  bertfast::bind_guard(m);
  bertfast::bind_plan(m);
}
