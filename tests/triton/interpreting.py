"""Three repairs to Triton's interpreter, which keeps bfloat16 as the 16-bit integers that hold its bits, and float8 as 8-bit ones.

As it is (3.6 and 3.7), tl.dot multiplies those integers, float32 -> bfloat16 cuts the low bits off where every GPU rounds to the nearest
even, and float32 -> float8 rounds halves away from zero and loses NaN. Only the interpreter's own operations are replaced; the kernels
under test are untouched.
"""

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter

_Builder = interpreter.InterpreterBuilder
_dot, _cast, _float_cast = _Builder.create_dot, _Builder.cast_impl, _Builder.create_fp_to_fp


def repair() -> None:
    def create_dot(self, a, b, d, input_precision, max_num_imprecise_acc):
        return _dot(self, _widen(self, a), _widen(self, b), d, input_precision, max_num_imprecise_acc)

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


def _round_to_bfloat16(values: np.ndarray) -> np.ndarray:
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)


def _round_to_e4m3(values: np.ndarray) -> np.ndarray:
    """To the nearest even, and to the largest where it is larger, as the GPUs' own conversion does."""
    clipped = torch.from_numpy(np.ascontiguousarray(values)).clamp(-448.0, 448.0)  # a NaN stays one
    return clipped.to(torch.float8_e4m3fn).view(torch.uint8).numpy().reshape(values.shape)
