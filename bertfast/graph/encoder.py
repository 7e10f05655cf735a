"""The BERT graph: functions over transformers' own module tree, on one [R, H] matrix of rows.

The modules hold the parameters, under transformers' names, and nothing else; what is computed is here, once, for every
device. Rows are the real tokens of a batch laid end to end (R = T) or, where padding is kept, all of its cells (R = B * S);
only the attention that comes with a batch knows which. `O` is the set of ops: bertfast.ops (kernels where there are any) or
bertfast.ops.reference (differentiable).

Source: BertModel of transformers; Devlin et al. 2018, https://arxiv.org/abs/1810.04805.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from bertfast import ops
from bertfast.batch.attention import Attention
from bertfast.batch.packed import GraphInputs
from bertfast.graph.layers import AttentionModules, LayerModules
from bertfast.ops import Ops
from bertfast.quantization.fp8_layers import Fp8LayerNorm
from bertfast.quantization.int8_layers import QuantizedLayer


def encode(
    base: Any, inputs: GraphInputs, O: Ops = ops, hidden_states: list[Tensor] | None = None, first_rows: Tensor | None = None
) -> Tensor:
    """[R, H] after the last layer; or, with first_rows [B], those rows alone: [B, H].

    The last layer then computes keys and values for all rows and everything else for the first rows only.
    hidden_states: collects [R, H] after the embeddings and after each layer.
    """
    x = base.family.embed(base, inputs, O)
    layers = base.family.layers(base)
    if layers:  # transformers takes the first hidden state from the first layer's input: without layers there is none
        _collect(hidden_states, x)
    for layer in layers[:-1] if first_rows is not None and layers else layers:
        x = encode_layer(layer, x, inputs, O)
        _collect(hidden_states, x)
    if first_rows is not None:
        x = last_layer_first_rows(layers[-1], x, inputs, first_rows, O) if layers else O.pack(x, first_rows)
    return x


def _collect(hidden_states: list[Tensor] | None, x: Tensor) -> None:
    if hidden_states is not None:
        hidden_states.append(x)


def embedding_table(words: Any, inputs: GraphInputs, O: Ops, *others: Any) -> Tensor:  # -> [R, H]
    """embed_layer_norm over the word embeddings, float or quantized, or over inputs_embeds. others: its arguments from position_ids on."""
    if inputs.words is None and isinstance(words, QuantizedLayer):
        return words.embed(inputs.input_ids, O, *others)
    return O.embed_layer_norm(inputs.input_ids, words.weight if inputs.words is None else inputs.words, *others)


def linear(x: Tensor, layers: Sequence[Any], O: Ops = ops, activation: str | None = None) -> Tensor:  # [R, K] -> [R, F_0 + F_1 + ...]
    """activation(x W^T + b) of a linear layer, or of several side by side in one pass over x. The one place that knows what kinds of
    weights there are: layers of one call are of one kind, which bertfast.engine.eligibility makes sure of."""
    if isinstance(layers[0], QuantizedLayer):
        return layers[0].project(x, layers, O, activation)
    if len(layers) == 1:
        return O.linear(x, layers[0].weight, layers[0].bias, activation)
    assert activation is None, "no graph asks for several layers and an activation"
    return O.linear_concat(x, [m.weight for m in layers], [m.bias for m in layers])


def encode_layer(layer: LayerModules, x: Tensor, inputs: GraphInputs, O: Ops = ops) -> Tensor:  # [R, H] -> [R, H]
    """Post-norm: each block adds its input back, then normalises."""
    x = project_add_norm(layer.attention.output, layer.attention.norm, attend(layer.attention, x, inputs.attention, O), x, O)
    if inputs.cross_attention is not None:
        assert layer.cross is not None, "batch.inputs refuses encoder_hidden_states for a model without cross-attention"
        x = project_add_norm(layer.cross.output, layer.cross.norm, attend_across(layer.cross, x, inputs, O), x, O)
    return project_add_norm(layer.down, layer.norm, activated_linear(layer.up, layer.activation, x, O), x, O)


def last_layer_first_rows(  # [R, H] -> [B, H]
    layer: LayerModules, x: Tensor, inputs: GraphInputs, first_rows: Tensor, O: Ops = ops
) -> Tensor:
    attention = inputs.attention.restricted_to_first_rows()
    if attention is None or inputs.cross_attention is not None:
        return O.pack(encode_layer(layer, x, inputs, O), first_rows)
    modules = layer.attention
    first = O.pack(x, first_rows)
    q = linear(first, [modules.query], O)
    k, v = linear(x, [modules.key, modules.value], O).chunk(2, dim=1)
    first = project_add_norm(modules.output, modules.norm, attention(q, k, v, modules.heads, O), first, O)
    return project_add_norm(layer.down, layer.norm, activated_linear(layer.up, layer.activation, first, O), first, O)


def attend(modules: AttentionModules, x: Tensor, attention: Attention, O: Ops = ops) -> Tensor:  # [R, H] -> [R, H]
    q, k, v = linear(x, [modules.query, modules.key, modules.value], O).chunk(3, dim=1)
    return attention(q, k, v, modules.heads, O)


def attend_across(modules: AttentionModules, x: Tensor, inputs: GraphInputs, O: Ops = ops) -> Tensor:  # [R, H] -> [R, H]
    assert inputs.cross_attention is not None, "the caller asked"
    q = linear(x, [modules.query], O)
    cached = None if inputs.cross_cache is None else inputs.cross_cache.read()
    if cached is not None:
        keys, values = cached
        return inputs.cross_attention(q, keys, values, modules.heads, O)
    assert inputs.encoder_rows is not None, "set together with cross_attention"
    k, v = linear(inputs.encoder_rows, [modules.key, modules.value], O).chunk(2, dim=1)
    if inputs.cross_cache is not None:
        inputs.cross_cache.keep(k, v, modules.heads)
    return inputs.cross_attention(q, k, v, modules.heads, O)


def project_add_norm(dense: Any, norm: Any, x: Tensor, residual: Tensor, O: Ops = ops) -> Tensor:  # [R, *] -> [R, H]
    """norm(dense(x) + residual)."""
    out = linear(x, [dense], O)
    if isinstance(norm, Fp8LayerNorm):
        return norm.add(out, residual)
    return O.add_layer_norm(out, residual, *affine(norm))


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
