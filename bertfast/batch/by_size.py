"""Index tensors that depend on B and S alone, made once for each size.

Shape letters: B batch, S padded length.
"""

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

BySize = Callable[[int, int, torch.device], Tensor]


def memoized_by_size(make: BySize) -> BySize:
    """make(B, S, device), cached for the 64 latest sizes.

    On a GPU, cached for each stream: on another stream the values might not be computed yet. Not cached while the caller captures a CUDA
    graph, where nothing is computed before the replay.
    """

    @lru_cache(maxsize=64)
    def cached(B: int, S: int, device: torch.device, stream: torch.cuda.Stream | None) -> Tensor:
        with torch.inference_mode(False):  # the tensors outlive the call, and autograd refuses inference tensors
            return make(B, S, device)

    def find(B: int, S: int, device: torch.device) -> Tensor:
        if device.type != "cuda":
            return cached(B, S, device, None)
        if torch.cuda.is_current_stream_capturing():
            return make(B, S, device)
        return cached(B, S, device, torch.cuda.current_stream(device))

    return find


@memoized_by_size
def uniform_cu_seqlens(B: int, S: int, device: torch.device) -> Tensor:  # [B + 1] int32
    return torch.arange(B + 1, dtype=torch.int32, device=device) * S


@memoized_by_size
def uniform_first_rows(B: int, S: int, device: torch.device) -> Tensor:  # [B] int64
    return uniform_cu_seqlens(B, S, device)[:-1].long()


@memoized_by_size
def column_indices(B: int, S: int, device: torch.device) -> Tensor:  # [B * S] int64: 0 .. S - 1, B times
    return torch.arange(S, device=device).repeat(B)


@memoized_by_size
def sequence_indices(B: int, S: int, device: torch.device) -> Tensor:  # [B * S] int64: 0 S times, 1 S times, ...
    return torch.arange(B, device=device).repeat_interleave(S)
