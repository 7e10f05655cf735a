"""PackedBatch: the inputs of one call laid out as the rows that the graph computes on.

Rows are the real tokens alone where that loses nothing, else every cell of the batch: see bertfast.batch.padding. The same layout serves
calls with and without a KV cache.

Shape letters: B batch, S new columns, P cached columns, K = P + S, R rows, Re rows of the encoder, H hidden, Se encoder length.
"""

from torch import Tensor

from bertfast import ops
from bertfast.batch.attention import MaskedAttention, VarlenAttention
from bertfast.batch.by_size import column_indices, uniform_cu_seqlens, uniform_first_rows
from bertfast.batch.encoder_states import CrossInputs
from bertfast.batch.inputs import Arguments, Inputs, read_inputs
from bertfast.batch.masks import PackedMask, causal_mask, finite_mask
from bertfast.batch.packed import GraphInputs, OutputNeeds, PackedBatch
from bertfast.batch.padding import Padding, choose_padding, padding_facts
from bertfast.runtime.model_types import BaseModel

OwnAttention = MaskedAttention | VarlenAttention  # the kinds without a cache


def make_batch(arguments: Arguments, model: BaseModel, needs: OutputNeeds) -> PackedBatch:
    """The batch of a call without a cache. model: the one without a head.

    Raises ValueError, naming the argument, where a shape, dtype or combination makes no sense.
    """
    inputs = read_inputs(arguments, model)
    batch, attention = lay_out(inputs, model, needs)
    if inputs.cross is not None:
        batch.rows.cross_attention = cross_attention(inputs, inputs.cross, attention)
        batch.rows.encoder_rows = encoder_rows(inputs.cross, batch.rows.cross_attention)
    return batch


def lay_out(inputs: Inputs, model: BaseModel, needs: OutputNeeds) -> tuple[PackedBatch, OwnAttention]:
    """The rows, and how they attend to the columns up to their own, cached ones included. Cross-attention is the caller's to add."""
    B, S, device = inputs.batch, inputs.columns, inputs.device
    facts = padding_facts(inputs, needs)
    padding = choose_padding(facts)
    dropped = inputs.packed if padding is Padding.DROPPED else None
    indices = None if dropped is None else dropped.indices
    attention: OwnAttention
    pad_mask = None
    if padding is Padding.MASKED:
        real = inputs.real()
        attention = masked_attention(inputs, real, needs.probabilities)
        if real is not None and facts.padded and not facts.computed:
            pad_mask = ~real[:, inputs.past :]
    else:
        attention = varlen_attention(inputs, dropped, model)
    ids = column_indices(1, B * S, device).view(B, S) if inputs.ids is None else inputs.ids  # else rows of inputs_embeds
    types, positions = inputs.token_type_ids, inputs.position_ids
    rows = GraphInputs(
        pack_ids(ids, indices), inputs.words, None if types is None else pack_ids(types, indices),
        model.family.positions(model, inputs, dropped) if positions is None else pack_ids(positions, indices),
        attention,
    )  # fmt: skip
    first_rows = uniform_first_rows(B, S, device) if dropped is None else dropped.cu_seqlens[:-1].long()
    return PackedBatch(rows, B, S, indices, pad_mask, first_rows), attention


def pack_ids(ids: Tensor, indices: Tensor | None) -> Tensor:  # [B, S] -> [R]
    flat = ids.reshape(-1)
    return flat if indices is None else flat.index_select(0, indices)


def masked_attention(inputs: Inputs, real: Tensor | None, keep_probabilities: bool) -> MaskedAttention:  # real: [B, K] bool
    visible = inputs.visible
    if visible is None:
        visible = None if real is None else real[:, None, None, :]
        if inputs.causal:
            lower = causal_mask(inputs.columns, inputs.past, inputs.device)
            visible = lower if visible is None else visible & lower
        if visible is not None and inputs.eager:
            visible = finite_mask(visible, inputs.dtype)
    return MaskedAttention(inputs.batch, visible, inputs.head_masks, keep_probabilities)


def varlen_attention(inputs: Inputs, dropped: PackedMask | None, model: BaseModel) -> VarlenAttention:
    B, S, causal, keys = inputs.batch, inputs.columns, inputs.causal, inputs.packed_keys
    # int8's own error is coarser than bfloat16. A decoder is not rounded: its steps on a cache must agree with a whole forward.
    rounded = not causal and getattr(type(model.embeddings.word_embeddings), "bfloat16_attention", False)
    if dropped is None:
        cu_seqlens, longest = uniform_cu_seqlens(B, S, inputs.device), S
    else:
        cu_seqlens, longest = dropped.cu_seqlens, dropped.longest
    if inputs.past == 0 and (dropped is not None or keys is None):  # the rows are the keys
        return VarlenAttention(cu_seqlens, cu_seqlens, longest, longest, causal, bfloat16_products=rounded)
    if keys is None:
        return VarlenAttention(cu_seqlens, uniform_cu_seqlens(B, inputs.keys, inputs.device), longest, inputs.keys, causal)
    return VarlenAttention(cu_seqlens, keys.cu_seqlens, longest, keys.longest, causal, key_rows=keys.indices, bfloat16_products=rounded)


def cross_attention(inputs: Inputs, cross: CrossInputs, own: OwnAttention) -> OwnAttention:
    """Cross-attention of the rows that `own` is the self-attention of. Varlen, its keys are the encoder's real tokens alone."""
    B = inputs.batch
    if isinstance(own, MaskedAttention):
        visible = cross.visible
        if visible is None and cross.real is not None:
            visible = cross.real[:, None, None, :]
            visible = finite_mask(visible, inputs.dtype) if inputs.eager else visible
        return MaskedAttention(B, visible, inputs.head_masks, own.keep_probabilities)
    if cross.packed is None:
        cu_seqlens = uniform_cu_seqlens(B, cross.length, inputs.device)
        return VarlenAttention(own.cu_seqlens_q, cu_seqlens, own.max_seqlen_q, cross.length)
    return VarlenAttention(own.cu_seqlens_q, cross.packed.cu_seqlens, own.max_seqlen_q, cross.packed.longest)


def encoder_rows(cross: CrossInputs, attention: OwnAttention) -> Tensor:  # [Re, H]: the keys of `attention`
    if isinstance(attention, MaskedAttention) or cross.packed is None:
        return cross.rows
    return ops.pack(cross.rows, cross.packed.indices)
