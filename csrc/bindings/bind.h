// What all bindings share.
#pragma once

#include <pybind11/pybind11.h>

#include <memory>
#include <utility>

#include "../address.h"
#include "../check.h"
#include "../cpu/dispatch.h"
#include "../cpu/kernels.h"
#include "../parallel.h"

namespace bertfast {

using release = pybind11::call_guard<pybind11::gil_scoped_release>;

// One Python function for an op's two C++ functions, of float and of bfloat16; its last argument chooses.
template <class... Args>
auto either(void (*of_float)(Args...), void (*of_bfloat16)(Args...)) {
  return [=](Args... args, bool bfloat16) { (bfloat16 ? of_bfloat16 : of_float)(args...); };
}
#define BERTFAST_EITHER(op) either(op<float>, op<cpu::bfloat16>), release()

// For def("__init__", ...), as py::init: that one registers the instance where nothing catches, so that std::bad_alloc there would end the
// process.
template <class T, class... Args>
auto constructor() {
  return [](pybind11::detail::value_and_holder& self, Args... args) {
    auto made = std::make_unique<T>(std::forward<Args>(args)...);
    self.value_ptr() = made.get();
    try {
      self.type->init_instance(self.inst, &made);
    } catch (...) {
      self.value_ptr() = nullptr;
      throw;
    }
  };
}
using is_constructor = pybind11::detail::is_new_style_constructor;

// A C++ enum of a number that Python passed. Kinds must end with `count`.
template <class Kind>
Kind checked(int value, const char* argument) {
  constexpr int count = static_cast<int>(Kind::count);
  BF_CHECK(value >= 0 && value < count, argument, ": got ", value, ", expected 0 to ", count - 1);
  return static_cast<Kind>(value);
}

// Runs an op alone, on all threads.
template <class Op>
void run(typename Op::Args args) {
  run_op(Op(cpu::kernels(), std::move(args), num_threads()));
}
template <class Op>
void run_checking_ids(const typename Op::Args& args) {
  const Op op(cpu::kernels(), args, num_threads());
  run_op(op);
  op.check_ids();
}

}  // namespace bertfast
