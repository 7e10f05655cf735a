"""NumPy, torch, TensorFlow and JAX arrays as torch tensors, and back.

tensorflow and jax are never imported here: an array of theirs can only exist where the process has imported them. On the way in
and out memory is shared wherever DLPack or the buffer protocol allows it.
"""

import sys
from collections.abc import Collection, Iterable
from enum import Enum
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack, to_dlpack  # type: ignore[attr-defined]  # public, not in their __all__


class Kind(Enum):
    """What a caller hands over, and gets back."""

    NUMPY = "numpy"
    TORCH = "torch"
    TF = "tensorflow"
    JAX = "jax"


def kind_of(values: Iterable[Any]) -> Kind:
    """The kind of the outputs of a call with these arguments: that of its first array that is not NumPy's."""
    for value in values:
        if value is None or type(value) is np.ndarray or type(value) is bool:
            continue
        if isinstance(value, Tensor):
            return Kind.TORCH
        if _is_tf(value):
            return Kind.TF
        if is_jax(value):
            return Kind.JAX
    return Kind.NUMPY


def is_array(value: Any) -> bool:
    return isinstance(value, (np.ndarray, np.generic, Tensor)) or _is_tf(value) or is_jax(value)


def is_jax(value: Any) -> bool:
    return type(value).__module__.startswith(("jax.", "jaxlib"))


def refuse_tracing(face: str, values: Collection[Any]) -> None:
    """Raises where a program is being traced: a host call inside it would be frozen at its first inputs without a word."""
    tf, jax = sys.modules.get("tensorflow"), sys.modules.get("jax._src.core")
    if tf is None and jax is None:
        return
    if tf is not None and hasattr(tf, "inside_function") and tf.inside_function():
        raise ValueError(
            f"{face}: called inside tf.function, which would trace this host call once and never run it again; "
            "call the model outside, on eager tensors, or wrap the call in tf.py_function"
        )
    # JAX has no public way to ask. Where this one is gone, traced values still give themselves away.
    clean = getattr(jax, "trace_state_clean", None)
    arrays = [value for value in values if value is not None and type(value) is not np.ndarray]
    if (clean is not None and not clean()) or any(map(is_traced, arrays)):
        raise ValueError(
            f"{face}: called inside jax.jit (or another JAX transform), which would trace this host call once and never run it again; "
            "call the model outside, or wrap the call in jax.pure_callback"
        )
    if any(_is_tf(value) and not hasattr(value, "numpy") for value in arrays):
        raise ValueError(f"{face}: got a symbolic Keras or TensorFlow tensor, which has no numbers; call the model on eager tensors")


def is_traced(value: Any) -> bool:
    """Whether this is one of JAX's tracers, which stand for an array while a program is traced."""
    if not is_jax(value):
        return False
    tracer = getattr(sys.modules.get("jax._src.core"), "Tracer", None)
    return not hasattr(value, "addressable_shards") if tracer is None else isinstance(value, tracer)


def to_torch(value: Any, name: str) -> Tensor:
    """The value as a tensor, sharing its memory where that can be. Raises TypeError for what is no array of numbers."""
    if isinstance(value, Tensor):
        return value
    if _is_tf(value) or is_jax(value):
        return _imported(value)
    try:
        array = value if type(value) is np.ndarray else np.asarray(value)
        return from_numpy(array)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name}: got {type(value).__name__}, expected an array of numbers ({error})") from error


def through_numpy(value: Any, device: torch.device) -> Any:
    """Ids or a mask of JAX's as NumPy's, where the model is on the CPU: they are small, are converted in any case, and JAX's exchange by
    DLPack takes longer than that (TensorFlow's does not). int32 becomes int64, which lookups take: one copy for that and for memory
    that may be written to, which JAX's may not."""
    if not is_jax(value) or device.type != "cpu":
        return value
    array = np.asarray(value)
    return array.astype(np.int64) if array.dtype.type is np.int32 else array


