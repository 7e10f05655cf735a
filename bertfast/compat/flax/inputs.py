"""What a Flax call's arguments mean: everything is cast to int32, what broadcasts is broadcast, and no lookup fails.

Shape letters: B batch, S length, L layers, N heads, H hidden, Se encoder length, C cache length, Sk keys (S or C).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bertfast.batch.masks import integer_range
from bertfast.compat import arrays
from bertfast.compat.arrays import to_torch
from bertfast.compat.dense import gather_words
from bertfast.runtime.config_access import setting

# Added where a query may not look: large enough that no score is left beside it, so a query that may look nowhere looks
# everywhere alike. Finite, as Flax's: an infinity would make such a row NaN.
HIDDEN = torch.finfo(torch.float32).min


@dataclass(slots=True)
class Inputs:
    """The token inputs of one call, read. All ids are int64, of shape [B, S]."""

    shape: tuple[int, int]
    input_ids: Tensor
    token_type_ids: Tensor | None
    position_ids: Tensor | None  # None: 0 .. S - 1
    attention_mask: Tensor | None  # bool, of a shape that broadcasts to [B, Sk]
    in_range: bool
    whole: bool = False  # the mask is True throughout


def read_inputs(values: Mapping[str, Any], config: Any, device: torch.device) -> Inputs:
    given = values["input_ids"]
    others = ("token_type_ids", "position_ids", "attention_mask")
    if not arrays.is_array(given) and (given is None or any(values[name] is None for name in others)):
        raise TypeError(
            f"input_ids: got {type(given).__name__}, expected an array [batch, length] (the other inputs are made like it); "
            "wrap a list in np.array(...)"
        )
    ids = as_int32(given, "input_ids", device)
    if ids.dim() != 2:
        raise ValueError(f"input_ids: got shape {tuple(ids.shape)}, expected [batch, length]")
    if ids.numel() == 0:
        raise ValueError(f"input_ids: got shape {tuple(ids.shape)}, expected at least one token")
    types = read_like(values["token_type_ids"], "token_type_ids", ids.shape, device)
    positions = read_like(values["position_ids"], "position_ids", ids.shape, device)
    mask, whole, decoder = values["attention_mask"], False, bool(setting(config, "is_decoder"))
    if mask is not None:
        mask, whole = attended(mask, "attention_mask", device, decoder)
    S, P = ids.shape[1], setting(config, "max_position_embeddings")
    if decoder and S > P:
        raise ValueError(f"input_ids: length {S}, and a decoder's causal mask has {P} positions (max_position_embeddings)")
    inside = within(ids, setting(config, "vocab_size")) and (types is None or within(types, setting(config, "type_vocab_size")))
    inside = inside and (S <= P if positions is None else within(positions, P))
    return Inputs((ids.shape[0], S), ids, types, positions, mask, inside, whole)


def read_like(value: Any, name: str, shape: torch.Size, device: torch.device) -> Tensor | None:
    if value is None:
        return None
    read = as_int32(value, name, device)
    if read.shape == shape:
        return read
    if not fits(read, tuple(shape)):
        raise ValueError(f"{name}: got shape {tuple(read.shape)}, expected {tuple(shape)}, or what broadcasts to it")
    return read.expand(shape)


_NARROW = frozenset([torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32])  # their values are int32's as they are


def as_int32(value: Any, name: str, device: torch.device) -> Tensor:
    """As jnp.array(value, dtype="i4"): a fraction is dropped, True is 1, a large number wraps. int64, which every lookup here takes."""
    tensor = on(device, value, name)
    if tensor.dtype in _NARROW:
        return tensor.to(torch.int64)
    if tensor.dtype is torch.int64 and fit_int32(tensor):
        return tensor
    return tensor.to(torch.int32).to(torch.int64)


def fit_int32(tensor: Tensor) -> bool:
    """Whether integers are int32's as they are."""
    if tensor.numel() == 0:
        return True
    low, high = integer_range(tensor)
    return low >= -(2**31) and high < 2**31


_SEEN = torch.ones((), dtype=torch.bool, device="cpu")


