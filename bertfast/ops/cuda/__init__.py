"""CUDA backend: the Triton kernels and cuBLAS (through torch), under the names of the op contract.

Imported at the first use of a CUDA tensor: a machine without a GPU never imports Triton. Under Triton's interpreter (TRITON_INTERPRET=1)
every op takes CPU tensors, which is how the tests run it.
"""

from bertfast.ops.cuda.attention import cached_attention, varlen_attention, write_cache
from bertfast.ops.cuda.fp8 import fp8_add_layer_norm, fp8_linear
from bertfast.ops.cuda.launch import batch_invariant, is_batch_invariant, on_its_device
from bertfast.ops.cuda.products import linear, linear_concat
from bertfast.ops.cuda.rows import add_layer_norm, embed_layer_norm, pack, raise_out_of_range, stage, unpack
from bertfast.ops.reference import int8_embed_layer_norm, int8_linear  # int8 has no CUDA kernels

__all__ = [
    "add_layer_norm",
    "batch_invariant",
    "cached_attention",
    "embed_layer_norm",
    "fp8_add_layer_norm",
    "fp8_linear",
    "int8_embed_layer_norm",
    "int8_linear",
    "is_batch_invariant",
    "linear",
    "linear_concat",
    "on_its_device",
    "pack",
    "raise_out_of_range",
    "stage",
    "unpack",
    "varlen_attention",
    "write_cache",
]