def from_numpy(array: "np.ndarray[Any, Any]") -> Tensor:
    """A tensor on the array's memory; a copy where it may not be written to, since torch would let anybody write."""
    dtype, flags = array.dtype, array.flags
    if dtype.kind in "fi" and dtype.isnative and flags.c_contiguous:
        return torch.from_numpy(array if flags.writeable else array.copy())
    if dtype.kind == "V" and dtype.name == "bfloat16":  # ml_dtypes', which torch does not know
        return from_numpy(array.view(np.int16)).view(torch.bfloat16)
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:
        array = array.astype(np.int64)
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if not array.flags.writeable or any(stride < 0 for stride in array.strides):
        array = array.copy()
    return torch.from_numpy(array)


def to_numpy(tensor: Tensor) -> "np.ndarray[Any, Any]":
    """The tensor as a NumPy array on the same memory (a copy from another device).

    NumPy has no bfloat16: the array is ml_dtypes' where that is installed, else float32 of the same values.
    """
    if tensor.requires_grad or not tensor.is_cpu:
        tensor = tensor.detach().cpu()
    if tensor.dtype is not torch.bfloat16:
        return tensor.numpy()
    bfloat16 = numpy_bfloat16()
    return tensor.float().numpy() if bfloat16 is None else tensor.view(torch.int16).numpy().view(bfloat16)


def numpy_bfloat16() -> Any | None:
    """ml_dtypes' bfloat16 as a NumPy dtype, or None where it is not installed."""
    try:
        import ml_dtypes
    except ImportError:
        return None
    return np.dtype(ml_dtypes.bfloat16)


def from_torch(tensor: Tensor, kind: Kind) -> Any:
    """The tensor as an array of the kind, sharing its memory where that can be."""
    if kind is Kind.NUMPY:
        return to_numpy(tensor)
    if kind is Kind.JAX:
        return _to_jax(tensor, sys.modules["jax"])
    if tensor.requires_grad:
        tensor = tensor.detach()
    if kind is Kind.TORCH:
        return tensor
    tf: Any = sys.modules["tensorflow"]
    if tensor.numel() == 0:
        return tf.constant(to_numpy(tensor))
    return tf.experimental.dlpack.from_dlpack(to_dlpack(tensor.contiguous()))


def _to_jax(tensor: Tensor, jax: Any) -> Any:
    if not tensor.is_cpu and tensor.numel() > 1:
        return jax.dlpack.from_dlpack(tensor.detach().contiguous())
    array = to_numpy(tensor)
    # JAX has no 0-d or empty DLPack exchange on every version, and keeps 64-bit numbers only where it is told to.
    if array.size < 2:
        return jax.numpy.asarray(array)
    # An import by DLPack asks a device for its stream, and the CPU has none: JAX raises and catches an error at each. This gives the
    # same array on the same memory, and keeps that for itself: nobody else has a way to write to it.
    try:
        return jax.make_array_from_callback(array.shape, _on_device(jax.local_devices(backend="cpu")[0]), lambda _: array)
    except RuntimeError:  # under jax.transfer_guard this counts as a transfer, which an import does not
        return jax.dlpack.from_dlpack(tensor.detach().contiguous())


@lru_cache(maxsize=1)
def _on_device(device: Any) -> Any:
    """One object for all calls: JAX remembers by it what it has found out about it."""
    return sys.modules["jax"].sharding.SingleDeviceSharding(device)


def tree_from_torch(value: Any, kind: Kind) -> Any:
    """from_torch for a tensor, a tuple of them, or None."""
    if isinstance(value, tuple):
        return tuple(from_torch(item, kind) for item in value)
    return from_torch(value, kind) if isinstance(value, Tensor) else value


def torch_dtype(dtype: Any, name: str = "dtype") -> torch.dtype:
    """torch's dtype for torch's, NumPy's, JAX's or TensorFlow's, or a name. Raises TypeError for what is none of the floating ones."""
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
    named = getattr(dtype, "name", None)  # NumPy's and TensorFlow's dtypes; jnp.float32 is a class with a `dtype`
    if isinstance(named, str):
        return named
    try:
        return str(np.dtype(getattr(dtype, "dtype", dtype)).name)
    except TypeError:
        return str(dtype)


def _is_tf(value: Any) -> bool:
    return type(value).__module__.startswith(("tensorflow.", "keras."))


def _imported(value: Any) -> Tensor:
    try:
        return from_dlpack(value)
    except (AttributeError, BufferError, RuntimeError, TypeError, ValueError):
        pass  # no DLPack for this dtype (bool, strings), device or version: through NumPy
    return from_numpy(np.asarray(value))
