"""The inputs of one call, read and checked, with or without a KV cache.

Shape letters: B batch, S new columns, P cached columns, N heads, H embedding size.
"""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bertfast.batch.checks import check_device, check_embedding_dtype, describe, read_head_mask, read_ids
from bertfast.batch.encoder_states import CrossInputs, read_cross_inputs
from bertfast.batch.masks import PackedMask, read_attention_mask, read_mask
from bertfast.runtime.config_access import is_causal, setting
from bertfast.runtime.model_types import BaseModel

Arguments = Mapping[str, object]  # of a forward, as the caller passed them
CheckedArguments = Mapping[str, Any]  # the same for code that need not check: read_inputs has, or torch's loss functions do


class Inputs(NamedTuple):  # a frozen dataclass of so many fields would cost microseconds a call
    """What a call reads, as tensors on the model's device, in the caller's padded shapes."""

    batch: int  # B
    columns: int  # S
    past: int  # P; 0 without a cache
    keys: int  # columns that attention reads: P + S, or what a static cache holds where a 4-D mask spans that
    ids: Tensor | None  # [B, S] int64
    words: Tensor | None  # [B * S, H]: inputs_embeds, where they take the place of ids
    token_type_ids: Tensor | None  # [B, S] int64
    position_ids: Tensor | None  # [B, S] int64
    mask: Tensor | None  # [B, P + S]: a 2-D mask that pads something; on its own device
    packed_keys: PackedMask | None  # the same, packed; None: no column is padding
    packed: PackedMask | None  # the part of the new columns; None: none of them is padding
    visible: Tensor | None  # a 3-D or 4-D mask, as 4-D [B or 1, N or 1, S or 1, keys]
    head_masks: list[Tensor] | None  # one a layer
    cross: CrossInputs | None
    causal: bool
    eager: bool  # transformers' eager masks are finite: a row that sees nothing attends everywhere; under sdpa it gives zeros
    device: torch.device
    dtype: torch.dtype

    def real(self) -> Tensor | None:  # [B, P + S] bool on the device: which columns are real; None: all
        return None if self.mask is None else self.mask.ne(0).to(self.device)


def read_inputs(arguments: Arguments, model: BaseModel, past: int = 0, static_lengths: Collection[int] | None = None) -> Inputs:
    """Reads and checks what transformers' BertModel.forward documents.

    model: the model without a head. past: columns that a cache holds already. static_lengths: the lengths of static cache layers; None
    without a cache.
    Raises ValueError, naming the argument, where a shape, dtype or combination makes no sense.
    """
    config, weight = model.config, model.embeddings.position_embeddings.weight
    device, dtype = weight.device, weight.dtype
    ids, words, B, S = read_tokens(arguments, weight)
    head_masks = read_head_mask(arguments.get("head_mask"), config, device, dtype)
    keys = past + S
    given, mask, visible, packed_keys, packed = arguments.get("attention_mask"), None, None, None, None
    if given is not None:
        given, keys = fit_mask(given, keys, static_lengths)
    if isinstance(given, Tensor) and is_overlooked(given, B, keys, is_causal(config)):
        given = None
    if given is not None:
        read = read_attention_mask(given, "attention_mask", B, setting(config, "num_attention_heads"), S, keys, device, dtype)
        if read.dim() == 4:
            visible = read
        elif (packed_keys := read_mask(read, device)) is not None:
            mask = read
            packed = packed_keys if past == 0 else read_mask(read[:, past:], device)
    states, encoder_mask = arguments.get("encoder_hidden_states"), arguments.get("encoder_attention_mask")
    cross = None if states is None else read_cross_inputs(states, encoder_mask, B, S, config, device, dtype)
    types, positions = arguments.get("token_type_ids"), arguments.get("position_ids")
    return Inputs(
        B, S, past, keys, ids, words,
        None if types is None else read_ids(types, "token_type_ids", B, S, device),
        None if positions is None else read_ids(positions, "position_ids", B, S, device),
        mask, packed_keys, packed, visible, head_masks, cross,
        is_causal(config), setting(config, "_attn_implementation") == "eager", device, dtype,
    )  # fmt: skip


def read_tokens(arguments: Arguments, weight: Tensor) -> tuple[Tensor | None, Tensor | None, int, int]:
    """input_ids [B, S], or inputs_embeds as [B * S, H]; and B and S."""
    ids, embeds = arguments.get("input_ids"), arguments.get("inputs_embeds")
    if (ids is None) == (embeds is None):
        raise ValueError(
            f"You must specify exactly one of input_ids or inputs_embeds, got {'both' if ids is not None else 'neither'}; "
            "pass token ids or their embeddings"
        )
    if ids is not None:
        if not isinstance(ids, Tensor) or ids.dim() != 2:
            raise ValueError(f"input_ids: got {describe(ids)}, expected a tensor [batch, length]")
        B, S = ids.shape
        return read_ids(ids, "input_ids", B, S, weight.device), None, B, S
    H = weight.shape[1]
    if not isinstance(embeds, Tensor) or embeds.dim() != 3 or embeds.shape[2] != H:
        raise ValueError(f"inputs_embeds: got {describe(embeds)}, expected a tensor [batch, length, {H}]")
    check_embedding_dtype(embeds, "inputs_embeds", weight.dtype)
    check_device(embeds, "inputs_embeds", weight.device)
    return None, embeds.reshape(-1, H).contiguous(), embeds.shape[0], embeds.shape[1]


def is_overlooked(mask: Tensor, B: int, keys: int, causal: bool) -> bool:
    """Whether a 2-D mask of a wrong shape masks nothing: transformers' encoders ask for its shape only where it has a 0."""
    return mask.dim() == 2 and tuple(mask.shape) != (B, keys) and not causal and mask.numel() > 0 and bool(mask.all())


def fit_mask(mask: object, keys: int, static_lengths: Collection[int] | None) -> tuple[object, int]:
    """The mask, and how many key columns it must have. With a cache, a 2-D mask may be longer, and a 4-D one span a static cache."""
    if not isinstance(mask, Tensor) or static_lengths is None:
        return mask, keys
    if mask.dim() == 2 and mask.shape[1] > keys:
        return mask[:, :keys], keys  # made for the whole generation
    if mask.dim() == 4 and mask.shape[-1] in static_lengths:
        return mask, mask.shape[-1]
    return mask, keys
