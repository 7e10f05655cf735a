"""Safetensors files, and NumPy arrays as tensors."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bertfast.checkpoints.errors import damaged

_HEADER_LIMIT = 100_000_000  # bytes: the limit of the safetensors library itself


def safetensors_header(path: Path) -> tuple[list[str], dict[str, str]]:
    """Names of the tensors in a safetensors file and its metadata; reads the header alone."""
    size = path.stat().st_size
    with path.open("rb") as f:
        length = int.from_bytes(f.read(8), "little")
        if size < 8 or length > min(size - 8, _HEADER_LIMIT):
            raise damaged(path, f"its header claims {length} bytes, the file has {size}")
        try:
            header: Any = json.loads(f.read(length))
        except (ValueError, RecursionError) as error:
            raise damaged(path, f"its header is not JSON: {error}") from error
    if not isinstance(header, dict):
        raise damaged(path, "its header is not a table of tensors")
    metadata = header.pop("__metadata__", None)
    return list(header), metadata if isinstance(metadata, dict) else {}


def read_safetensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of a safetensors file, one after the other; the tensors are views of the mapped file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as f:
            for name in f.keys():  # noqa: SIM118 (not a dict)
                yield name, f.get_tensor(name)
    except (SafetensorError, OSError, RuntimeError) as error:
        raise damaged(path, str(error)) from error


def from_numpy(array: "np.ndarray[Any, Any]") -> Tensor:
    """A tensor of the array's values; a copy only where the array may not be written to or lies strided."""
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    array = np.require(array, requirements=["C", "W"])
    return torch.from_numpy(array)


def to_pytorch_layout(name: str, tensor: Tensor, transposed: bool, path: Path) -> Tensor:
    """The tensor as PyTorch keeps it: a dense layer's matrix turned round, contiguous, floating point."""
    if not tensor.is_floating_point():
        raise damaged(path, f"{name} holds {tensor.dtype}, expected floating point numbers")
    if not transposed:
        return tensor
    if tensor.dim() != 2:
        raise damaged(path, f"{name} has shape {tuple(tensor.shape)}, expected a matrix [in, out]")
    return tensor.t().contiguous()
