"""PackedBatch: padding leaves here, and comes back here.

What a caller passes (padded [B, S] ids, masks of any kind, embeddings) is checked once and becomes the rows that the graph
computes on: the real tokens only where that loses nothing, every cell of the batch where padding counts.

Shape letters: B batch, S padded length, T real tokens, R rows (T, or B * S where padding is kept), H hidden, C any columns.
"""

from typing import Any

import torch
from torch import Tensor

from bertfast.batch.attention import Attention, MaskedAttention, VarlenAttention, uniform_cu_seqlens, uniform_first_rows
from bertfast.batch.inputs import Arguments, read_attention_mask, read_cross_inputs, read_head_mask, read_ids, read_input, read_mask
from bertfast.batch.packed import GraphInputs, OutputNeeds, PackedBatch
from bertfast.batch.positions import column_indices
from bertfast.runtime.config_access import is_causal, setting


def make_batch(arguments: Arguments, model: Any, needs: OutputNeeds) -> PackedBatch:
    """Checks what a BERT reads (see transformers' BertModel.forward) and lays out its rows.

    Raises ValueError, naming the argument, where a shape, dtype or combination makes no sense.
    """
    config, embeddings = model.config, model.embeddings
    weight = embeddings.position_embeddings.weight
    device, dtype = weight.device, weight.dtype
    ids, words, B, S = read_input(arguments, embeddings, config)
    mask = arguments.get("attention_mask")
    causal = is_causal(config)
    eager = setting(config, "_attn_implementation") == "eager"  # its rows that see nothing attend everywhere; sdpa's give zeros
    head_masks = read_head_mask(arguments.get("head_mask"), config, device, dtype)
    plain = needs.probabilities or needs.differentiable or head_masks is not None

    packing = None
    visible: Tensor | None = None  # [B, 1, Sq or 1, Sk]
    if mask is not None:
        mask = read_attention_mask(mask, "attention_mask", B, setting(config, "num_attention_heads"), S, S, device, dtype)
        if mask.dim() == 4:
            visible, plain = mask, True
        else:
            packing = read_mask(mask, device)

    encoder = read_cross_inputs(arguments, B, S, config, device, dtype)
    if encoder is not None and (encoder.visible is not None or (eager and encoder.shortest == 0)):
        plain = True  # cross-attention under a mask needs its queries in place

    keep = packing is None or needs.keep_padding or packing.shortest == 0 or (needs.pooled and not packing.first_column_kept)
    if packing is not None and keep and (causal or (eager and packing.shortest == 0)):
        plain = True

    drop = not keep and not plain
    cells = packing.indices if drop and packing is not None else None

    def rows_of(t: Tensor | None, name: str) -> Tensor | None:  # [B or 1, S] -> [R]
        if t is None:
            return None
        t = read_ids(t, name, B, S, device)
        flat = t.reshape(-1)
        return flat if cells is None else flat.index_select(0, cells)

    positions = rows_of(arguments.get("position_ids"), "position_ids")
    if positions is None:
        limit = embeddings.position_embeddings.weight.shape[0]
        if limit < S:
            raise ValueError(f"input of length {S}: expected at most max_position_embeddings={limit} tokens; truncate it")
        positions = model.family.positions(B, S, 0, packing if drop else None, ids, device)
    if ids is not None:
        row_ids = ids.reshape(-1) if cells is None else ids.reshape(-1).index_select(0, cells)
    else:
        row_ids = column_indices(1, B * S, device) if cells is None else cells

    cu_seqlens = packing.cu_seqlens if drop and packing is not None else uniform_cu_seqlens(B, S, device)
    longest = packing.longest if drop and packing is not None else S
    attention: Attention
    # What attention reads and gives is coarser than bfloat16 in int8. A decoder's is not rounded: its steps on a cache agree with this.
    rounded = getattr(embeddings.word_embeddings, "bfloat16_attention", False) and not causal
    blank = None
    if plain:
        real = mask.ne(0).to(device) if packing is not None and mask is not None else None
        if visible is None:
            visible = visible_keys(real, S if causal else 0, eager, dtype, device)
        attention = MaskedAttention(B, visible, head_masks, needs.probabilities)
        if real is not None and not keep:
            blank = ~real
    elif packing is not None and not drop:
        attention = VarlenAttention(
            cu_seqlens, packing.cu_seqlens, longest, packing.longest, key_rows=packing.indices, bfloat16_products=rounded
        )
    else:
        attention = VarlenAttention(cu_seqlens, cu_seqlens, longest, longest, causal, bfloat16_products=rounded)

    rows = GraphInputs(row_ids, words, rows_of(arguments.get("token_type_ids"), "token_type_ids"), positions, attention)
    if encoder is not None and plain:
        visible = encoder.visible if encoder.visible is not None else visible_keys(encoder.real, 0, eager, dtype, device)
        rows.encoder_rows, rows.cross_attention = encoder.rows, MaskedAttention(B, visible, head_masks, needs.probabilities)
    elif encoder is not None:
        rows.encoder_rows, rows.cross_attention = encoder.packed(B, cu_seqlens, longest)
    return PackedBatch(rows, B, S, cells, blank, cu_seqlens[:-1].long() if drop else uniform_first_rows(B, S, device))


def visible_keys(real: Tensor | None, causal: int, eager: bool, dtype: torch.dtype, device: torch.device) -> Tensor | None:
    """[B, 1, S or 1, S] from real [B, S] bool and, causal, the length S; as eager attention's finite numbers where asked."""
    visible = None if real is None else real[:, None, None, :]
    if causal:
        lower = torch.ones(causal, causal, dtype=torch.bool, device=device).tril()
        visible = lower if visible is None else visible & lower
    if visible is None or not eager:
        return visible
    return torch.zeros(visible.shape, dtype=dtype, device=device).masked_fill(~visible, torch.finfo(dtype).min)
