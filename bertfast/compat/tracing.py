"""Detects calls inside tf.function and JAX transforms, which cannot trace the engine."""

import sys
from collections.abc import Collection

import numpy as np

from bertfast.compat.arrays import is_jax, is_tf


def refuse_tracing(caller: str, values: Collection[object]) -> None:
    """Raises ValueError inside tf.function or a JAX transform: the call would run once, while tracing, and its results become constants."""
    tf, jax = sys.modules.get("tensorflow"), sys.modules.get("jax._src.core")
    if tf is None and jax is None:
        return
    if tf is not None and hasattr(tf, "inside_function") and tf.inside_function():
        raise ValueError(
            f"{caller}: called inside tf.function, which would run this call once, while tracing, and never again; "
            "call the model outside, on eager tensors, or wrap the call in tf.py_function"
        )
    # JAX has no public API for this. Where the private one is missing, traced arguments are still detected.
    clean = getattr(jax, "trace_state_clean", None)
    arrays = [value for value in values if value is not None and type(value) is not np.ndarray]
    if (clean is not None and not clean()) or any(map(is_traced, arrays)):
        raise ValueError(
            f"{caller}: called inside jax.jit (or another JAX transform), which would run this call once, while tracing, and never again; "
            "call the model outside, or wrap the call in jax.pure_callback"
        )
    if any(is_tf(value) and not hasattr(value, "numpy") for value in arrays):
        raise ValueError(f"{caller}: got a symbolic Keras or TensorFlow tensor, which has no values; call the model on eager tensors")


def is_traced(value: object) -> bool:
    """Whether this is a JAX tracer, the placeholder of an array during tracing."""
    if not is_jax(value):
        return False
    tracer = getattr(sys.modules.get("jax._src.core"), "Tracer", None)
    return not hasattr(value, "addressable_shards") if tracer is None else isinstance(value, tracer)
