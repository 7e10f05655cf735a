"""What a BERT call reads, checked."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bertfast import ops
from bertfast.batch.attention import VarlenAttention, uniform_cu_seqlens
from bertfast.runtime.config_access import setting
from bertfast.runtime.native import _C

Arguments = Mapping[str, Any]


_MASK_KINDS = {
    torch.bool: _C.MASK_BOOL,
    torch.uint8: _C.MASK_UINT8,
    torch.int8: _C.MASK_INT8,
    torch.int16: _C.MASK_INT16,
    torch.int32: _C.MASK_INT32,
    torch.int64: _C.MASK_INT64,
    torch.float16: _C.MASK_FLOAT16,
    torch.bfloat16: _C.MASK_BFLOAT16,
    torch.float32: _C.MASK_FLOAT32,
    torch.float64: _C.MASK_FLOAT64,
}


@dataclass(frozen=True, slots=True)
class PackedMask:
    """A 2-D mask, read: which cells are real, and the boundaries between sequences once the others are gone."""

    cu_seqlens: Tensor  # [B + 1] int32
    indices: Tensor  # [T] int64
    positions: Tensor  # [T] int64: the column of each real token
    longest: int
    shortest: int
    first_column_kept: bool


def mask_is_full(mask: Tensor) -> bool:
    """Whether a mask [B, S] on the CPU, of one of _MASK_KINDS, is known to have no 0: one whose rows have gaps has to be copied first."""
    kind, (B, S) = _MASK_KINDS.get(mask.dtype), mask.shape
    row, column = mask.stride()
    if kind is None or (column != 1 and S > 1):
        return False
    return _C.mask_is_full(mask.data_ptr(), kind, B, S, row)


def integer_range(values: Tensor) -> tuple[int, int]:
    """The lowest and the highest of integers or bools, of which there has to be one."""
    kind = _MASK_KINDS.get(values.dtype)
    if kind is None or kind > _C.MASK_INT64 or not values.is_cpu or not values.is_contiguous():
        low, high = torch.aminmax(values)
        return int(low), int(high)
    return _C.integer_range(values.data_ptr(), kind, values.numel())


def read_mask(mask: Tensor, device: torch.device) -> PackedMask | None:
    """mask: [B, S], any number type; every value but 0 is a real token, as in transformers. None: nothing is padded. The answer lies
    on `device`; a mask that lies there too is waited for, once."""
    host = mask if mask.device.type == "cpu" else mask.ne(0).cpu()
    if host.dtype not in _MASK_KINDS:
        raise ValueError(f"attention_mask: got {mask.dtype}, expected a bool, integer or floating tensor")
    if host.shape[1] and host.stride(1) != 1:
        host = host.contiguous()
    B, S = host.shape
    if mask_is_full(host):
        return None
    # One buffer for all, pinned where a GPU is to read it: one copy, and nobody waits for it. Each part begins at a multiple of 16 bytes,
    # on which kernels are specialised. The device by name: torch.set_default_device may say another.
    places = (B * S + 1) // 2 * 2
    buffer = torch.empty(2 * places + B // 2 + 1, dtype=torch.int64, device="cpu", pin_memory=device.type == "cuda")
    at = buffer.data_ptr()
    total, longest, shortest, first_column_kept = _C.pack_mask(
        host.data_ptr(), _MASK_KINDS[host.dtype], B, S, host.stride(0), at + 16 * places, at, at + 8 * places
    )
    buffer = buffer.to(device, non_blocking=True)
    indices, positions = buffer.narrow(0, 0, total), buffer.narrow(0, places, total)
    cu_seqlens = buffer.narrow(0, 2 * places, B // 2 + 1).view(torch.int32).narrow(0, 0, B + 1)
    return PackedMask(cu_seqlens, indices, positions, longest, shortest, first_column_kept)


def read_input(arguments: Arguments, embeddings: Any, config: Any) -> tuple[Tensor | None, Tensor | None, int, int]:
    """input_ids [B, S], or inputs_embeds as a table [B * S, H]; and B and S."""
    ids, embeds = arguments.get("input_ids"), arguments.get("inputs_embeds")
    if (ids is None) == (embeds is None):
        raise ValueError(
            f"You must specify exactly one of input_ids or inputs_embeds, got {'both' if ids is not None else 'neither'}; "
            "pass token ids, or their embeddings, but not the two together"
        )
    weight = embeddings.position_embeddings.weight
    if ids is not None:
        if not isinstance(ids, Tensor) or ids.dim() != 2:
            raise ValueError(f"input_ids: got {describe(ids)}, expected a tensor [batch, length]")
        B, S = ids.shape
        return read_ids(ids, "input_ids", B, S, weight.device), None, B, S
    assert embeds is not None
    H = weight.shape[1]
    if not isinstance(embeds, Tensor) or embeds.dim() != 3 or embeds.shape[2] != H:
        raise ValueError(f"inputs_embeds: got {describe(embeds)}, expected a tensor [batch, length, {H}]")
    if embeds.dtype != weight.dtype:
        raise ValueError(f"inputs_embeds: got {embeds.dtype}, expected {weight.dtype} as the model's weights; cast one of them")
    check_device(embeds, "inputs_embeds", weight.device)
    return None, embeds.reshape(-1, H).contiguous(), embeds.shape[0], embeds.shape[1]


def read_ids(ids: Any, name: str, B: int, S: int, device: torch.device) -> Tensor:  # -> [B, S] int64, contiguous
    if not isinstance(ids, Tensor):
        raise ValueError(f"{name}: got {describe(ids)}, expected a tensor of integers")
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise ValueError(f"{name}: got {ids.dtype}, expected integers (torch.int64)")
    if ids.shape != (B, S):
        if ids.dim() == 1 and ids.shape[0] == S:
            ids = ids[None]
        if ids.dim() != 2 or ids.shape[1] != S or ids.shape[0] not in (1, B):
            raise ValueError(f"{name}: got shape {tuple(ids.shape)}, expected ({B}, {S}), one for each token of the input")
        ids = ids.expand(B, S)
    check_device(ids, name, device)
    return ids.to(torch.int64).contiguous()


def check_device(t: Tensor, name: str, device: torch.device) -> None:
    if t.device != device:
        raise ValueError(f"{name}: got a tensor on {t.device}, expected one on {device}, where the model's weights are")


def read_attention_mask(mask: Any, name: str, B: int, N: int, Sq: int, Sk: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """[B, Sk] as it is, where it is; [B, Sq, Sk] (every value but 0 sees) and [B, 1 or N, Sq, Sk] (bool sees, float is added) as 4-D."""
    if not isinstance(mask, Tensor):
        raise ValueError(f"{name}: got {describe(mask)}, expected a tensor")
    got, shape = f"{name}: got shape {tuple(mask.shape)}", tuple(mask.shape)
    if mask.dim() == 2:
        if shape != (B, Sk):
            raise ValueError(f"{got}, expected ({B}, {Sk}), one value for each token")
        return mask
    if mask.dim() == 3:
        if shape not in ((B, Sq, Sk), (B, 1, Sk)):
            raise ValueError(f"{got}, expected ({B}, {Sq}, {Sk}), one value for each query and key")
        return mask.to(device).ne(0)[:, None]
    if mask.dim() != 4 or shape[0] not in (1, B) or shape[1] not in (1, N) or shape[2] not in (1, Sq) or shape[3] != Sk:
        raise ValueError(f"{got}, expected ({B}, {Sk}), ({B}, {Sq}, {Sk}) or ({B}, 1, {Sq}, {Sk})")
    if mask.dtype != torch.bool and not mask.is_floating_point():
        raise ValueError(f"{name}: got a 4-D mask of {mask.dtype}, expected torch.bool (True sees) or {dtype} (added to the scores)")
    return mask.to(device)


def read_head_mask(head_mask: Any, config: Any, device: torch.device, dtype: torch.dtype) -> list[Tensor] | None:
    """[N] for all layers or [L, N] a layer, as transformers documented until 4.x -> L tensors [1, N, 1, 1]."""
    if head_mask is None:
        return None
    L, N = config.num_hidden_layers, config.num_attention_heads
    if not isinstance(head_mask, Tensor) or tuple(head_mask.shape) not in ((N,), (L, N)):
        raise ValueError(f"head_mask: got {describe(head_mask)}, expected shape ({N},) for all layers or ({L}, {N})")
    return list(head_mask.to(device, dtype).expand(L, N)[:, None, :, None, None])


@dataclass(frozen=True, slots=True)
class CrossInputs:
    """What cross-attention reads: the other model's states, and which of them are real."""

    rows: Tensor  # [B * Se, H]
    length: int  # Se
    packing: PackedMask | None = None  # of a 2-D mask; None: all are real
    real: Tensor | None = None  # [B, Se] bool, where there is a packing
    visible: Tensor | None = None  # a 4-D mask

    @property
    def shortest(self) -> int:
        return self.length if self.packing is None else self.packing.shortest

    def packed(self, B: int, cu_seqlens_q: Tensor, longest_q: int) -> tuple[Tensor, VarlenAttention]:
        if self.packing is None:
            cu_seqlens = uniform_cu_seqlens(B, self.length, self.rows.device)
            return self.rows, VarlenAttention(cu_seqlens_q, cu_seqlens, longest_q, self.length)
        rows = ops.pack(self.rows, self.packing.indices)
        return rows, VarlenAttention(cu_seqlens_q, self.packing.cu_seqlens, longest_q, self.packing.longest)


