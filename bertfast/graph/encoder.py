"""The encoder: functions over transformers' own module tree, on one [R, H] matrix of rows.

The modules hold the parameters, under transformers' names; what is computed is here, once for every device. Rows are the tokens of a batch
laid end to end (R = T) or, if padding is kept, all positions of the batch (R = B * S); only the attention that comes with a batch knows
which. `O` is the set of ops: bertfast.ops (kernels where there are any), bertfast.ops.reference (differentiable) or a Recorder.

Source: BertModel of transformers; Devlin et al. 2018, https://arxiv.org/abs/1810.04805.
"""

from torch import Tensor

from bertfast import ops
from bertfast.batch.attention import Attention
from bertfast.batch.packed import GraphInputs
from bertfast.graph.layers import AttentionModules, LayerModules
from bertfast.graph.projections import activated_linear, linear, project_add_norm
from bertfast.ops import Ops, Rows
from bertfast.ops.fp8 import unquantized
from bertfast.runtime.model_types import BaseModel


def encode(
    base: BaseModel, inputs: GraphInputs, O: Ops = ops, hidden_states: list[Tensor] | None = None, first_rows: Tensor | None = None
) -> Tensor:
    """[R, H] after the last layer; or, with first_rows [B], those rows alone: [B, H].

    With first_rows the last layer computes keys and values for all rows and everything else for those alone.
    hidden_states: collects [R, H] after the embeddings and after each layer.
    """
    x: Rows = base.family.embed(base, inputs, O)
    layers = base.family.layers(base)
    if layers:  # transformers takes the first hidden state from the first layer's input: without layers there is none
        _collect(hidden_states, x)
    for layer in layers[:-1] if first_rows is not None and layers else layers:
        x = encode_layer(layer, x, inputs, O)
        _collect(hidden_states, x)
    if first_rows is not None:
        x = last_layer_first_rows(layers[-1], x, inputs, first_rows, O) if layers else O.pack(unquantized(x), first_rows)
    return unquantized(x)


def _collect(hidden_states: list[Tensor] | None, x: Rows) -> None:
    if hidden_states is not None:
        hidden_states.append(unquantized(x))


def encode_layer(layer: LayerModules, x: Rows, inputs: GraphInputs, O: Ops = ops) -> Rows:  # [R, H] -> [R, H]
    """Post-norm: each block adds its input to its output, then normalizes."""
    x = project_add_norm(layer.attention.output, layer.attention.norm, attend(layer.attention, x, inputs.attention, O), x, O)
    if inputs.cross_attention is not None:
        assert layer.cross is not None, "batch.inputs refuses encoder_hidden_states for a model without cross-attention"
        x = project_add_norm(layer.cross.output, layer.cross.norm, attend_across(layer.cross, x, inputs, O), x, O)
    return feed_forward(layer, x, O)


def last_layer_first_rows(  # [R, H] -> [B, H]
    layer: LayerModules, x: Rows, inputs: GraphInputs, first_rows: Tensor, O: Ops = ops
) -> Rows:
    attention = inputs.attention.restricted_to_first_rows()
    if attention is None or inputs.cross_attention is not None:
        return O.pack(unquantized(encode_layer(layer, x, inputs, O)), first_rows)
    modules = layer.attention
    first = O.pack(unquantized(x), first_rows)
    q = linear(first, [modules.query], O)
    k, v = keys_and_values(modules, x, attention, O)
    return feed_forward(layer, project_add_norm(modules.output, modules.norm, attention(q, k, v, modules.heads, O), first, O), O)


def feed_forward(layer: LayerModules, x: Rows, O: Ops = ops) -> Rows:  # [R, H] -> [R, H]
    return project_add_norm(layer.down, layer.norm, activated_linear(layer.up, layer.activation, x, O), x, O)


def attend(modules: AttentionModules, x: Rows, attention: Attention, O: Ops = ops) -> Tensor:  # [R, H] -> [R, H]
    if attention.key_rows is None:
        q, k, v = linear(x, [modules.query, modules.key, modules.value], O).chunk(3, dim=1)
    else:
        q, (k, v) = linear(x, [modules.query], O), keys_and_values(modules, x, attention, O)
    return attention(q, k, v, modules.heads, O)


def keys_and_values(modules: AttentionModules, x: Rows, attention: Attention, O: Ops) -> tuple[Tensor, Tensor]:  # [Tk, H] each
    rows = x if attention.key_rows is None else O.pack(unquantized(x), attention.key_rows)
    k, v = linear(rows, [modules.key, modules.value], O).chunk(2, dim=1)
    return k, v


def attend_across(modules: AttentionModules, x: Rows, inputs: GraphInputs, O: Ops = ops) -> Tensor:  # [R, H] -> [R, H]
    assert inputs.cross_attention is not None, "encode_layer asks first"
    q = linear(x, [modules.query], O)
    cached = None if inputs.cross_cache is None else inputs.cross_cache.read()
    if cached is not None:
        keys, values = cached
        return inputs.cross_attention(q, keys, values, modules.heads, O)
    assert inputs.encoder_rows is not None, "set together with cross_attention"
    k, v = linear(inputs.encoder_rows, [modules.key, modules.value], O).chunk(2, dim=1)
    if inputs.cross_cache is not None:
        inputs.cross_cache.keep(k, v, modules.heads)
        return inputs.cross_attention.of_all_keys(q, k, v, modules.heads, O)
    return inputs.cross_attention(q, k, v, modules.heads, O)
