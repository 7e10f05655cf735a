"""Checks of single arguments. Each error names the argument, what came and what was expected.

Shape letters: B batch, S padded length, L layers, N heads.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def describe(value: object) -> str:
    return f"{type(value).__name__} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def check_device(t: Tensor, name: str, device: torch.device) -> None:
    if t.device != device:
        raise ValueError(f"{name}: got a tensor on {t.device}, expected one on {device}, where the model's weights are")


def check_embedding_dtype(t: Tensor, name: str, dtype: torch.dtype) -> None:
    if t.dtype != dtype:
        raise ValueError(f"{name}: got {t.dtype}, expected {dtype} as the model's weights; cast one of them")


def read_ids(ids: object, name: str, B: int, S: int, device: torch.device) -> Tensor:
    """[B, S], [1, S] or [S] integers -> [B, S] int64, contiguous. ValueError for anything else."""
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


def read_head_mask(head_mask: object, config: "PreTrainedConfig", device: torch.device, dtype: torch.dtype) -> list[Tensor] | None:
    """[N] for all layers or [L, N], as transformers documented until 4.x -> L tensors [1, N, 1, 1]."""
    if head_mask is None:
        return None
    L, N = config.num_hidden_layers, config.num_attention_heads
    if not isinstance(head_mask, Tensor) or tuple(head_mask.shape) not in ((N,), (L, N)):
        raise ValueError(f"head_mask: got {describe(head_mask)}, expected shape ({N},) for all layers or ({L}, {N})")
    return list(head_mask.to(device, dtype).expand(L, N)[:, None, :, None, None])
