"""NumPy, torch, TensorFlow and JAX arrays to torch tensors, and back.

tensorflow and jax are never imported here: their arrays exist only in a process that has imported them. Memory is shared in both
directions wherever DLPack or the buffer protocol allows it.
"""

import sys
from collections.abc import Iterable
from enum import Enum
from functools import lru_cache
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeAlias, TypeGuard

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack, to_dlpack  # type: ignore[attr-defined]  # public, not in their __all__

if TYPE_CHECKING:
    import jax
    import tensorflow as tf

Array: TypeAlias = "npt.NDArray[np.generic] | Tensor | tf.Tensor | jax.Array"  # what callers pass, and get back


class ArrayType(Enum):
    """The type of the arrays that a caller passes, and gets back."""

    NUMPY = "numpy"
    TORCH = "torch"
    TF = "tensorflow"
    JAX = "jax"


def array_type_of(values: Iterable[object]) -> ArrayType:
    """The array type of a call's outputs: that of its first argument that is an array but not NumPy's, else NumPy."""
    for value in values:
        if value is None or type(value) is np.ndarray or type(value) is bool:
            continue
        if isinstance(value, Tensor):
            return ArrayType.TORCH
        if is_tf(value):
            return ArrayType.TF
        if is_jax(value):
            return ArrayType.JAX
    return ArrayType.NUMPY


def is_array(value: object) -> bool:
    return isinstance(value, (np.ndarray, np.generic, Tensor)) or is_tf(value) or is_jax(value)


def is_tf(value: object) -> "TypeGuard[tf.Tensor]":
    return type(value).__module__.startswith(("tensorflow.", "keras."))


def is_jax(value: object) -> "TypeGuard[jax.Array]":
    return type(value).__module__.startswith(("jax.", "jaxlib"))


def to_torch(value: object, name: str) -> Tensor:
    """The value as a tensor, sharing its memory where possible. Raises TypeError, naming `name`, for anything but an array of numbers."""
    if isinstance(value, Tensor):
        return value
    if is_tf(value) or is_jax(value):
        return _from_framework(value)
    try:
        array = value if type(value) is np.ndarray else np.asarray(value)
        return from_numpy(array)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name}: got {type(value).__name__}, expected an array of numbers ({error})") from error


def jax_to_numpy(value: object, device: torch.device) -> object:
    """JAX ids or masks as NumPy arrays where the model is on the CPU; any other value as it is.

    They are small and converted anyway, and JAX's DLPack export takes longer (TensorFlow's does not). int32 becomes int64, which
    lookups need: this one copy also gives writable memory, which JAX's is not.
    """
    if not is_jax(value) or device.type != "cpu":
        return value
    array = np.asarray(value)
    return array.astype(np.int64) if array.dtype.type is np.int32 else array


def from_numpy(array: npt.NDArray[np.generic]) -> Tensor:
    """A tensor on the array's memory; a copy of read-only memory, since torch has no read-only tensors."""
    dtype, flags = array.dtype, array.flags
    if dtype.kind in "fi" and dtype.isnative and flags.c_contiguous:
        return torch.from_numpy(array if flags.writeable else array.copy())
    if dtype.kind == "V" and dtype.name == "bfloat16":  # ml_dtypes' bfloat16
        return from_numpy(array.view(np.int16)).view(torch.bfloat16)
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:
        array = array.astype(np.int64)
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if not array.flags.writeable or any(stride < 0 for stride in array.strides):
        array = array.copy()
    return torch.from_numpy(array)


def to_numpy(tensor: Tensor) -> npt.NDArray[np.generic]:
    """The tensor as a NumPy array on the same memory (copied from another device).

    bfloat16 becomes ml_dtypes' bfloat16 where that is installed, else float32 with the same values.
    """
    if tensor.requires_grad or not tensor.is_cpu:
        tensor = tensor.detach().cpu()
    if tensor.dtype is not torch.bfloat16:
        return tensor.numpy()
    bfloat16 = numpy_bfloat16()
    return tensor.float().numpy() if bfloat16 is None else tensor.view(torch.int16).numpy().view(bfloat16)


