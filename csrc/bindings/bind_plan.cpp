// Plan: bertfast/engine/recorder.py records it, bertfast/engine/cpu_plans.py replays it.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "../plan/plan.h"
#include "bind.h"
#include "bind_cache.h"

namespace py = pybind11;

namespace bertfast {
namespace {

using plan::CountOf;
using plan::Plan;
using plan::PlanOf;
using plan::Recorded;
using plan::Ref;
using PyRef = std::tuple<int, int64_t, int64_t>;  // kind, value, column

constexpr const char* no_int8 = "plan: an int8 op came, but the plan is of bfloat16; expected a plan of float32";

Ref ref(const PyRef& r) {
  const auto [kind, value, column] = r;
  return {checked<Ref::Kind>(kind, "plan: kind of an operand"), value, column};
}

bool is_none(const PyRef& r) { return ref(r).kind == Ref::Kind::none; }

template <class Number, class Args>
void record_quantized(Recorded<Args>& op, const PyRef& quantized, int64_t columns) {
  BF_CHECK((std::is_same_v<Number, float>) || is_none(quantized), no_int8);
  op.rows(&Args::quantized, ref(quantized), cpu::int8_row_bytes(columns));
}

template <class Number>
void embed_layer_norm(PlanOf<Number>& self, const PyRef& input_ids, const PyRef& words, const PyRef& word_scales, int64_t word_width,
                      int64_t word_rows, const PyRef& position_ids, const PyRef& positions, int64_t position_rows, const PyRef& type_ids,
                      const PyRef& types, int64_t type_rows, const PyRef& weight, const PyRef& bias, float eps, const PyRef& out,
                      const PyRef& quantized, int64_t rows, int64_t hidden) {
  const auto record = [&](auto word) {
    using Op = cpu::EmbedLayerNormOp<Number, decltype(word)>;
    using Args = typename Op::Args;
    Recorded<Args> op;
    op.args.word_width = word_width;
    op.args.position_rows = position_rows;
    op.args.type_rows = type_rows;
    op.args.hidden = hidden;
    op.args.eps = eps;
    op.rows(&Args::input_ids, ref(input_ids), 1);
    op.rows(&Args::position_ids, ref(position_ids), 1);
    op.rows(&Args::type_ids, ref(type_ids), 1);
    op.whole(&Args::word_table, ref(words));
    op.whole(&Args::word_scales, ref(word_scales));
    op.whole(&Args::position_table, ref(positions));
    op.whole(&Args::type_table, ref(types));
    op.whole(&Args::weight, ref(weight));
    op.whole(&Args::bias, ref(bias));
    op.rows(&Args::out, ref(out), hidden);
    op.count(&Args::tokens, rows, CountOf::rows);
    if (ref(words).kind == Ref::Kind::slot)  // a table that came with the call: word_rows is a row count
      op.count(&Args::word_rows, word_rows, CountOf::other);
    else
      op.args.word_rows = word_rows;
    record_quantized<Number>(op, quantized, hidden);
    self.template add<Op>(std::move(op));
  };
  if (is_none(word_scales))
    record(Number{});
  else if constexpr (std::is_same_v<Number, float>)
    record(uint8_t{});
  else
    fail(no_int8);
}

template <class Number>
void add_layer_norm(PlanOf<Number>& self, const PyRef& x, const PyRef& residual, const PyRef& weight, const PyRef& bias, float eps,
                    const PyRef& out, const PyRef& quantized, int64_t rows, int64_t hidden) {
  using Op = cpu::AddLayerNormOp<Number>;
  using Args = typename Op::Args;
  Recorded<Args> op;
  op.args.hidden = hidden;
  op.args.eps = eps;
  op.rows(&Args::x, ref(x), hidden);
  op.rows(&Args::residual, ref(residual), hidden);
  op.whole(&Args::weight, ref(weight));
  op.whole(&Args::bias, ref(bias));
  op.rows(&Args::out, ref(out), hidden);
  op.count(&Args::rows, rows, CountOf::rows);
  record_quantized<Number>(op, quantized, hidden);
  self.template add<Op>(std::move(op));
}

template <class Number>
void linear(PlanOf<Number>& self, const PyRef& x, int64_t x_stride, const std::vector<std::tuple<PyRef, PyRef, int64_t>>& parts,
            int activation, const PyRef& out, int64_t rows, int64_t inputs) {
  using Op = cpu::LinearOp<Number>;
  using Args = cpu::LinearArgs<Number>;
  Recorded<typename Op::Args> op;
  int64_t columns = 0, column = 0;
  for (const auto& part : parts) columns += std::get<2>(part);
  for (const auto& [weight, bias, features] : parts) {
    Recorded<Args>& part = op.parts.emplace_back();
    part.args.inputs = inputs;
    part.args.features = features;
    part.args.x_stride = x_stride;
    part.args.out_stride = columns;
    part.args.activation = checked<cpu::Activation>(activation, "plan: linear: activation");
    part.rows(&Args::x, ref(x), x_stride);
    part.whole(&Args::weight, ref(weight));
    part.whole(&Args::bias, ref(bias));
    part.rows(&Args::out, ref(out).at_column(column), columns);
    part.count(&Args::rows, rows, CountOf::rows);
    column += features;
  }
  self.template add<Op>(std::move(op));
}

void int8_quantize(PlanOf<float>& self, const PyRef& x, int64_t x_stride, const PyRef& out, int64_t rows, int64_t inputs) {
  using Args = cpu::Int8QuantizeArgs;
  Recorded<Args> op;
  op.args.inputs = inputs;
  op.args.blocks = cpu::hadamard_blocks(inputs);
  op.args.x_stride = x_stride;
  op.rows(&Args::x, ref(x), x_stride);
  op.rows(&Args::out, ref(out), cpu::int8_row_bytes(inputs));
  op.count(&Args::rows, rows, CountOf::rows);
  self.add<cpu::Int8QuantizeOp>(std::move(op));
}

void int8_linear(PlanOf<float>& self, const PyRef& x, const std::vector<std::tuple<PyRef, PyRef, PyRef, int64_t>>& parts, int activation,
                 const PyRef& out, const PyRef& quantized, int64_t rows, int64_t inputs) {
  BF_CHECK(is_none(quantized) || parts.size() == 1, "plan: int8_linear quantizes the result of one weight, got ", parts.size());
  using Args = cpu::Int8LinearArgs;
  Recorded<cpu::Int8LinearOp::Args> op;
  int64_t columns = 0, column = 0;
  for (const auto& part : parts) columns += std::get<3>(part);
  for (const auto& [panels, scales, bias, features] : parts) {
    Recorded<Args>& part = op.parts.emplace_back();
    part.args.blocks = cpu::hadamard_blocks(inputs);
    part.args.features = features;
    part.args.out_stride = columns;
    part.args.out_blocks = cpu::hadamard_blocks(columns);
    part.args.activation = checked<cpu::Activation>(activation, "plan: int8_linear: activation");
    part.rows(&Args::x, ref(x), cpu::int8_row_bytes(inputs));
    part.whole(&Args::panels, ref(panels));
    part.whole(&Args::scales, ref(scales));
    part.whole(&Args::bias, ref(bias));
    part.rows(&Args::out, ref(out).at_column(column), columns);
    part.rows(&Args::quantized, ref(quantized), cpu::int8_row_bytes(columns));
    part.count(&Args::rows, rows, CountOf::rows);
    column += features;
  }
  self.add<cpu::Int8LinearOp>(std::move(op));
}

template <class Number>
void varlen_attention(PlanOf<Number>& self, const PyRef& q, int64_t q_stride, const PyRef& k, int64_t k_stride, const PyRef& v,
                      int64_t v_stride, const PyRef& cu_seqlens_q, const PyRef& cu_seqlens_k, int64_t q_rows, int64_t k_rows,
                      int64_t sequences, int64_t heads, int64_t head_size, float scale, bool causal, bool bfloat16_products,
                      const PyRef& out) {
  using Op = cpu::VarlenAttentionOp<Number>;
  using Args = typename Op::Args;
  Recorded<Args> op;
  op.args.q_stride = q_stride;
  op.args.k_stride = k_stride;
  op.args.v_stride = v_stride;
  op.args.heads = heads;
  op.args.head_size = head_size;
  op.args.scale = scale;
  op.args.causal = causal;
  op.args.bfloat16_products = bfloat16_products;
  op.rows(&Args::q, ref(q), q_stride);
  op.rows(&Args::k, ref(k), k_stride);
  op.rows(&Args::v, ref(v), v_stride);
  op.rows(&Args::out, ref(out), heads * head_size);
  op.boundaries(&Args::cu_seqlens_q, ref(cu_seqlens_q));
  op.boundaries(&Args::cu_seqlens_k, ref(cu_seqlens_k));
  op.count(&Args::queries, q_rows, CountOf::rows);
  op.count(&Args::keys, k_rows, CountOf::rows);
  op.count(&Args::sequences, sequences, CountOf::sequences);
  self.template add<Op>(std::move(op));
}

template <class Number>
void pack(PlanOf<Number>& self, const PyRef& x, const PyRef& indices, const PyRef& out, int64_t from_rows, int64_t rows, int64_t columns) {
  using Args = cpu::PackArgs;
  Recorded<Args> op;
  op.args.row_bytes = columns * static_cast<int64_t>(sizeof(Number));
  op.whole(&Args::x, ref(x));
  op.whole(&Args::indices, ref(indices));
  op.whole(&Args::out, ref(out));
  op.count(&Args::rows, from_rows, CountOf::other);
  op.count(&Args::tokens, rows, CountOf::other);
  self.template add<cpu::PackOp>(std::move(op));
}

template <class Number>
void unpack(PlanOf<Number>& self, const PyRef& x, const PyRef& indices, const PyRef& out, int64_t from_rows, int64_t rows, int64_t columns,
            float fill) {
  using Op = cpu::UnpackOp<Number>;
  using Args = typename Op::Args;
  Recorded<Args> op;
  op.args.columns = columns;
  op.args.fill = fill;
  op.whole(&Args::x, ref(x));
  op.whole(&Args::indices, ref(indices));
  op.whole(&Args::out, ref(out));
  op.count(&Args::tokens, from_rows, CountOf::other);
  op.count(&Args::rows, rows, CountOf::other);
  self.template add<Op>(std::move(op));
}

template <class Args>
void record_cache(Recorded<Args>& op, const PyRef& keys, const CacheSideStrides& key_strides, const PyRef& values,
                  const CacheSideStrides& value_strides, const CacheShape& shape) {
  op.args.strides = cache_strides(key_strides, value_strides);
  op.args.cache_rows = shape[0];
  op.args.heads = shape[1];
  op.args.cache_positions = shape[2];
  op.args.head_size = shape[3];
  op.whole(&Args::keys, ref(keys));
  op.whole(&Args::values, ref(values));
}

template <class Number>
void write_cache(PlanOf<Number>& self, const PyRef& k, int64_t k_stride, const PyRef& v, int64_t v_stride, const PyRef& keys,
                 const CacheSideStrides& key_strides, const PyRef& values, const CacheSideStrides& value_strides, const CacheShape& shape,
                 const PyRef& cache_rows, const PyRef& positions, int64_t rows) {
  using Op = cpu::WriteCacheOp<Number>;
  using Args = typename Op::Args;
  Recorded<Args> op;
  record_cache(op, keys, key_strides, values, value_strides, shape);
  op.args.k_stride = k_stride;
  op.args.v_stride = v_stride;
  op.whole(&Args::k, ref(k));
  op.whole(&Args::v, ref(v));
  op.whole(&Args::rows, ref(cache_rows));
  op.whole(&Args::positions, ref(positions));
  op.count(&Args::tokens, rows, CountOf::other);
  self.template add<Op>(std::move(op));
}

template <class Number>
void cached_attention(PlanOf<Number>& self, const PyRef& q, int64_t q_stride, const PyRef& keys, const CacheSideStrides& key_strides,
                      const PyRef& values, const CacheSideStrides& value_strides, const CacheShape& shape, const PyRef& cache_rows,
                      const PyRef& first, const PyRef& last, float scale, int64_t rows, const PyRef& out) {
  using Op = cpu::CachedAttentionOp<Number>;
  using Args = typename Op::Args;
  Recorded<Args> op;
  record_cache(op, keys, key_strides, values, value_strides, shape);
  op.args.q_stride = q_stride;
  op.args.scale = scale;
  op.whole(&Args::q, ref(q));
  op.whole(&Args::rows, ref(cache_rows));
  op.whole(&Args::first, ref(first));
  op.whole(&Args::last, ref(last));
  op.whole(&Args::out, ref(out));
  op.count(&Args::queries, rows, CountOf::other);
  self.template add<Op>(std::move(op));
}

// One method of Plan for an op's two C++ functions, of plans of float and of bfloat16.
template <class... Args>
auto of_either(void (*of_float)(PlanOf<float>&, Args...), void (*of_bfloat16)(PlanOf<cpu::bfloat16>&, Args...)) {
  return [=](Plan& self, Args... args) {
    if (auto* plan = self.as<float>())
      of_float(*plan, args...);
    else
      of_bfloat16(*self.as<cpu::bfloat16>(), args...);
  };
}
#define BERTFAST_OF_EITHER(op) of_either(op<float>, op<cpu::bfloat16>)

template <class... Args>
auto of_float_only(void (*of_float)(PlanOf<float>&, Args...)) {
  return [=](Plan& self, Args... args) {
    auto* plan = self.as<float>();
    BF_CHECK(plan != nullptr, no_int8);
    of_float(*plan, args...);
  };
}

}  // namespace

void bind_plan(py::module_& m) {
  using py::arg;
  m.def(
      "cut_into_bands",
      [](const std::vector<int32_t>& cu_seqlens, int threads) {
        BF_CHECK(!cu_seqlens.empty() && threads > 0, "cut_into_bands: got ", cu_seqlens.size(), " boundaries and ", threads,
                 " threads, expected at least one of each");
        return plan::cut_into_bands(cu_seqlens.data(), static_cast<int64_t>(cu_seqlens.size()) - 1, threads);
      },
      arg("cu_seqlens"), arg("threads"),
      "Where a replay cuts a batch between sequences: the first sequence of each band, then their number; empty if it does not.");
  py::class_<Plan>(
      m, "Plan",
      "A recorded forward. Operands are (kind, value, column): kind REF_NONE, REF_CONSTANT (an address), REF_SLOT or REF_BUFFER.")
      .def("__init__", constructor<Plan, bool>(), is_constructor(), arg("bfloat16") = false)
      .def("__len__", &Plan::size)
      .def(
          "add_buffer", [](Plan& self, int64_t rows, int64_t place, int64_t columns) { return self.add_buffer({rows, place, columns}); },
          arg("rows"), arg("place"), arg("columns"), "Columns [place, place + columns) in the arena of a row count; returns the index.")
      .def("embed_layer_norm", BERTFAST_OF_EITHER(embed_layer_norm), arg("input_ids"), arg("words"), arg("word_scales"), arg("word_width"),
           arg("word_rows"), arg("position_ids"), arg("positions"), arg("position_rows"), arg("type_ids"), arg("types"), arg("type_rows"),
           arg("weight"), arg("bias"), arg("eps"), arg("out"), arg("quantized"), arg("rows"), arg("hidden"))
      .def("add_layer_norm", BERTFAST_OF_EITHER(add_layer_norm), arg("x"), arg("residual"), arg("weight"), arg("bias"), arg("eps"),
           arg("out"), arg("quantized"), arg("rows"), arg("hidden"))
      .def("linear", BERTFAST_OF_EITHER(linear), arg("x"), arg("x_stride"), arg("parts"), arg("activation"), arg("out"), arg("rows"),
           arg("inputs"))
      .def("int8_quantize", of_float_only(int8_quantize), arg("x"), arg("x_stride"), arg("out"), arg("rows"), arg("inputs"))
      .def("int8_linear", of_float_only(int8_linear), arg("x"), arg("parts"), arg("activation"), arg("out"), arg("quantized"), arg("rows"),
           arg("inputs"))
      .def("varlen_attention", BERTFAST_OF_EITHER(varlen_attention), arg("q"), arg("q_stride"), arg("k"), arg("k_stride"), arg("v"),
           arg("v_stride"), arg("cu_seqlens_q"), arg("cu_seqlens_k"), arg("q_rows"), arg("k_rows"), arg("sequences"), arg("heads"),
           arg("head_size"), arg("scale"), arg("causal"), arg("bfloat16_products"), arg("out"))
      .def("pack", BERTFAST_OF_EITHER(pack), arg("x"), arg("indices"), arg("out"), arg("from_rows"), arg("rows"), arg("columns"))
      .def("unpack", BERTFAST_OF_EITHER(unpack), arg("x"), arg("indices"), arg("out"), arg("from_rows"), arg("rows"), arg("columns"),
           arg("fill"))
      .def("write_cache", BERTFAST_OF_EITHER(write_cache), arg("k"), arg("k_stride"), arg("v"), arg("v_stride"), arg("keys"),
           arg("key_strides"), arg("values"), arg("value_strides"), arg("shape"), arg("cache_rows"), arg("positions"), arg("rows"))
      .def("cached_attention", BERTFAST_OF_EITHER(cached_attention), arg("q"), arg("q_stride"), arg("keys"), arg("key_strides"),
           arg("values"), arg("value_strides"), arg("shape"), arg("cache_rows"), arg("first"), arg("last"), arg("scale"), arg("rows"),
           arg("out"))
      .def("run", &Plan::run, release(), arg("counts"), arg("slots"),
           "Replays the ops: counts are the values of the row counts, slots the addresses of inputs and outputs. ValueError for an id "
           "outside its table, and for boundaries or indices outside their rows.");
  m.attr("REF_NONE") = static_cast<int>(Ref::Kind::none);
  m.attr("REF_CONSTANT") = static_cast<int>(Ref::Kind::constant);
  m.attr("REF_SLOT") = static_cast<int>(Ref::Kind::slot);
  m.attr("REF_BUFFER") = static_cast<int>(Ref::Kind::buffer);
}

}  // namespace bertfast
