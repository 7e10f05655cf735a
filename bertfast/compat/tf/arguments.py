"""The arguments of a TF call, read and checked. Errors name the argument.

The first argument is an array, a list or tuple of inputs in the documented order, or a dict; the rest are keywords. Shapes broadcast
as in TF's embedding sum and attention scores.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bertfast.batch.masks import integer_range
from bertfast.compat.arrays import is_array, jax_to_numpy, to_torch
from bertfast.runtime.config_access import setting

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def merge_arguments(names: Sequence[str], given: Mapping[str, object]) -> dict[str, Any]:
    """The arguments by name. given: the call's arguments, input_ids in any of its forms. Raises ValueError or TypeError."""
    first = given["input_ids"]
    values = dict(given, input_ids=None)
    if isinstance(first, (list, tuple)):
        if len(first) > len(names):
            raise ValueError(f"input_ids: got a list of {len(first)} inputs, expected at most {len(names)}: {', '.join(names)}")
        for name, value in zip(names, first, strict=False):
            if isinstance(value, (list, tuple)) or (name == "input_ids" and value is not None and not is_array(value)):
                raise ValueError(
                    f"input_ids: a list is read as inputs in the order {', '.join(names)}, but its entry for "
                    f"{name} is a {type(value).__name__}; pass token ids as an array"
                )
            values[name] = value
        return values
    if isinstance(first, Mapping):
        for name, value in first.items():
            if name not in values:
                raise TypeError(f"got an unexpected input {name!r}; expected one of {', '.join(names)}")
            values[name] = value
        return values
    if first is not None and not is_array(first):
        raise ValueError(f"input_ids: got a {type(first).__name__}, expected an array, a list of arrays or a dict of them")
    values["input_ids"] = first
    return values


@dataclass(slots=True)
class TFInputs:
    """The inputs of one call."""

    shape: tuple[int, int]  # B, S
    input_ids: Tensor | None  # [B, S] int64
    inputs_embeds: Tensor | None  # [B, S, H] float32
    token_type_ids: Tensor | None  # [B, S] int64
    position_ids: Tensor | None  # [B, S] int64; None: 0 .. S - 1
    attention_mask: Tensor | None  # [1 or B, 1 or S], any number dtype


def read_inputs(values: Mapping[str, Any], config: "PreTrainedConfig", device: torch.device) -> TFInputs:
    """The inputs as tensors on the device. Raises ValueError for a wrong shape or dtype and for an id out of range."""
    ids, embeds = values["input_ids"], values["inputs_embeds"]
    if ids is not None and embeds is not None:
        raise ValueError("input_ids and inputs_embeds: got both, expected one of them")
    if ids is None and embeds is None:
        raise ValueError("input_ids and inputs_embeds: got neither, expected one of them")
    if ids is not None:
        ids = read_ids(ids, "input_ids", setting(config, "vocab_size"), device)
        if ids.dim() != 2:
            raise ValueError(f"input_ids: got shape {tuple(ids.shape)}, expected [batch, length]")
        leading = ids.shape[0], ids.shape[1]
    else:
        embeds = to_torch(embeds, "inputs_embeds").to(device, torch.float32)
        if embeds.dim() != 3 or embeds.shape[2] != config.hidden_size:
            raise ValueError(f"inputs_embeds: got shape {tuple(embeds.shape)}, expected [batch, length, {config.hidden_size}]")
        leading = embeds.shape[0], embeds.shape[1]
    types = read_optional(values["token_type_ids"], "token_type_ids", setting(config, "type_vocab_size"), leading, device)
    positions = read_optional(values["position_ids"], "position_ids", setting(config, "max_position_embeddings"), leading, device)
    if positions is None and leading[1] > setting(config, "max_position_embeddings"):
        raise ValueError(f"input_ids: length {leading[1]}, but the model has {config.max_position_embeddings} positions")
    mask = values["attention_mask"]
    if mask is not None:
        mask = to_torch(jax_to_numpy(mask, device), "attention_mask").to(device)
        if mask.dim() != 2 or mask.shape[0] not in (1, leading[0]) or mask.shape[1] not in (1, leading[1]):
            raise ValueError(f"attention_mask: got shape {tuple(mask.shape)}, expected {leading}, or 1 for either")
        if mask.dtype == torch.bool and config.is_decoder:
            raise ValueError("attention_mask: got bool, expected numbers, since a decoder multiplies it with its causal mask")
    return TFInputs(leading, ids, embeds, types, positions, mask)


def read_ids(value: object, name: str, rows: int, device: torch.device) -> Tensor:
    ids = to_torch(jax_to_numpy(value, device), name)
    if ids.dtype not in (torch.int32, torch.int64) or is_unsigned(value):
        raise ValueError(f"{name}: got {getattr(value, 'dtype', ids.dtype)}, expected int32 or int64")
    if ids.numel():
        low, high = integer_range(ids)
        if low < 0 or high >= rows:
            raise ValueError(f"{name}: got {low if low < 0 else high}, expected 0 <= {name} < {rows}, the size of its embedding table")
    return ids.to(device, torch.int64)


def is_unsigned(value: object) -> bool:
    """Whether an array has an unsigned dtype; its tensor may be signed."""
    dtype = getattr(value, "dtype", None)
    kind = getattr(dtype, "kind", None)  # NumPy's and JAX's
    return bool(getattr(dtype, "is_unsigned", False)) if kind is None else kind == "u"


def read_optional(value: object, name: str, rows: int, shape: tuple[int, int], device: torch.device) -> Tensor | None:
    if value is None:
        return None
    ids = read_ids(value, name, rows, device)
    if ids.dim() > 2 or any(got not in (1, want) for got, want in zip(reversed(ids.shape), reversed(shape), strict=False)):
        raise ValueError(f"{name}: got shape {tuple(ids.shape)}, expected {shape} or a shape that broadcasts to it")
    return ids.expand(shape)


def read_head_mask(value: object, config: "PreTrainedConfig", device: torch.device) -> list[Tensor] | None:
    """[N] for all layers, or [L, N] -> one float32 [1, N, 1, 1] per layer, which multiplies the probabilities."""
    if value is None:
        return None
    L, N = config.num_hidden_layers, config.num_attention_heads
    mask = to_torch(value, "head_mask").to(device, torch.float32)
    if tuple(mask.shape) not in ((N,), (L, N)):
        raise ValueError(f"head_mask: got shape {tuple(mask.shape)}, expected ({N},) for all layers or ({L}, {N})")
    return list(mask.expand(L, N)[:, None, :, None, None])


def additive_mask(mask: Tensor | None, causal: bool, S: int) -> Tensor | None:
    """(1 - mask) * -10000 as float32 [B, 1, S or 1, S]; causal: the mask is 0 above the diagonal. None: nothing is masked."""
    if mask is None and not causal:
        return None
    device = mask.device if mask is not None else None
    visible = torch.ones(1, 1, dtype=torch.float32, device=device) if mask is None else mask.to(torch.float32)
    visible = visible[:, None, None, :]
    if causal:
        visible = visible * torch.ones(S, S, dtype=torch.float32, device=device).tril()
    return (1.0 - visible) * -10000.0
