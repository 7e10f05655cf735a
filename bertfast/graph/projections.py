"""Linear layers, LayerNorm and the embedding tables as calls of the ops. The one place that tells kinds of weights apart.

Shape letters: R rows, H hidden, K inputs and F outputs of a linear layer.
"""

from collections.abc import Callable, Sequence
from typing import TypeGuard, TypeVar

import torch
from torch import Tensor, nn

from bertfast import ops
from bertfast.batch.packed import GraphInputs
from bertfast.graph.layers import LinearLayer, WeightedLayer, emitted_scales, kernel_weight, with_memory
from bertfast.ops import Fp8Weight, Int8Weight, Ops, Rows
from bertfast.ops.activations import fused_name
from bertfast.ops.derivative import without_derivative
from bertfast.ops.fp8 import Scales, unquantized

W = TypeVar("W")


def linear(x: Rows, layers: Sequence[LinearLayer], O: Ops = ops, activation: str | None = None) -> Tensor:  # [R, K] -> [R, F_0 + F_1 + ...]
    """activation(x W^T + b) of a linear layer, or of several side by side in one pass over x (layers of one kind)."""
    return unquantized(_product(x, layers, O, activation, None))


def activated_linear(dense: LinearLayer, activation: Callable[[Tensor], Tensor], x: Rows, O: Ops) -> Rows:  # [R, K] -> [R, F]
    """activation(dense(x)); quantized where `dense` emits that."""
    name = fused_name(activation)
    if name is None:
        return activation(linear(x, [dense], O))
    return _product(x, [dense], O, name, emitted_scales(dense))


def _product(x: Rows, layers: Sequence[LinearLayer], O: Ops, activation: str | None, emits: Scales | None) -> Rows:
    weights = [kernel_weight(m) for m in layers]
    biases = [None if m.bias is None else with_memory(m.bias) for m in layers]
    if _all_are(weights, Fp8Weight):
        read = x if isinstance(x, Tensor) else x.unquantized
        return without_derivative("fp8", lambda: O.fp8_linear(x, weights, biases, activation, emits), read, *biases)
    x = unquantized(x)
    if _all_are(weights, Int8Weight):
        return without_derivative("int8", lambda: O.int8_linear(x, weights, biases, activation), x, *biases)
    assert _all_are(weights, Tensor), "engine.module_audit sees to it that the layers are of one kind"
    if len(weights) == 1:
        return O.linear(x, weights[0], biases[0], activation)
    assert activation is None, "no graph asks for several layers and an activation"
    return O.linear_concat(x, weights, biases)


def _all_are(weights: Sequence[object], kind: type[W]) -> TypeGuard[Sequence[W]]:
    return all(isinstance(weight, kind) for weight in weights)


def project_add_norm(dense: LinearLayer, norm: nn.LayerNorm, x: Rows, residual: Rows, O: Ops = ops) -> Rows:  # [R, *] -> [R, H]
    """norm(dense(x) + residual); quantized besides where `norm` emits that."""
    out, before = linear(x, [dense], O), unquantized(residual)
    if emitted_scales(norm) is not None:
        return O.fp8_add_layer_norm(out, before, *affine(norm))
    return O.add_layer_norm(out, before, *affine(norm))


def embedding_table(  # -> [R, H]
    words: WeightedLayer, inputs: GraphInputs, O: Ops, position_ids: Tensor, position_weight: Tensor,
    token_type_ids: Tensor | None, token_type_weight: Tensor, weight: Tensor, bias: Tensor, eps: float,
) -> Tensor:  # fmt: skip
    """embed_layer_norm over the word embeddings, float or int8, or over inputs_embeds."""
    others = position_ids, position_weight, token_type_ids, token_type_weight, weight, bias, eps
    table = kernel_weight(words) if inputs.words is None else inputs.words
    if isinstance(table, Int8Weight):
        return O.int8_embed_layer_norm(inputs.input_ids, table, *others)
    assert isinstance(table, Tensor), "no scheme keeps embeddings in float8"
    if table.requires_grad and inputs.words is None and torch.is_grad_enabled():
        table = without_gradient_of_padding(table, getattr(words, "padding_idx", None))
    return O.embed_layer_norm(inputs.input_ids, table, *others)


def without_gradient_of_padding(table: Tensor, padding_idx: int | None) -> Tensor:
    """The table for a lookup of rows, as nn.Embedding differentiates it: the row of padding gets no gradient."""
    if padding_idx is None:
        return table
    view = table.view_as(table)
    view.register_hook(  # type: ignore[no-untyped-call]  # torch's own
        lambda grad: grad.index_fill(0, torch.tensor(padding_idx, device=grad.device), 0.0)
    )
    return view


def affine(norm: nn.LayerNorm) -> tuple[Tensor, Tensor, float]:
    return with_memory(norm.weight), with_memory(norm.bias), norm.eps
