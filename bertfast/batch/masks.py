"""Attention masks: read, packed, and made.

Shape letters: B batch, S padded length, P cached columns, K = P + S, Sq / Sk queries / keys, N heads, T real tokens.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from bertfast.batch.checks import describe
from bertfast.runtime.native import _C

MASK_KINDS = {
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
    """A 2-D mask as indices of its real tokens and boundaries between its sequences."""

    cu_seqlens: Tensor  # [B + 1] int32
    indices: Tensor  # [T] int64: the cell of each real token in the flattened mask
    positions: Tensor  # [T] int64: the column of each real token
    longest: int
    shortest: int
    first_column_kept: bool  # column 0 is a real token in every sequence


def mask_is_full(mask: Tensor) -> bool:
    """Whether a mask [B, S] on the CPU has no 0. False also where that is not known: a dtype or strides that would need a copy."""
    kind, (B, S) = MASK_KINDS.get(mask.dtype), mask.shape
    row, column = mask.stride()
    if kind is None or (column != 1 and S > 1):
        return False
    return _C.mask_is_full(mask.data_ptr(), kind, B, S, row)


def integer_range(values: Tensor) -> tuple[int, int]:
    """The lowest and the highest of integers or bools; there must be at least one."""
    kind = MASK_KINDS.get(values.dtype)
    if kind is None or kind > _C.MASK_INT64 or not values.is_cpu or not values.is_contiguous():
        low, high = torch.aminmax(values)
        return int(low), int(high)
    return _C.integer_range(values.data_ptr(), kind, values.numel())


def read_mask(mask: Tensor, device: torch.device) -> PackedMask | None:
    """mask: [B, S], any number type; every value but 0 is a real token, as in transformers. None: nothing is padded.

    The result lies on `device`. A mask on a GPU costs one synchronisation.
    """
    host = mask if mask.device.type == "cpu" else mask.ne(0).cpu()
    if host.dtype not in MASK_KINDS:
        raise ValueError(f"attention_mask: got {mask.dtype}, expected a bool, integer or floating tensor")
    if host.shape[1] and host.stride(1) != 1:
        host = host.contiguous()
    B, S = host.shape
    if mask_is_full(host):
        return None
    # One buffer for all parts, pinned for a GPU: one asynchronous copy. Each part begins at a multiple of 16 bytes, on which kernels are
    # specialised. device="cpu" is explicit because torch.set_default_device may name another.
    places = (B * S + 1) // 2 * 2
    buffer = torch.empty(2 * places + B // 2 + 1, dtype=torch.int64, device="cpu", pin_memory=device.type == "cuda")
    at = buffer.data_ptr()
    total, longest, shortest, first_column_kept = _C.pack_mask(
        host.data_ptr(), MASK_KINDS[host.dtype], B, S, host.stride(0), at + 16 * places, at, at + 8 * places
    )
    buffer = buffer.to(device, non_blocking=True)
    indices, positions = buffer.narrow(0, 0, total), buffer.narrow(0, places, total)
    cu_seqlens = buffer.narrow(0, 2 * places, B // 2 + 1).view(torch.int32).narrow(0, 0, B + 1)
    return PackedMask(cu_seqlens, indices, positions, longest, shortest, first_column_kept)


def read_attention_mask(mask: object, name: str, B: int, N: int, Sq: int, Sk: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """[B, Sk] unchanged, on its own device; [B, Sq or 1, Sk] (every value but 0 sees) and [B or 1, 1 or N, Sq or 1, Sk] (bool: True sees;
    float: added to the scores) as 4-D on `device`. ValueError for anything else."""
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


def causal_mask(S: int, past: int, device: torch.device) -> Tensor:  # [S, P + S] bool: new column i sees columns up to P + i
    return torch.ones(S, past + S, dtype=torch.bool, device=device).tril(past)


def finite_mask(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """transformers' eager mask: 0 where visible, else the lowest finite number. A row that sees nothing then attends to all keys alike.

    The number is that of the dtype that scores are added in, at least float32: float16's would not swallow them.
    """
    dtype = torch.promote_types(dtype, torch.float32)
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill(~visible, torch.finfo(dtype).min)
