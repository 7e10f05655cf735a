"""The BERT graph: functions over transformers' own module tree, on one [R, H] matrix of rows.

The modules hold the parameters, under transformers' names, and nothing else; what is computed is here, once, for every
device. Rows are the real tokens of a batch laid end to end (R = T) or, where padding is kept, all of its cells (R = B * S);
only the attention that comes with a batch knows which. `O` is the set of ops: bertfast.ops (kernels where there are any) or
bertfast.ops.reference (differentiable).

Source: BertModel of transformers; Devlin et al. 2018, https://arxiv.org/abs/1810.04805.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from bertfast import ops
from bertfast.batch.attention import Attention
from bertfast.batch.packed import GraphInputs
from bertfast.ops import Ops
from bertfast.quantization.fp8_layers import Fp8LayerNorm
from bertfast.quantization.int8_layers import QuantizedLayer


@dataclass(slots=True)
class Trace:
    """What a caller wants to see of the inside of a forward."""

    hidden_states: list[Tensor] | None = None  # [R, H]: after the embeddings and after each layer
    keys_values: list[tuple[Tensor, Tensor]] | None = None  # [R, H] each, a layer: what a KV cache keeps
    extra: dict[str, Any] = field(default_factory=dict)


def encode(bert: Any, rows: GraphInputs, O: Ops = ops, trace: Trace | None = None, first_rows: Tensor | None = None) -> Tensor:
    """[R, H] after the last layer; or, with first_rows [B], those rows alone: [B, H].

    The last layer then computes keys and values for all rows and everything else for the wanted ones only.
    """
    x = embed(bert.embeddings, rows, O)
    layers = list(bert.encoder.layer)
    if layers:  # transformers takes the first hidden state for the first layer's input: without layers there is none
        note_hidden(trace, x)
    for layer in layers[:-1] if first_rows is not None and layers else layers:
        x = encode_layer(layer, x, rows, O, trace)
        note_hidden(trace, x)
    if first_rows is not None:
        x = last_layer_first_rows(layers[-1], x, rows, first_rows, O) if layers else O.pack(x, first_rows)
    return x


def note_hidden(trace: Trace | None, x: Tensor) -> None:
    if trace is not None and trace.hidden_states is not None:
        trace.hidden_states.append(x)


def embed(embeddings: Any, rows: GraphInputs, O: Ops = ops) -> Tensor:  # -> [R, H]
    words = embeddings.word_embeddings
    others = (
        rows.position_ids, embeddings.position_embeddings.weight,
        rows.token_type_ids, embeddings.token_type_embeddings.weight,
        *affine(embeddings.LayerNorm),
    )  # fmt: skip
    if rows.words is None and isinstance(words, QuantizedLayer):
        return words.embed(rows.input_ids, O, *others)
    return O.embed_layer_norm(rows.input_ids, words.weight if rows.words is None else rows.words, *others)


def linear(x: Tensor, layers: Sequence[Any], O: Ops = ops, activation: str | None = None) -> Tensor:  # [R, K] -> [R, F_0 + F_1 + ...]
    """activation(x W^T + b) of a linear layer, or of several side by side in one pass over x. The one place that knows what kinds of
    weights there are: layers of one call are of one kind, which bertfast.engine.eligibility makes sure of."""
    if isinstance(layers[0], QuantizedLayer):
        return layers[0].project(x, layers, O, activation)
    if len(layers) == 1:
        return O.linear(x, layers[0].weight, layers[0].bias, activation)
    assert activation is None, "no graph asks for several layers and an activation"
    return O.linear_concat(x, [m.weight for m in layers], [m.bias for m in layers])


def encode_layer(layer: Any, x: Tensor, rows: GraphInputs, O: Ops = ops, trace: Trace | None = None) -> Tensor:  # [R, H] -> [R, H]
    """Post-norm, as BERT was trained: each block adds its input back, then normalises."""
    x = project_add_norm(layer.attention.output, attend(layer.attention.self, x, rows.attention, O, trace), x, O)
    if rows.cross_attention is not None:
        x = project_add_norm(layer.crossattention.output, attend_across(layer.crossattention.self, x, rows, O), x, O)
    return project_add_norm(layer.output, feed_forward(layer.intermediate, x, O), x, O)


def last_layer_first_rows(layer: Any, x: Tensor, rows: GraphInputs, first_rows: Tensor, O: Ops = ops) -> Tensor:  # [R, H] -> [B, H]
    attention = rows.attention.first_rows()
    if attention is None or rows.cross_attention is not None:
        return O.pack(encode_layer(layer, x, rows, O), first_rows)
    self = layer.attention.self
    first = O.pack(x, first_rows)
    q = linear(first, [self.query], O)
    k, v = linear(x, [self.key, self.value], O).chunk(2, dim=1)
    first = project_add_norm(layer.attention.output, attention(q, k, v, self.num_attention_heads, O), first, O)
    return project_add_norm(layer.output, feed_forward(layer.intermediate, first, O), first, O)


def attend(self: Any, x: Tensor, attention: Attention, O: Ops = ops, trace: Trace | None = None) -> Tensor:  # [R, H] -> [R, H]
    q, k, v = linear(x, [self.query, self.key, self.value], O).chunk(3, dim=1)
    if trace is not None and trace.keys_values is not None:
        trace.keys_values.append((k, v))
    return attention(q, k, v, self.num_attention_heads, O)


def attend_across(self: Any, x: Tensor, rows: GraphInputs, O: Ops = ops) -> Tensor:  # [R, H] -> [R, H]
    assert rows.cross_attention is not None, "made together, in bertfast.batch.layout"
    q = linear(x, [self.query], O)
    cached = None if rows.cross_cache is None else rows.cross_cache.read()
    if cached is not None:
        keys, values = cached
        return rows.cross_attention(q, keys, values, self.num_attention_heads, O)
    assert rows.encoder_rows is not None, "made together with the attention"
    k, v = linear(rows.encoder_rows, [self.key, self.value], O).chunk(2, dim=1)
    if rows.cross_cache is not None:
        rows.cross_cache.keep(k, v, self.num_attention_heads)
    return rows.cross_attention(q, k, v, self.num_attention_heads, O)


def feed_forward(intermediate: Any, x: Tensor, O: Ops = ops) -> Tensor:  # [R, H] -> [R, I]
    return activated_linear(intermediate.dense, intermediate.intermediate_act_fn, x, O)


def project_add_norm(output: Any, x: Tensor, residual: Tensor, O: Ops = ops) -> Tensor:  # [R, *] -> [R, H]
    out = linear(x, [output.dense], O)
    if isinstance(output.LayerNorm, Fp8LayerNorm):
        return output.LayerNorm.add(out, residual)
    return O.add_layer_norm(out, residual, *affine(output.LayerNorm))


def activated_linear(dense: Any, activation: Any, x: Tensor, O: Ops = ops) -> Tensor:
    name = fused_name(activation)
    out = linear(x, [dense], O, name)
    return out if name is not None else activation(out)


# By class, not by config: an activation that was replaced in the module tree is called as it stands.
_FUSED = {
    "GELUActivation": "gelu",
    "NewGELUActivation": "gelu_new",
    "GELUTanh": "gelu_pytorch_tanh",
    "PytorchGELUTanh": "gelu_pytorch_tanh",
    "ReLU": "relu",
    "SiLUActivation": "silu",
    "SiLU": "silu",
    "Tanh": "tanh",
}


def fused_name(activation: Any) -> str | None:
    """The op contract's name for an activation module of torch or transformers; None where linear cannot fuse it."""
    kind = type(activation)
    if kind.__module__ not in ("transformers.activations", "torch.nn.modules.activation"):
        return None
    return _FUSED.get(kind.__name__)


def affine(norm: Any) -> tuple[Tensor, Tensor, float]:
    return norm.weight, norm.bias, norm.eps
