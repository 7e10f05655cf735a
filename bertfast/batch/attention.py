"""The two ways to attend: over packed keys, by the kernels; or under a mask, by the plain definition.

The graph calls either with the same three matrices and knows nothing of masks, padding or causality.

Shape letters: Rq / Rk rows of queries / keys, B sequences, Sq / Sk padded lengths, N heads, D head size, H = N * D.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Protocol

import torch
from torch import Tensor

from bertfast.ops import Ops, reference

Sized = Callable[[int, int, torch.device], Tensor]


def memoized_by_size(make: Sized) -> Sized:
    """make(B, S, device) for the 64 latest sizes. On a GPU a stream at a time: to another one the values might not be there yet; and not
    at all while the caller records a CUDA graph, in which nothing is computed until it is replayed."""

    @lru_cache(maxsize=64)
    def kept(B: int, S: int, device: torch.device, stream: Any) -> Tensor:
        with torch.inference_mode(False):  # they outlive the call that made them, and autograd refuses inference tensors
            return make(B, S, device)

    def find(B: int, S: int, device: torch.device) -> Tensor:
        if device.type != "cuda":
            return kept(B, S, device, None)
        if torch.cuda.is_current_stream_capturing():
            return make(B, S, device)
        return kept(B, S, device, torch.cuda.current_stream(device))

    return find


@memoized_by_size
def uniform_cu_seqlens(B: int, S: int, device: torch.device) -> Tensor:  # [B + 1] int32
    return torch.arange(B + 1, dtype=torch.int32, device=device) * S


@memoized_by_size
def uniform_first_rows(B: int, S: int, device: torch.device) -> Tensor:  # [B] int64
    return uniform_cu_seqlens(B, S, device)[:-1].long()


class Attention(Protocol):
    def __call__(self, q: Tensor, k: Tensor, v: Tensor, heads: int, O: Ops) -> Tensor:
        """softmax(q k^T / sqrt(D)) v: [Rq, H], [Rk, H], [Rk, H] -> [Rq, H], by the ops O."""

    def first_rows(self) -> "Attention | None":
        """The same attention for the first query of each sequence alone, where that can be said."""


@dataclass(frozen=True, slots=True)
class VarlenAttention:
    """Every query sees every key of its own sequence (or, causal, the keys up to its own place). Needs no mask."""

    cu_seqlens_q: Tensor  # [B + 1] int32
    cu_seqlens_k: Tensor
    max_seqlen_q: int
    max_seqlen_k: int
    causal: bool = False
    key_rows: Tensor | None = None  # [Tk] int64: the rows of k and v that are keys, where padding was kept; None: all
    first_cu: Tensor | None = None  # [B + 1] int32: 0, 1, 2, ...; None: made when asked for
    bfloat16_products: bool = False  # allowed: see the op

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, heads: int, O: Ops) -> Tensor:
        if self.key_rows is not None:
            k, v = O.pack(k.contiguous(), self.key_rows), O.pack(v.contiguous(), self.key_rows)
        shape = (-1, heads, q.shape[1] // heads)
        context: Tensor = O.varlen_attention(
            q.view(shape), k.view(shape), v.view(shape),
            self.cu_seqlens_q, self.cu_seqlens_k, self.max_seqlen_q, self.max_seqlen_k, self.causal,
            bfloat16_products=self.bfloat16_products,
        )  # fmt: skip
        return context.view(q.shape)

    def first_rows(self) -> "VarlenAttention | None":
        if self.causal:
            return None
        return replace(self, cu_seqlens_q=self.first_cu_seqlens(), max_seqlen_q=1, first_cu=None)

    def first_cu_seqlens(self) -> Tensor:
        """The boundaries of one query a sequence."""
        if self.first_cu is not None:
            return self.first_cu
        return uniform_cu_seqlens(len(self.cu_seqlens_q) - 1, 1, self.cu_seqlens_q.device)


@dataclass(slots=True)
class MaskedAttention:
    """Any mask, any head mask, and the probabilities to look at; on padded rows, by the plain definition."""

    batch: int
    mask: Tensor | None  # broadcast to [B, N, Sq, Sk]: bool, True sees; or float, added to the scores
    head_masks: list[Tensor] | None = None  # for each layer in turn, broadcast to [B, N, Sq, Sk]
    keep: bool = False  # whether probabilities are kept
    probabilities: list[Tensor] = field(default_factory=list)  # [B, N, Sq, Sk] a layer
    layer: int = 0

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, heads: int, O: Ops) -> Tensor:
        Q, K, V = (t.view(self.batch, t.shape[0] // self.batch, heads, -1).transpose(1, 2) for t in (q, k, v))
        head_mask = None if self.head_masks is None else self.head_masks[self.layer]
        context, probabilities = reference.attention(Q, K, V, self.mask, head_mask=head_mask)
        self.layer += 1
        if self.keep:
            self.probabilities.append(probabilities)
        return context.transpose(1, 2).reshape(q.shape)

    def first_rows(self) -> "MaskedAttention | None":
        return None


def probabilities_of(attention: "Attention | None") -> list[Tensor]:
    """What a Masked attention kept, also where another one (on a cache) works through it."""
    attention = getattr(attention, "inner", attention)
    return attention.probabilities if isinstance(attention, MaskedAttention) else []
