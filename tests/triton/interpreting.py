"""Four repairs to Triton's interpreter (3.6 and 3.7), which stores bfloat16 as 16-bit integers and float8 as 8-bit ones.

tl.dot multiplies those integers, and calls a BLAS for floats, whose sums can depend on a row's place in the tile. float32 -> bfloat16
truncates, where every GPU rounds to the nearest even; float32 -> float8 rounds halves away from zero and loses NaN. Only the
interpreter's operations are replaced; the kernels under test are untouched.
"""

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter

_Builder = interpreter.InterpreterBuilder
_dot, _cast, _float_cast = _Builder.create_dot, _Builder.cast_impl, _Builder.create_fp_to_fp
_FLOATS = (tl.float16, tl.bfloat16, tl.float32)


def repair() -> None:
    def create_dot(self, a, b, d, input_precision, max_num_imprecise_acc):
        if a.dtype.scalar not in _FLOATS or b.dtype.scalar not in _FLOATS:
            return _dot(self, a, b, d, input_precision, max_num_imprecise_acc)
        product = _multiply(_widen(self, a).data, _widen(self, b).data)
        return interpreter.TensorHandle(product.astype(d.data.dtype) + d.data, d.dtype.scalar)

    def cast_impl(self, src, dst_type):
        if src.dtype.scalar == tl.float32 and dst_type.scalar == tl.bfloat16:
            return interpreter.TensorHandle(_round_to_bfloat16(src.data), tl.bfloat16)
        return _cast(self, src, dst_type)

    def create_fp_to_fp(self, src, dst_type, rounding_mode):
        if src.dtype.scalar == tl.float32 and dst_type.scalar == tl.float8e4nv:
            return interpreter.TensorHandle(_round_to_e4m3(src.data), tl.float8e4nv)
        return _float_cast(self, src, dst_type, rounding_mode)

    _Builder.create_dot, _Builder.cast_impl, _Builder.create_fp_to_fp = create_dot, cast_impl, create_fp_to_fp


def _widen(builder, handle):
    return builder.cast_impl(handle, tl.float32) if handle.dtype.scalar == tl.bfloat16 else handle


def _multiply(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a @ b in float64, every row in the same order: einsum calls no BLAS unless asked to optimize."""
    return np.einsum("...ik,...kj->...ij", a.astype(np.float64), b.astype(np.float64))


def _round_to_bfloat16(values: np.ndarray) -> np.ndarray:
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)


def _round_to_e4m3(values: np.ndarray) -> np.ndarray:
    """To the nearest even, and to the largest value where it is larger, as GPUs convert."""
    clipped = torch.from_numpy(np.ascontiguousarray(values)).clamp(-448.0, 448.0)  # a NaN stays one
    return clipped.to(torch.float8_e4m3fn).view(torch.uint8).numpy().reshape(values.shape)
