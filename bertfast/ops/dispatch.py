"""Which backend runs an op, by device and dtype."""

import logging
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from importlib import import_module

import torch
from torch import Tensor

from bertfast.ops import reference
from bertfast.ops.protocol import Ops

logger = logging.getLogger("bertfast")

KERNELS = {
    ("cpu", torch.float32): "bertfast.ops.cpu",
    ("cpu", torch.bfloat16): "bertfast.ops.cpu",
    ("cuda", torch.float32): "bertfast.ops.cuda",
    ("cuda", torch.float16): "bertfast.ops.cuda",
    ("cuda", torch.bfloat16): "bertfast.ops.cuda",
}


def has_kernels(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether tensors of this device and dtype run on kernels; else on the reference ops."""
    return (device.type, dtype) in KERNELS


@cache
def backend_of(device_type: str, dtype: torch.dtype) -> Ops:
    name = KERNELS.get((device_type, dtype))
    if name is not None:
        backend: Ops = import_module(name)
        return backend
    if dtype.is_floating_point:
        logger.warning("no kernels for %s on %s: plain torch operations are used", dtype, device_type)  # once: this function is cached
    return reference


def batch_invariant(like: Tensor) -> AbstractContextManager[None]:
    """Within: the kernels for tensors like this one give a row the same bits alone and in any batch. The CPU's always do; on CUDA it
    costs speed. The reference ops promise nothing."""
    backend = backend_of(like.device.type, like.dtype)
    return backend.batch_invariant() if hasattr(backend, "batch_invariant") else nullcontext()