def read_cross_inputs(arguments: Arguments, B: int, S: int, config: Any, device: torch.device, dtype: torch.dtype) -> CrossInputs | None:
    """encoder_hidden_states [B, Se, H] and encoder_attention_mask; None where there are none, or (as in transformers) no decoder."""
    states, mask = arguments.get("encoder_hidden_states"), arguments.get("encoder_attention_mask")
    if states is None or not setting(config, "is_decoder"):
        return None
    if not config.add_cross_attention:
        raise ValueError("encoder_hidden_states: this model has no cross-attention layers; build it with config.add_cross_attention=True")
    H = config.hidden_size
    if not isinstance(states, Tensor) or states.dim() != 3 or states.shape[0] != B or states.shape[2] != H:
        raise ValueError(
            f"encoder_hidden_states: got {describe(states)}, expected a tensor [{B}, length, {H}], one row of it for each input"
        )
    if states.dtype != dtype:
        raise ValueError(f"encoder_hidden_states: got {states.dtype}, expected {dtype} as the model's weights; cast one of them")
    check_device(states, "encoder_hidden_states", device)
    Se = states.shape[1]
    rows = states.reshape(B * Se, H).contiguous()
    if mask is None:
        return CrossInputs(rows, Se)
    mask = read_attention_mask(mask, "encoder_attention_mask", B, config.num_attention_heads, S, Se, device, dtype)
    if mask.dim() == 4:
        return CrossInputs(rows, Se, visible=mask)
    packing = read_mask(mask, device)
    return CrossInputs(rows, Se) if packing is None else CrossInputs(rows, Se, packing, mask.ne(0).to(device))


def describe(value: Any) -> str:
    return f"{type(value).__name__} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
