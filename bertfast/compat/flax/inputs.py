"""The arguments of a Flax call: ids and masks are cast to int32 and broadcast; ids out of range do not raise.

Shape letters: B batch, S length, L layers, N heads, H hidden, Se encoder length, C cache length, Sk keys (S or C).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bertfast.batch.masks import integer_range
from bertfast.compat import arrays
from bertfast.compat.arrays import to_torch
from bertfast.compat.dense import gather_words
from bertfast.runtime.config_access import setting

if TYPE_CHECKING:
    from transformers import PreTrainedConfig
    from transformers.models.bert.modeling_bert import BertEmbeddings

# Added to the scores of masked keys. Any score vanishes beside it, so a query whose keys are all masked attends uniformly; finite, as in
# Flax, since -inf would make that row NaN.
MASKED_SCORE = torch.finfo(torch.float32).min


@dataclass(slots=True)
class FlaxInputs:
    """The token inputs of one call. Ids are int64 [B, S]."""

    shape: tuple[int, int]
    input_ids: Tensor
    token_type_ids: Tensor | None
    position_ids: Tensor | None  # None: 0 .. S - 1
    attention_mask: Tensor | None  # bool, of a shape that broadcasts to [B, Sk]
    in_range: bool  # every id lies in its table
    mask_is_ones: bool = False  # known to be True everywhere


def read_inputs(values: Mapping[str, object], config: "PreTrainedConfig", device: torch.device) -> FlaxInputs:
    """The token inputs as tensors on the device. Raises TypeError or ValueError, naming the argument."""
    given = values["input_ids"]
    others = ("token_type_ids", "position_ids", "attention_mask")
    if not arrays.is_array(given) and (given is None or any(values[name] is None for name in others)):
        raise TypeError(
            f"input_ids: got {type(given).__name__}, expected an array [batch, length] (the other inputs get its shape); "
            "wrap a list in np.array(...)"
        )
    ids = as_int32(given, "input_ids", device)
    if ids.dim() != 2:
        raise ValueError(f"input_ids: got shape {tuple(ids.shape)}, expected [batch, length]")
    if ids.numel() == 0:
        raise ValueError(f"input_ids: got shape {tuple(ids.shape)}, expected at least one token")
    types = read_like(values["token_type_ids"], "token_type_ids", ids.shape, device)
    positions = read_like(values["position_ids"], "position_ids", ids.shape, device)
    mask, mask_is_ones, decoder = values["attention_mask"], False, bool(setting(config, "is_decoder"))
    if mask is not None:
        mask, mask_is_ones = read_visible(mask, "attention_mask", device, decoder)
    S, P = ids.shape[1], setting(config, "max_position_embeddings")
    if decoder and S > P:
        raise ValueError(f"input_ids: length {S} exceeds max_position_embeddings {P}, the size of a decoder's causal mask")
    inside = within(ids, setting(config, "vocab_size")) and (types is None or within(types, setting(config, "type_vocab_size")))
    inside = inside and (S <= P if positions is None else within(positions, P))
    return FlaxInputs((ids.shape[0], S), ids, types, positions, mask, inside, mask_is_ones)


def read_like(value: object, name: str, shape: torch.Size, device: torch.device) -> Tensor | None:
    """Ids of the shape of input_ids, broadcast if needed. Raises ValueError for another shape."""
    if value is None:
        return None
    read = as_int32(value, name, device)
    if read.shape == shape:
        return read
    if not broadcasts_to(read, tuple(shape)):
        raise ValueError(f"{name}: got shape {tuple(read.shape)}, expected {tuple(shape)} or a shape that broadcasts to it")
    return read.expand(shape)


_NARROW = frozenset([torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32])  # int32 represents all their values


def as_int32(value: object, name: str, device: torch.device) -> Tensor:
    """As jnp.array(value, dtype="i4"): fractions are truncated, large numbers wrap. Returned as int64, for lookups."""
    tensor = to_device(value, name, device)
    if tensor.dtype in _NARROW:
        return tensor.to(torch.int64)
    if tensor.dtype is torch.int64 and fits_int32(tensor):
        return tensor
    return tensor.to(torch.int32).to(torch.int64)


def fits_int32(tensor: Tensor) -> bool:
    """Whether int32 represents all of these integers."""
    if tensor.numel() == 0:
        return True
    low, high = integer_range(tensor)
    return low >= -(2**31) and high < 2**31


_TRUE = torch.ones((), dtype=torch.bool, device="cpu")


def read_visible(mask: object, name: str, device: torch.device, decoder: bool) -> tuple[Tensor, bool]:
    """(bool mask, whether it is known to be True everywhere). A token is visible where int32(mask) > 0; in a decoder where != 0, since
    4.37 combined the mask with the causal one there."""
    tensor = to_device(mask, name, device)
    if tensor.is_cpu and (tensor.dtype in _NARROW or tensor.dtype is torch.int64) and tensor.numel():
        low, high = integer_range(tensor)
        if low > 0 and high < 2**31:
            return _TRUE.expand(tensor.shape), True
    if tensor.dtype not in _NARROW:
        tensor = tensor.to(torch.int32)
    return tensor.ne(0) if decoder else tensor.gt(0), False


def to_device(value: object, name: str, device: torch.device) -> Tensor:
    """The value as a tensor on the device. Raises TypeError for complex numbers."""
    tensor = to_torch(arrays.jax_to_numpy(value, device), name)
    if tensor.is_complex():
        raise TypeError(f"{name}: got {tensor.dtype}, expected numbers")
    return tensor if tensor.device == device else tensor.to(device)


def broadcasts_to(value: Tensor, shape: tuple[int, ...]) -> bool:
    """Whether the value broadcasts to the shape."""
    sizes = zip(reversed(value.shape), reversed(shape), strict=False)
    return value.dim() <= len(shape) and all(got in (1, want) for got, want in sizes)


def within(ids: Tensor, rows: int) -> bool:
    """Whether every id is a row of a table of `rows` rows."""
    low, high = integer_range(ids)
    return low >= 0 and high < rows


def read_mask(mask: Tensor, name: str, shape: tuple[int, int]) -> Tensor:
    """The mask as [1 or B, 1 or Sk], from the shapes that 4.37 broadcast: [B, Sk], 1 for either, or [Sk]. Raises ValueError for others."""
    if mask.shape == shape:
        return mask
    if mask.dim() > 2 or not broadcasts_to(mask, shape):
        raise ValueError(f"{name}: got shape {tuple(mask.shape)}, expected {shape}, or 1 for either")
    return mask.reshape((1,) * (2 - mask.dim()) + tuple(mask.shape))


def additive(visible: Tensor | None) -> Tensor | None:
    """0 where visible, MASKED_SCORE elsewhere."""
    return None if visible is None else torch.zeros(visible.shape, device=visible.device).masked_fill(~visible, MASKED_SCORE)


def read_head_mask(value: object, config: "PreTrainedConfig", device: torch.device, dtype: torch.dtype) -> list[Tensor] | None:
    """[L, N] or [L, 1], cast to int32 -> one [1, N or 1, 1, 1] per layer. Raises ValueError for another shape."""
    if value is None:
        return None
    L, N = config.num_hidden_layers, config.num_attention_heads
    mask = as_int32(value, "head_mask", device)
    if mask.dim() != 2 or mask.shape[0] != L or mask.shape[1] not in (1, N):
        raise ValueError(f"head_mask: got shape {tuple(mask.shape)}, expected ({L}, {N}), one row per layer")
    return list(mask.to(dtype)[:, None, :, None, None])


def read_encoder(
    states: object, mask: object, config: "PreTrainedConfig", B: int, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor | None]:
    """encoder_hidden_states [B, Se, H] and their bool mask [1 or B, 1 or Se], True where > 0. This mask is not cast: 0.5 is True."""
    read = to_torch(states, "encoder_hidden_states").to(device, dtype)
    if read.dim() != 3 or read.shape[0] != B or read.shape[2] != config.hidden_size:
        raise ValueError(f"encoder_hidden_states: got shape {tuple(read.shape)}, expected ({B}, length, {config.hidden_size})")
    if mask is None:
        return read, None
    real = to_torch(mask, "encoder_attention_mask").to(device)
    return read, read_mask(real.gt(0) if real.dtype != torch.bool else real, "encoder_attention_mask", (B, read.shape[1]))


def embedding_inputs(
    inputs: FlaxInputs, embeddings: "BertEmbeddings", config: "PreTrainedConfig"
) -> tuple[Tensor | None, Tensor | None, Tensor, Tensor | None]:
    """(input_ids, word vectors, position_ids, token_type_ids) for the batch: with an id out of range, word vectors with NaN rows in place
    of input_ids, and the other ids moved into their tables."""
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