def numpy_bfloat16() -> "np.dtype[np.generic] | None":
    """ml_dtypes' bfloat16 as a NumPy dtype, or None where it is not installed."""
    try:
        import ml_dtypes
    except ImportError:
        return None
    return np.dtype(ml_dtypes.bfloat16)


def from_torch(tensor: Tensor, array_type: ArrayType) -> Array:
    """The tensor as an array of this type, sharing its memory where possible."""
    if array_type is ArrayType.NUMPY:
        return to_numpy(tensor)
    if array_type is ArrayType.JAX:
        return _to_jax(tensor, sys.modules["jax"])
    if tensor.requires_grad:
        tensor = tensor.detach()
    if array_type is ArrayType.TORCH:
        return tensor
    tf = sys.modules["tensorflow"]
    if tensor.numel() == 0:
        return tf.constant(to_numpy(tensor))
    return tf.experimental.dlpack.from_dlpack(to_dlpack(tensor.contiguous()))


def _to_jax(tensor: Tensor, jax: ModuleType) -> "jax.Array":
    if not tensor.is_cpu and tensor.numel() > 1:
        return jax.dlpack.from_dlpack(tensor.detach().contiguous())
    array = to_numpy(tensor)
    # Not every JAX version exchanges 0-d and empty arrays by DLPack; asarray also applies JAX's 64-bit setting.
    if array.size < 2:
        return jax.numpy.asarray(array)
    # A DLPack import asks the device for its stream; for the CPU JAX raises and catches an error each time. The callback gives the same
    # array on the same memory without that.
    try:
        return jax.make_array_from_callback(array.shape, _cpu_sharding(jax.local_devices(backend="cpu")[0]), lambda _: array)
    except RuntimeError:  # jax.transfer_guard counts this as a transfer, but not a DLPack import
        return jax.dlpack.from_dlpack(tensor.detach().contiguous())


@lru_cache(maxsize=1)
def _cpu_sharding(device: "jax.Device") -> "jax.sharding.Sharding":
    """One object for all calls: JAX caches by identity."""
    return sys.modules["jax"].sharding.SingleDeviceSharding(device)


def tree_from_torch(value: Tensor | tuple[Tensor, ...] | None, array_type: ArrayType) -> "Array | tuple[Array, ...] | None":
    """from_torch for a tensor, a tuple of them, or None."""
    if isinstance(value, tuple):
        return tuple(from_torch(item, array_type) for item in value)
    return from_torch(value, array_type) if isinstance(value, Tensor) else value


def torch_dtype(dtype: object, name: str = "dtype") -> torch.dtype:
    """The torch dtype of a torch, NumPy, JAX or TensorFlow dtype, or its name. Raises TypeError for a dtype that is not floating point."""
    if not isinstance(dtype, torch.dtype):
        label = dtype if isinstance(dtype, str) else _dtype_name(dtype)
        found = getattr(torch, label, None)
        if not isinstance(found, torch.dtype):
            raise TypeError(f"{name}: got {dtype!r}, expected float32, bfloat16 or float16")
        dtype = found
    if not dtype.is_floating_point:
        raise TypeError(f"{name}: got {dtype}, expected a floating point dtype")
    return dtype


def _dtype_name(dtype: Any) -> str:
    named = getattr(dtype, "name", None)  # NumPy and TensorFlow; jnp.float32 is a class with a `dtype`
    if isinstance(named, str):
        return named
    try:
        return str(np.dtype(getattr(dtype, "dtype", dtype)).name)
    except TypeError:
        return str(dtype)


def _from_framework(value: "tf.Tensor | jax.Array") -> Tensor:
    try:
        return from_dlpack(value)
    except (AttributeError, BufferError, RuntimeError, TypeError, ValueError):
        pass  # no DLPack for this dtype, device or version: through NumPy
    return from_numpy(np.asarray(value))
