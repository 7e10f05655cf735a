// The int8 ops, as bind_ops.cpp binds those of float.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <tuple>
#include <utility>
#include <vector>

#include "../aligned_memory.h"
#include "../cpu/ops.h"
#include "bind.h"

namespace py = pybind11;

namespace bertfast {
namespace {

constexpr int64_t most_inputs = int64_t{1} << 40;

// parts: panels, scales, bias and features of each.
void int8_linear(Address x, const std::vector<std::tuple<Address, Address, Address, int64_t>>& parts, int activation, Address out,
                 int64_t rows, int64_t inputs) {
  const auto kind = checked<cpu::Activation>(activation, "int8_linear: activation");
  const int64_t blocks = cpu::hadamard_blocks(inputs);
  const auto quantized = allocate_aligned<char, 64>(rows * cpu::int8_row_bytes(inputs));
  int64_t columns = 0;
  for (const auto& part : parts) columns += std::get<3>(part);
  cpu::Int8LinearOp::Args args;
  float* to = at<float>(out);
  for (const auto& [panels, scales, bias, features] : parts) {
    args.push_back({quantized.get(), at<const uint8_t>(panels), at<const float>(scales), at<const float>(bias), to, nullptr, blocks,
                    features, columns, 0, kind, rows});
    to += features;
  }
  const cpu::Kernels& kernels = cpu::kernels();
  const int threads = num_threads();
  const cpu::Int8QuantizeOp quantize(kernels, {at<const float>(x), quantized.get(), inputs, blocks, inputs, rows}, threads);
  const cpu::Int8LinearOp linear(kernels, std::move(args), threads);
  const Step steps[] = {step_of(quantize), step_of(linear)};
  run_steps(steps, 2);
}

void int8_embed_layer_norm(Address input_ids, Address word_table, Address word_scales, int64_t word_width, int64_t word_rows,
                           Address position_ids, Address position_table, int64_t position_rows, Address type_ids, Address type_table,
                           int64_t type_rows, Address weight, Address bias, float eps, Address out, int64_t tokens, int64_t hidden) {
  run_checking_ids<cpu::EmbedLayerNormOp<float, uint8_t>>(
      {at<const int64_t>(input_ids), at<const int64_t>(position_ids), at<const int64_t>(type_ids), at<const uint8_t>(word_table),
       at<const float>(word_scales), word_width, at<const float>(position_table), at<const float>(type_table), word_rows, position_rows,
       type_rows, at<const float>(weight), at<const float>(bias), at<float>(out), tokens, hidden, eps, nullptr});
}

}  // namespace

void bind_int8(py::module_& m) {
  using py::arg;

  m.def(
      "int8_levels", [] { return cpu::kernels().of_int8.qmax; },
      "Largest magnitude of a quantized input on the instruction set in use: 127, or 63 where it adds products of int8 in 16 bits.");
  m.def(
      "int8_row_bytes",
      [](int64_t inputs) {
        BF_CHECK(inputs >= 0 && inputs <= most_inputs, "int8_row_bytes: inputs: got ", inputs, ", expected 0 to ", most_inputs);
        return cpu::int8_row_bytes(inputs);
      },
      arg("inputs"), "Bytes of a quantized row of so many inputs.");
  m.def("int8_linear", int8_linear, release(), arg("x"), arg("parts"), arg("activation"), arg("out"), arg("rows"), arg("inputs"),
        "out[rows, sum of features] = activation(x[rows, inputs] @ weight.T + bias) for parts of (panels, scales, bias or 0, features).");
  m.def("int8_embed_layer_norm", int8_embed_layer_norm, release(), arg("input_ids"), arg("word_table"), arg("word_scales"),
        arg("word_width"), arg("word_rows"), arg("position_ids"), arg("position_table"), arg("position_rows"), arg("type_ids"),
        arg("type_table"), arg("type_rows"), arg("weight"), arg("bias"), arg("eps"), arg("out"), arg("tokens"), arg("hidden"),
        "embed_layer_norm with an int8 table of words in panels of word_width words.");
}

}  // namespace bertfast
