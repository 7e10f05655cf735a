// The int8 ops, as bind_ops.cpp those of float: the GIL is released, shapes were checked by bertfast.ops.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdlib>
#include <memory>
#include <new>
#include <tuple>
#include <vector>

#include "bind.h"
#include "check.h"
#include "cpu/dispatch.h"
#include "cpu/int8_ops.h"
#include "cpu/ops.h"
#include "parallel.h"

namespace py = pybind11;

namespace bertfast {
namespace {

struct Free {
  void operator()(char* p) const { std::free(p); }
};

// Room for quantized rows, on a cache line.
std::unique_ptr<char, Free> allocate(int64_t bytes) {
  std::unique_ptr<char, Free> room(static_cast<char*>(std::aligned_alloc(64, static_cast<size_t>(bytes + 64) / 64 * 64)));
  if (room == nullptr) throw std::bad_alloc();
  return room;
}

// parts: panels, scales, bias and features of each.
void int8_linear(Address x, const std::vector<std::tuple<Address, Address, Address, int64_t>>& parts, int activation, Address out,
                 int64_t rows, int64_t inputs) {
  BF_CHECK(activation >= 0 && activation <= static_cast<int>(cpu::Activation::tanh), "int8_linear: unknown activation ", activation);
  const int64_t groups = cpu::int8_groups(inputs);
  const auto quantized = allocate(rows * cpu::int8_row_bytes(inputs));
  int64_t columns = 0;
  for (const auto& part : parts) columns += std::get<3>(part);
  std::vector<cpu::Int8Linear> linears;
  float* to = at<float>(out);
  for (const auto& [panels, scales, bias, features] : parts) {
    linears.push_back({quantized.get(), at<const uint8_t>(panels), at<const float>(scales), at<const float>(bias), to, nullptr, groups,
                       features, columns, 0, static_cast<cpu::Activation>(activation)});
    to += features;
  }
  const cpu::Kernels& kernels = cpu::kernels();
  const cpu::Int8QuantizeOp quantize = {kernels, {at<const float>(x), quantized.get(), inputs, groups, inputs}, rows};
  const cpu::Int8LinearOp linear(kernels, std::move(linears), rows);
  const Step steps[] = {step_of(quantize), step_of(linear)};
  run_steps(steps, 2);
}

void int8_embed_layer_norm(Address input_ids, Address word_table, Address word_scales, int64_t word_width, int64_t word_rows,
                           Address position_ids, Address position_table, int64_t position_rows, Address type_ids, Address type_table,
                           int64_t type_rows, Address weight, Address bias, float eps, Address out, int64_t tokens, int64_t hidden) {
  const cpu::Int8EmbeddingOp op = {
      cpu::kernels(),
      {at<const int64_t>(input_ids), at<const int64_t>(position_ids), at<const int64_t>(type_ids), at<const uint8_t>(word_table),
       at<const float>(word_scales), word_width, at<const float>(position_table), at<const float>(type_table), word_rows, position_rows,
       type_rows, at<const float>(weight), at<const float>(bias), at<float>(out), tokens, hidden, eps}};
  run_op(op);
  op.check();
}

}  // namespace

void bind_int8(py::module_& m) {
  using release = py::call_guard<py::gil_scoped_release>;
  using py::arg;

  m.def(
      "int8_levels", [] { return cpu::kernels().of_int8.levels; },
      "The largest magnitude of a quantized input on the table in use: 127, or 63 where products of int8 are added up in 16 bits.");
  m.def("int8_row_bytes", cpu::int8_row_bytes, arg("inputs"), "What a quantized row of so many inputs takes in memory.");
  m.def("int8_linear", int8_linear, release(), arg("x"), arg("parts"), arg("activation"), arg("out"), arg("rows"), arg("inputs"),
        "out[rows, sum of features] = activation(x[rows, inputs] @ weight.T + bias) for parts of (panels, scales, bias or 0, features).");
  m.def("int8_embed_layer_norm", int8_embed_layer_norm, release(), arg("input_ids"), arg("word_table"), arg("word_scales"),
        arg("word_width"), arg("word_rows"), arg("position_ids"), arg("position_table"), arg("position_rows"), arg("type_ids"),
        arg("type_table"), arg("type_rows"), arg("weight"), arg("bias"), arg("eps"), arg("out"), arg("tokens"), arg("hidden"),
        "embed_layer_norm with int8 words in panels of word_width.");
}

}  // namespace bertfast
