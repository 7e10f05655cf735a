"""CUDA ops that take a batch row by row."""

from functools import cache
from typing import cast

import torch
from torch import Tensor

from bertfast.kernels import add_layer_norm as add_layer_norm_kernel
from bertfast.kernels import embed_layer_norm as embed_kernel
from bertfast.kernels import pack as pack_kernel
from bertfast.kernels import stage as stage_kernel
from bertfast.kernels import tuning
from bertfast.kernels import unpack as unpack_kernel
from bertfast.ops import reference
from bertfast.ops.cuda.launch import on_its_device


@on_its_device
def embed_layer_norm(
    input_ids: Tensor,
    word_weight: Tensor,
    position_ids: Tensor,
    position_weight: Tensor,
    token_type_ids: Tensor | None,
    token_type_weight: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
) -> Tensor:
    H = word_weight.shape[1]
    raise_out_of_range(word_weight.device)  # an id of an earlier call, if not reported since
    if H > embed_kernel.MAX_HIDDEN:
        return reference.embed_layer_norm(
            input_ids, word_weight, position_ids, position_weight, token_type_ids, token_type_weight, weight, bias, eps
        )
    tables = (input_ids, word_weight, position_ids, position_weight, token_type_ids, token_type_weight)
    report = _report(word_weight.device)
    out = cast(Tensor, embed_kernel.embed_layer_norm(*tables, weight, bias, eps, report=report, num_warps=tuning.layer_norm_warps(H)))
    if not word_weight.is_cuda:  # the interpreter: already synchronised
        raise_out_of_range(word_weight.device)
    return out


def raise_out_of_range(device: torch.device) -> None:
    """ValueError if an embedding on this device has met an id out of range since the last call. Call it after a synchronisation.

    Neither waits nor copies: the kernel writes to pinned host memory, and only when an id is wrong.
    """
    report = _report(device)
    if not report.any():
        return
    rows = report.tolist()
    report.zero_()
    name, (_, value, limit) = next((name, row) for name, row in zip(embed_kernel.REPORTED, rows, strict=True) if row[0])
    raise ValueError(reference.out_of_range(name, value, limit) + (f" (in an earlier call on {device})" if device.type == "cuda" else ""))


@cache
def _report(device: torch.device) -> Tensor:
    shape = (len(embed_kernel.REPORTED), embed_kernel.REPORT_COLUMNS)
    return torch.zeros(shape, dtype=torch.int64, pin_memory=device.type == "cuda")


@on_its_device
def add_layer_norm(x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    H = x.shape[1]
    if H > add_layer_norm_kernel.MAX_HIDDEN:
        return reference.add_layer_norm(x, residual, weight, bias, eps)
    return cast(Tensor, add_layer_norm_kernel.add_layer_norm(x, residual, weight, bias, eps, num_warps=tuning.layer_norm_warps(H)))


@on_its_device
def pack(x: Tensor, indices: Tensor) -> Tensor:
    return cast(Tensor, pack_kernel.pack(x, indices, tile=tuning.pack_tile(x.shape[1])))


@on_its_device
def unpack(x: Tensor, indices: Tensor, rows: int, fill: float = 0.0) -> Tensor:
    return cast(Tensor, unpack_kernel.unpack(x, indices, rows, fill, tile=tuning.unpack_tile(x.shape[1])))


@on_its_device
def stage(
    ids: Tensor, positions: Tensor, types: Tensor | None, cu_seqlens: Tensor, first_rows: Tensor,
    ids_out: Tensor, positions_out: Tensor, types_out: Tensor | None, cu_seqlens_out: Tensor, first_rows_out: Tensor,
) -> None:  # fmt: skip
    """Copies the inputs of a call into the buffers of a CUDA graph: see bertfast.kernels.stage. No op of the contract."""
    stage_kernel.stage(ids, positions, types, cu_seqlens, first_rows, ids_out, positions_out, types_out, cu_seqlens_out, first_rows_out)