def attended(mask: Any, name: str, device: torch.device, decoder: bool) -> tuple[Tensor, bool]:
    """Which tokens a mask lets be seen: int32(mask) > 0; in a decoder, where 4.37 combined it with the causal one, all but 0. And whether
    that is known to be all of them."""
    tensor = on(device, mask, name)
    if tensor.is_cpu and (tensor.dtype in _NARROW or tensor.dtype is torch.int64) and tensor.numel():
        low, high = integer_range(tensor)
        if low > 0 and high < 2**31:
            return _SEEN.expand(tensor.shape), True
    if tensor.dtype not in _NARROW:
        tensor = tensor.to(torch.int32)
    return tensor.ne(0) if decoder else tensor.gt(0), False


def on(device: torch.device, value: Any, name: str) -> Tensor:
    tensor = to_torch(arrays.through_numpy(value, device), name)
    if tensor.is_complex():
        raise TypeError(f"{name}: got {tensor.dtype}, expected numbers")
    return tensor if tensor.device == device else tensor.to(device)


def fits(value: Tensor, shape: tuple[int, ...]) -> bool:
    """Whether the value broadcasts to the shape."""
    sizes = zip(reversed(value.shape), reversed(shape), strict=False)
    return value.dim() <= len(shape) and all(got in (1, want) for got, want in sizes)


def within(ids: Tensor, rows: int) -> bool:
    low, high = integer_range(ids)
    return low >= 0 and high < rows


def read_mask(mask: Tensor, name: str, shape: tuple[int, int]) -> Tensor:
    """[1 or B, 1 or Sk] bool, from what 4.37 could broadcast: [B, Sk], 1 in place of either, or [Sk]."""
    if mask.shape == shape:
        return mask
    if mask.dim() > 2 or not fits(mask, shape):
        raise ValueError(f"{name}: got shape {tuple(mask.shape)}, expected {shape}, or 1 in place of either")
    return mask.reshape((1,) * (2 - mask.dim()) + tuple(mask.shape))


def additive(visible: Tensor | None) -> Tensor | None:
    """0 where a query may look, HIDDEN elsewhere."""
    return None if visible is None else torch.zeros(visible.shape, device=visible.device).masked_fill(~visible, HIDDEN)


def read_head_mask(value: Any, config: Any, device: torch.device, dtype: torch.dtype) -> list[Tensor] | None:
    """[L, N] or [L, 1], cast to int32 -> a layer each, [1, N or 1, 1, 1]."""
    if value is None:
        return None
    L, N = config.num_hidden_layers, config.num_attention_heads
    mask = as_int32(value, "head_mask", device)
    if mask.dim() != 2 or mask.shape[0] != L or mask.shape[1] not in (1, N):
        raise ValueError(f"head_mask: got shape {tuple(mask.shape)}, expected ({L}, {N}), a row for each layer")
    return list(mask.to(dtype)[:, None, :, None, None])


def read_encoder(states: Any, mask: Any, config: Any, B: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """encoder_hidden_states [B, Se, H], and which of them are real: bool [1 or B, 1 or Se]. The mask is not cast: 0.5 is real."""
    read = to_torch(states, "encoder_hidden_states").to(device, dtype)
    if read.dim() != 3 or read.shape[0] != B or read.shape[2] != config.hidden_size:
        raise ValueError(f"encoder_hidden_states: got shape {tuple(read.shape)}, expected ({B}, length, {config.hidden_size})")
    if mask is None:
        return read, None
    real = to_torch(mask, "encoder_attention_mask").to(device)
    return read, read_mask(real.gt(0) if real.dtype != torch.bool else real, "encoder_attention_mask", (B, read.shape[1]))


def looked_up(inputs: Inputs, embeddings: Any, config: Any) -> tuple[Tensor | None, Tensor | None, Tensor, Tensor | None]:
    """input_ids or the words themselves, token_type_ids and position_ids that lie in their tables; NaN words where one did not."""
    positions = inputs.position_ids
    if positions is None:
        positions = torch.arange(inputs.shape[1], device=inputs.input_ids.device).expand(inputs.shape)
    if inputs.in_range:
        return inputs.input_ids, None, positions, inputs.token_type_ids
    types = inputs.token_type_ids if inputs.token_type_ids is not None else torch.zeros_like(inputs.input_ids)
    lookups = (
        (inputs.input_ids, config.vocab_size), (positions, config.max_position_embeddings), (types, config.type_vocab_size)
    )  # fmt: skip
    (_, positions, types), words = gather_words(embeddings, inputs.shape, *lookups)
    return None, words, positions, types
