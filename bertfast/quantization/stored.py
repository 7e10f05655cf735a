"""int8 tensors of a file, checked before transformers loads them: it would cast another dtype in silence.

Shape letters: K' padded inputs, F outputs, S groups of a weight.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from bertfast.checkpoints import Checkpoint, pickles
from bertfast.checkpoints.errors import damaged
from bertfast.ops.int8 import GROUP_SIZE, HADAMARD_BLOCK

_DTYPES = {"weight_int8": "int8", "weight_scales": "float32"}
_SAFETENSORS_NAMES = {"I8": "int8", "U8": "uint8", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}


def check_stored(checkpoint: Checkpoint) -> None:
    """ValueError, naming file and tensor, for int8 weights or scales of another dtype, or of shapes that do not go together.

    Reads headers alone, and no values.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for path in checkpoint.files:
        for name, dtype, shape in _headers(path, checkpoint.format == "pytorch"):
            wanted = _DTYPES.get(name.rpartition(".")[2])
            if wanted is None:
                continue
            if dtype != wanted:
                raise damaged(path, f"{name} is stored as {dtype}, expected {wanted}")
            if len(shape) != 2:
                raise damaged(path, f"{name} has shape {shape}, expected 2 dimensions")
            shapes[name] = shape
    for name, (features, width) in shapes.items():
        scales = shapes.get(name.removesuffix("weight_int8") + "weight_scales")
        if not name.endswith("weight_int8") or scales is None:
            continue
        if width % HADAMARD_BLOCK or scales != (features, -(-width // GROUP_SIZE)):
            raise damaged(checkpoint.files[0], f"{name} {(features, width)} and its scales {scales} do not go together")


def _headers(path: Path, pickled: bool) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """(name, dtype, shape) of every tensor in a file."""
    if pickled:
        for name, tensor in pickles.read(path, mapped=True).items():
            yield name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)
        return
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as f:
            for name in f.keys():  # noqa: SIM118 (not a dict)
                part = f.get_slice(name)
                yield name, _SAFETENSORS_NAMES.get(part.get_dtype(), part.get_dtype()), tuple(part.get_shape())
    except (SafetensorError, OSError) as error:
        raise damaged(path, str(error)) from error


def check_scales(integers: Tensor, scales: Tensor) -> None:
    """ValueError for scales that are not finite or not positive; 0 is the scale of a group of zeros. integers [F, K'], scales [F, S]."""
    if not bool((scales.isfinite() & (scales >= 0)).all()):
        raise ValueError("its scales must be finite and positive: this file is damaged")
    rows = (scales == 0).any(dim=1)
    padded = torch.nn.functional.pad(integers[rows], (0, scales.shape[1] * GROUP_SIZE - integers.shape[1]))
    wrong = (padded.view(len(padded), scales.shape[1], GROUP_SIZE) != 0).any(dim=2) & (scales[rows] == 0)
    if bool(wrong.any()):
        raise ValueError("a scale is 0, and its integers are not: this file is damaged")
