"""Safetensors files, and NumPy arrays as tensors."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bertfast.checkpoints.errors import damaged

_MAX_HEADER = 1 << 22  # bytes; BERT-large's has 50 KB


def check_header(path: Path) -> None:
    """ValueError where the JSON header of a safetensors file is longer than any BERT's: parsed, it takes 25 times its size."""
    with path.open("rb") as f:
        head = f.read(8)
    length = int.from_bytes(head, "little")
    if len(head) == 8 and _MAX_HEADER < length <= path.stat().st_size:
        raise damaged(path, f"its header has {length:,} bytes, expected at most {_MAX_HEADER:,}")


def safetensors_header(path: Path) -> tuple[list[str], dict[str, str]]:
    """The tensor names and the metadata of a safetensors file. Reads the header alone; raises ValueError for a damaged file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as f:
            return list(f.keys()), f.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise damaged(path, str(error)) from error


def read_safetensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of a safetensors file, in turn; the tensors are views of the mapped file. Raises ValueError for a damaged file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as f:
            for name in f.keys():  # noqa: SIM118 (not a dict)
                yield name, f.get_tensor(name)
    except (SafetensorError, OSError, RuntimeError) as error:
        raise damaged(path, str(error)) from error


def from_numpy(array: npt.NDArray[np.generic]) -> Tensor:
    """A tensor on the array's memory; a copy where the array is read-only or not contiguous."""
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    array = np.require(array, requirements=["C", "W"])
    return torch.from_numpy(array)


def to_pytorch_layout(name: str, tensor: Tensor, transposed: bool, path: Path) -> Tensor:
    """The tensor in PyTorch's layout: contiguous, the matrix of a dense layer (`transposed`) as [out, in].

    Raises ValueError, naming `path`, for integers and for a `transposed` tensor that is not a matrix.
    """
    if not tensor.is_floating_point():
        raise damaged(path, f"{name} holds {tensor.dtype}, expected floating point numbers")
    if not transposed:
        return tensor
    if tensor.dim() != 2:
        raise damaged(path, f"{name} has shape {tuple(tensor.shape)}, expected a matrix [in, out]")
    return tensor.t().contiguous()
