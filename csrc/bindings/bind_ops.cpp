// The ops of a forward in float32 and bfloat16; each releases the GIL while it runs.
//
// bertfast.ops has checked device, dtype, layout and shapes before it passed an address, and keeps the tensors alive during the call. What
// only the data can tell (ids, indices, boundaries) the ops check themselves.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "../cpu/ops.h"
#include "bind.h"

namespace py = pybind11;

namespace bertfast {
namespace {

template <class Number>
void embed_layer_norm(Address input_ids, Address word_table, int64_t word_rows, Address position_ids, Address position_table,
                      int64_t position_rows, Address type_ids, Address type_table, int64_t type_rows, Address weight, Address bias,
                      float eps, Address out, int64_t tokens, int64_t hidden) {
  run_checking_ids<cpu::EmbedLayerNormOp<Number>>(
      {at<const int64_t>(input_ids), at<const int64_t>(position_ids), at<const int64_t>(type_ids), at<const Number>(word_table), nullptr, 0,
       at<const Number>(position_table), at<const Number>(type_table), word_rows, position_rows, type_rows, at<const Number>(weight),
       at<const Number>(bias), at<Number>(out), tokens, hidden, eps, nullptr});
}

template <class Number>
void add_layer_norm(Address x, Address residual, Address weight, Address bias, float eps, Address out, int64_t rows, int64_t hidden) {
  run<cpu::AddLayerNormOp<Number>>({at<const Number>(x), at<const Number>(residual), at<const Number>(weight), at<const Number>(bias),
                                    at<Number>(out), rows, hidden, eps, nullptr});
}

// parts: weight, bias and features of each.
template <class Number>
void linear(Address x, const std::vector<std::tuple<Address, Address, int64_t>>& parts, int activation, Address out, int64_t rows,
            int64_t inputs) {
  const auto kind = checked<cpu::Activation>(activation, "linear: activation");
  typename cpu::LinearOp<Number>::Args args;
  int64_t columns = 0;
  for (const auto& [weight, bias, features] : parts) columns += features;
  Number* to = at<Number>(out);
  for (const auto& [weight, bias, features] : parts) {
    args.push_back(
        {at<const Number>(x), at<const Number>(weight), at<const Number>(bias), to, rows, inputs, features, inputs, columns, kind});
    to += features;
  }
  run<cpu::LinearOp<Number>>(std::move(args));
}

template <class Number>
void varlen_attention(Address q, int64_t q_stride, Address k, int64_t k_stride, Address v, int64_t v_stride, Address cu_seqlens_q,
                      Address cu_seqlens_k, int64_t sequences, int64_t queries, int64_t keys, int64_t heads, int64_t head_size, bool causal,
                      float scale, bool bfloat16_products, Address out) {
  run<cpu::VarlenAttentionOp<Number>>({at<const Number>(q), at<const Number>(k), at<const Number>(v), at<Number>(out), q_stride, k_stride,
                                       v_stride, at<const int32_t>(cu_seqlens_q), at<const int32_t>(cu_seqlens_k), sequences, heads,
                                       head_size, scale, causal, bfloat16_products, queries, keys});
}

void pack(Address x, int64_t rows, Address indices, Address out, int64_t tokens, int64_t row_bytes) {
  run<cpu::PackOp>({at<const char>(x), at<const int64_t>(indices), at<char>(out), rows, tokens, row_bytes});
}

template <class Number>
void unpack(Address x, Address indices, int64_t tokens, Address out, int64_t rows, int64_t columns, float fill) {
  run<cpu::UnpackOp<Number>>({at<const Number>(x), at<const int64_t>(indices), at<Number>(out), tokens, rows, columns, fill});
}

// The names in config.hidden_act of what an activation computes.
std::vector<const char*> names_of(cpu::Activation activation) {
  switch (activation) {
    case cpu::Activation::none:
      return {"none"};
    case cpu::Activation::gelu:
      return {"gelu"};
    case cpu::Activation::gelu_tanh:
      return {"gelu_new", "gelu_pytorch_tanh"};
    case cpu::Activation::relu:
      return {"relu"};
    case cpu::Activation::silu:
      return {"silu"};
    case cpu::Activation::tanh:
      return {"tanh"};
    case cpu::Activation::count:
      break;
  }
  return {};
}

}  // namespace

void bind_ops(py::module_& m) {
  using py::arg;
  const auto bfloat16 = arg("bfloat16") = false;

  m.def("embed_layer_norm", BERTFAST_EITHER(embed_layer_norm), arg("input_ids"), arg("word_table"), arg("word_rows"), arg("position_ids"),
        arg("position_table"), arg("position_rows"), arg("type_ids"), arg("type_table"), arg("type_rows"), arg("weight"), arg("bias"),
        arg("eps"), arg("out"), arg("tokens"), arg("hidden"), bfloat16,
        "out[tokens, hidden] = LayerNorm(word + type + position); type_ids may be 0. ValueError for an id outside its table.");
  m.def("add_layer_norm", BERTFAST_EITHER(add_layer_norm), arg("x"), arg("residual"), arg("weight"), arg("bias"), arg("eps"), arg("out"),
        arg("rows"), arg("hidden"), bfloat16, "out[rows, hidden] = LayerNorm(x + residual) * weight + bias; residual may be 0.");
  m.def("linear", BERTFAST_EITHER(linear), arg("x"), arg("parts"), arg("activation"), arg("out"), arg("rows"), arg("inputs"), bfloat16,
        "out[rows, sum of features] = activation(x[rows, inputs] @ weight.T + bias) for parts of (weight, bias or 0, features).");
  m.def("varlen_attention", BERTFAST_EITHER(varlen_attention), arg("q"), arg("q_stride"), arg("k"), arg("k_stride"), arg("v"),
        arg("v_stride"), arg("cu_seqlens_q"), arg("cu_seqlens_k"), arg("sequences"), arg("queries"), arg("keys"), arg("heads"),
        arg("head_size"), arg("causal"), arg("scale"), arg("bfloat16_products"), arg("out"), bfloat16,
        "out[queries, heads, head_size] = softmax(q k^T scale) v within each sequence. ValueError for boundaries that do not ascend from 0 "
        "to at most the rows.");
  m.def("pack", pack, release(), arg("x"), arg("rows"), arg("indices"), arg("out"), arg("tokens"), arg("row_bytes"),
        "out[t] = x[indices[t]]. ValueError for an index outside [0, rows).");
  m.def("unpack", BERTFAST_EITHER(unpack), arg("x"), arg("indices"), arg("tokens"), arg("out"), arg("rows"), arg("columns"), arg("fill"),
        bfloat16, "out[indices[t]] = x[t], fill elsewhere. ValueError for an index outside [0, rows).");

  py::dict activations;
  for (int i = 0; i < static_cast<int>(cpu::Activation::count); ++i)
    for (const char* name : names_of(static_cast<cpu::Activation>(i))) activations[name] = i;
  m.attr("ACTIVATIONS") = activations;
}

}  // namespace bertfast
