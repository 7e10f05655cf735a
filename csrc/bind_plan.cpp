// Plan: what bertfast/engine/recorder.py writes down and bertfast/engine/cpu_plans.py replays.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <tuple>
#include <vector>

#include "bind_cache.h"
#include "check.h"
#include "plan/bands.h"
#include "plan/plan.h"

namespace py = pybind11;

namespace bertfast {
namespace {

using plan::Plan;
using plan::Ref;
using PyRef = std::tuple<int, int64_t, int64_t>;  // kind, value, column

Ref ref(const PyRef& r) {
  const auto [kind, value, column] = r;
  BF_CHECK(kind >= 0 && kind <= static_cast<int>(Ref::Kind::buffer), "plan: unknown kind of operand ", kind);
  return {static_cast<Ref::Kind>(kind), value, column};
}

void embed(Plan& self, const PyRef& input_ids, const PyRef& words, const PyRef& word_scales, int64_t word_width, int64_t word_rows,
           const PyRef& position_ids, const PyRef& positions, int64_t position_rows, const PyRef& type_ids, const PyRef& types,
           int64_t type_rows, const PyRef& weight, const PyRef& bias, float eps, const PyRef& out, const PyRef& quantized, int64_t rows,
           int64_t hidden) {
  self.add(plan::Embed{ref(input_ids), ref(words), ref(word_scales), ref(position_ids), ref(positions), ref(type_ids), ref(types),
                       ref(weight), ref(bias), ref(out), ref(quantized), word_width, word_rows, position_rows, type_rows, rows, hidden,
                       eps});
}

void add_layer_norm(Plan& self, const PyRef& x, const PyRef& residual, const PyRef& weight, const PyRef& bias, float eps, const PyRef& out,
                    const PyRef& quantized, int64_t rows, int64_t hidden) {
  self.add(plan::AddLayerNorm{ref(x), ref(residual), ref(weight), ref(bias), ref(out), ref(quantized), rows, hidden, eps});
}

cpu::Activation activation_of(int activation) {
  BF_CHECK(activation >= 0 && activation <= static_cast<int>(cpu::Activation::tanh), "plan: unknown activation ", activation);
  return static_cast<cpu::Activation>(activation);
}

void linear(Plan& self, const PyRef& x, int64_t x_stride, const std::vector<std::tuple<PyRef, PyRef, int64_t>>& parts, int activation,
            const PyRef& out, int64_t rows, int64_t inputs) {
  plan::Linear node{ref(x), ref(out), {}, rows, inputs, x_stride, activation_of(activation)};
  for (const auto& [weight, bias, features] : parts) node.parts.push_back({ref(weight), ref(bias), features});
  self.add(std::move(node));
}

void int8_rows(Plan& self, const PyRef& x, int64_t x_stride, const PyRef& out, int64_t rows, int64_t inputs) {
  self.add(plan::Int8Rows{ref(x), ref(out), rows, inputs, x_stride});
}

void int8_linear(Plan& self, const PyRef& x, const std::vector<std::tuple<PyRef, PyRef, PyRef, int64_t>>& parts, int activation,
                 const PyRef& out, const PyRef& quantized, int64_t rows, int64_t inputs) {
  plan::Int8Linear node{ref(x), ref(out), ref(quantized), {}, rows, inputs, activation_of(activation)};
  for (const auto& [panels, scales, bias, features] : parts) node.parts.push_back({ref(panels), ref(scales), ref(bias), features});
  BF_CHECK(node.quantized.kind == Ref::Kind::none || node.parts.size() == 1, "plan: int8_linear quantizes the result of one weight only");
  self.add(std::move(node));
}

void varlen_attention(Plan& self, const PyRef& q, int64_t q_stride, const PyRef& k, int64_t k_stride, const PyRef& v, int64_t v_stride,
                      const PyRef& cu_seqlens_q, const PyRef& cu_seqlens_k, int64_t q_rows, int64_t k_rows, int64_t sequences,
                      int64_t heads, int64_t head_size, float scale, bool causal, bool bfloat16_products, const PyRef& out) {
  self.add(plan::Attend{ref(q), ref(k), ref(v), ref(cu_seqlens_q), ref(cu_seqlens_k), ref(out), q_stride, k_stride, v_stride, q_rows,
                        k_rows, sequences, heads, head_size, scale, causal, bfloat16_products});
}

plan::CacheShape cache_shape(const CacheDims& shape, const CacheSteps& keys, const CacheSteps& values) {
  return {shape[0], shape[1], shape[2], shape[3], cache_strides(keys, values)};
}

void write_cache(Plan& self, const PyRef& k, int64_t k_stride, const PyRef& v, int64_t v_stride, const PyRef& keys,
                 const CacheSteps& key_strides, const PyRef& values, const CacheSteps& value_strides, const CacheDims& shape,
                 const PyRef& cache_rows, const PyRef& cells, int64_t rows) {
  self.add(plan::WriteCache{ref(k), ref(v), ref(keys), ref(values), ref(cache_rows), ref(cells), k_stride, v_stride, rows,
                            cache_shape(shape, key_strides, value_strides)});
}

void cached_attention(Plan& self, const PyRef& q, int64_t q_stride, const PyRef& keys, const CacheSteps& key_strides, const PyRef& values,
                      const CacheSteps& value_strides, const CacheDims& shape, const PyRef& cache_rows, const PyRef& first,
                      const PyRef& last, float scale, int64_t rows, const PyRef& out) {
  self.add(plan::AttendCache{ref(q), ref(keys), ref(values), ref(cache_rows), ref(first), ref(last), ref(out), q_stride, rows, scale,
                             cache_shape(shape, key_strides, value_strides)});
}

}  // namespace

void bind_plan(py::module_& m) {
  using py::arg;
  m.def(
      "cut_into_bands",
      [](const std::vector<int32_t>& cu_seqlens, int threads) {
        BF_CHECK(!cu_seqlens.empty() && threads > 0, "cut_into_bands: ", cu_seqlens.size(), " boundaries, ", threads, " threads");
        return plan::cut_into_bands(cu_seqlens.data(), static_cast<int64_t>(cu_seqlens.size()) - 1, threads);
      },
      arg("cu_seqlens"), arg("threads"),
      "How a replay cuts a batch between sequences: the first of each band, and their number; empty where it does not.");
  py::class_<Plan>(
      m, "Plan",
      "A recorded forward. Operands are (kind, value, column): kind REF_NONE, REF_CONSTANT (an address), REF_SLOT or REF_BUFFER.")
      .def(py::init<bool>(), arg("bfloat16") = false)
      .def("__len__", &Plan::size)
      .def(
          "add_buffer", [](Plan& self, int64_t rows, int64_t place, int64_t columns) { return self.add_buffer({rows, place, columns}); },
          arg("rows"), arg("place"), arg("columns"), "Room for an op's result in the arena of a row count; returns its index.")
      .def("embed_layer_norm", embed, arg("input_ids"), arg("words"), arg("word_scales"), arg("word_width"), arg("word_rows"),
           arg("position_ids"), arg("positions"), arg("position_rows"), arg("type_ids"), arg("types"), arg("type_rows"), arg("weight"),
           arg("bias"), arg("eps"), arg("out"), arg("quantized"), arg("rows"), arg("hidden"))
      .def("add_layer_norm", add_layer_norm, arg("x"), arg("residual"), arg("weight"), arg("bias"), arg("eps"), arg("out"),
           arg("quantized"), arg("rows"), arg("hidden"))
      .def("linear", linear, arg("x"), arg("x_stride"), arg("parts"), arg("activation"), arg("out"), arg("rows"), arg("inputs"))
      .def("int8_rows", int8_rows, arg("x"), arg("x_stride"), arg("out"), arg("rows"), arg("inputs"))
      .def("int8_linear", int8_linear, arg("x"), arg("parts"), arg("activation"), arg("out"), arg("quantized"), arg("rows"), arg("inputs"))
      .def("varlen_attention", varlen_attention, arg("q"), arg("q_stride"), arg("k"), arg("k_stride"), arg("v"), arg("v_stride"),
           arg("cu_seqlens_q"), arg("cu_seqlens_k"), arg("q_rows"), arg("k_rows"), arg("sequences"), arg("heads"), arg("head_size"),
           arg("scale"), arg("causal"), arg("bfloat16_products"), arg("out"))
      .def(
          "pack",
          [](Plan& self, const PyRef& x, const PyRef& indices, const PyRef& out, int64_t from_rows, int64_t rows, int64_t columns) {
            self.add(plan::Pack{ref(x), ref(indices), ref(out), from_rows, rows, columns});
          },
          arg("x"), arg("indices"), arg("out"), arg("from_rows"), arg("rows"), arg("columns"))
      .def(
          "unpack",
          [](Plan& self, const PyRef& x, const PyRef& indices, const PyRef& out, int64_t from_rows, int64_t rows, int64_t columns,
             float fill) { self.add(plan::Unpack{ref(x), ref(indices), ref(out), from_rows, rows, columns, fill}); },
          arg("x"), arg("indices"), arg("out"), arg("from_rows"), arg("rows"), arg("columns"), arg("fill"))
      .def("write_cache", write_cache, arg("k"), arg("k_stride"), arg("v"), arg("v_stride"), arg("keys"), arg("key_strides"), arg("values"),
           arg("value_strides"), arg("shape"), arg("cache_rows"), arg("cells"), arg("rows"))
      .def("cached_attention", cached_attention, arg("q"), arg("q_stride"), arg("keys"), arg("key_strides"), arg("values"),
           arg("value_strides"), arg("shape"), arg("cache_rows"), arg("first"), arg("last"), arg("scale"), arg("rows"), arg("out"))
      .def("run", &Plan::run, py::call_guard<py::gil_scoped_release>(), arg("counts"), arg("slots"),
           "Replays it: the value of each row count, the address of each slot. ValueError for an id outside of its table.");
  m.attr("REF_NONE") = static_cast<int>(Ref::Kind::none);
  m.attr("REF_CONSTANT") = static_cast<int>(Ref::Kind::constant);
  m.attr("REF_SLOT") = static_cast<int>(Ref::Kind::slot);
  m.attr("REF_BUFFER") = static_cast<int>(Ref::Kind::buffer);
}

}  // namespace bertfast
