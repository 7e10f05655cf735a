"""The op contract as a type.

mypy holds `bertfast.ops` (checks, then a backend), the backends reference, cpu and cuda, and the Recorder to it. Shapes, dtypes and errors:
the functions of the same names in bertfast.ops. Arguments are positional but for those that callers name: `activation`, `quantize`,
`causal`, `scale`, `bfloat16_products`, `fill`.
"""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from bertfast.ops.fp8 import Fp8Rows, Fp8Weight, Rows, Scales
from bertfast.ops.int8 import Int8Weight


class Ops(Protocol):
    def embed_layer_norm(
        self, input_ids: Tensor, word_weight: Tensor, position_ids: Tensor, position_weight: Tensor,
        token_type_ids: Tensor | None, token_type_weight: Tensor, weight: Tensor, bias: Tensor, eps: float, /,
    ) -> Tensor: ...  # fmt: skip

    def int8_embed_layer_norm(
        self, input_ids: Tensor, words: Int8Weight, position_ids: Tensor, position_weight: Tensor,
        token_type_ids: Tensor | None, token_type_weight: Tensor, weight: Tensor, bias: Tensor, eps: float, /,
    ) -> Tensor: ...  # fmt: skip

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None, /, activation: str | None = None) -> Tensor: ...

    def linear_concat(self, x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None], /) -> Tensor: ...

    def int8_linear(
        self, x: Tensor, weights: Sequence[Int8Weight], biases: Sequence[Tensor | None], /, activation: str | None = None
    ) -> Tensor: ...

    def fp8_linear(
        self, x: Rows, weights: Sequence[Fp8Weight], biases: Sequence[Tensor | None], /, activation: str | None = None,
        quantize: Scales | None = None,
    ) -> Rows: ...  # fmt: skip

    def add_layer_norm(self, x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, eps: float, /) -> Tensor: ...

    def fp8_add_layer_norm(self, x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float, /) -> Fp8Rows: ...

    def varlen_attention(
        self, q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, max_seqlen_q: int, max_seqlen_k: int, /,
        causal: bool = False, scale: float | None = None, bfloat16_products: bool = False,
    ) -> Tensor: ...  # fmt: skip

    def write_cache(self, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, rows: Tensor, positions: Tensor, /) -> None: ...

    def cached_attention(
        self, q: Tensor, keys: Tensor, values: Tensor, rows: Tensor, first: Tensor | None, last: Tensor, /, scale: float | None = None
    ) -> Tensor: ...

    def pack(self, x: Tensor, indices: Tensor, /) -> Tensor: ...

    def unpack(self, x: Tensor, indices: Tensor, rows: int, /, fill: float = 0.0) -> Tensor: ...


OPS = tuple(name for name in vars(Ops) if not name.startswith("_"))  # the names of the contract
