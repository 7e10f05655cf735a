"""Capturing a CUDA graph, in one memory pool and on one side stream a device."""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from bertfast.graph.heads import HeadOutput

Replay = Callable[[], None]


def capture(run: Callable[[], dict[str, HeadOutput]], device: torch.device) -> tuple[Replay, dict[str, HeadOutput]]:
    """Captures run(), which must have run once before: its kernels are compiled and its libraries have chosen.

    Returns the replay and the outputs that each replay rewrites. RuntimeError where CUDA cannot capture it; the stream stays usable.
    """
    graph = torch.cuda.CUDAGraph()
    pool, stream = _pool(device), _side_stream(device)
    with torch.cuda.device(device), torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
        logits = run()
    return graph.replay, logits


_pools: dict[torch.device, "torch.cuda._POOL_HANDLE"] = {}


def _pool(device: torch.device) -> "torch.cuda._POOL_HANDLE":
    if device not in _pools:
        _pools[device] = torch.cuda.graph_pool_handle()
    return _pools[device]


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """torch's default is one stream for the process, of the device that was current first."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch's own


def bit_pattern(t: Tensor) -> Tensor:
    """Integers to compare by, so that NaN equals itself."""
    return t.contiguous().view(torch.int32 if t.element_size() == 4 else torch.int16)
