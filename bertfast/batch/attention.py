"""The two kinds of attention without a KV cache: varlen, by the kernels; and masked, by the reference definition.

The graph calls either with the same three matrices and knows nothing of masks, padding or causality.

Shape letters: Rq / Rk rows of queries / keys, B sequences, Sq / Sk padded lengths, N heads, D head size, H = N * D.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from torch import Tensor

from bertfast.batch.by_size import uniform_cu_seqlens
from bertfast.ops import Ops, reference


class Attention(ABC):
    """How the rows of one call attend to one another. One object serves the layers in turn."""

    __slots__ = ()

    key_rows: Tensor | None = None  # [Tk] int64: the rows whose keys and values are asked for; None: all

    @abstractmethod
    def __call__(self, q: Tensor, k: Tensor, v: Tensor, heads: int, O: Ops) -> Tensor:
        """softmax(q k^T / sqrt(D)) v: [Rq, H], [Rk, H], [Rk, H] -> [Rq, H], by the ops O."""

    def of_all_keys(self, q: Tensor, k: Tensor, v: Tensor, heads: int, O: Ops) -> Tensor:
        """The same with the keys and values of all rows, [R, H] each."""
        if self.key_rows is not None:
            k, v = O.pack(k.contiguous(), self.key_rows), O.pack(v.contiguous(), self.key_rows)
        return self(q, k, v, heads, O)

    def restricted_to_first_rows(self) -> "Attention | None":
        """The same attention with one query a sequence, its first; None where this kind has no such form."""
        return None


@dataclass(frozen=True, slots=True)
class VarlenAttention(Attention):
    """Each query sees every key of its own sequence or, causal, the keys up to its position (aligned at the end). Needs no mask."""

    cu_seqlens_q: Tensor  # [B + 1] int32
    cu_seqlens_k: Tensor
    max_seqlen_q: int
    max_seqlen_k: int
    causal: bool = False
    key_rows: Tensor | None = None
    first_cu: Tensor | None = None  # [B + 1] int32: 0, 1, 2, ...; None: made when asked for
    bfloat16_products: bool = False  # allowed: see bertfast.ops.varlen_attention

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, heads: int, O: Ops) -> Tensor:
        shape = (-1, heads, q.shape[1] // heads)
        context: Tensor = O.varlen_attention(
            q.view(shape), k.view(shape), v.view(shape),
            self.cu_seqlens_q, self.cu_seqlens_k, self.max_seqlen_q, self.max_seqlen_k, self.causal,
            bfloat16_products=self.bfloat16_products,
        )  # fmt: skip
        return context.view(q.shape)

    def restricted_to_first_rows(self) -> "VarlenAttention | None":
        if self.causal:
            return None
        return replace(self, cu_seqlens_q=self.first_cu_seqlens(), max_seqlen_q=1, first_cu=None)

    def first_cu_seqlens(self) -> Tensor:
        """[B + 1] int32: cu_seqlens of one query a sequence."""
        if self.first_cu is not None:
            return self.first_cu
        return uniform_cu_seqlens(len(self.cu_seqlens_q) - 1, 1, self.cu_seqlens_q.device)


class KVMemory(Protocol):
    """A KV cache as MaskedAttention sees it."""

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Stores the layer's new k and v, [B, S, N, D] each; returns all that is attended to, [B, Sk, N, D] each."""


# (shape of the probabilities [B, N, Sq, Sk], a tensor of their dtype and device) -> a factor that broadcasts to them
ProbabilityDropout = Callable[[Sequence[int], Tensor], Tensor]


@dataclass(slots=True)
class MaskedAttention(Attention):
    """softmax(q k^T / sqrt(D) + mask) v on padded rows by the reference definition: any mask, head masks, probabilities, dropout."""

    batch: int
    mask: Tensor | None  # broadcast to [B, N, Sq, Sk]: bool, True sees; or float, added to the scores
    head_masks: Sequence[Tensor] | None = None  # one a layer, broadcast to [B, N, Sq, Sk]: multiplies the probabilities
    keep_probabilities: bool = False
    dropout: ProbabilityDropout | None = None
    memory: KVMemory | None = None
    probabilities: list[Tensor] = field(default_factory=list)  # [B, N, Sq, Sk] a layer, where kept
    layer: int = 0  # the next one

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, heads: int, O: Ops) -> Tensor:
        Q, K, V = (self._split(t, heads) for t in (q, k, v))
        if self.memory is not None:
            K, V = self.memory.append(self.layer, K, V)
        Q, K, V = (t.transpose(1, 2) for t in (Q, K, V))
        context, probabilities = reference.attention(Q, K, V, self.mask, head_mask=self._factor(Q, K))
        self.layer += 1
        if self.keep_probabilities:
            self.probabilities.append(probabilities)
        return context.transpose(1, 2).reshape(q.shape)

    def _split(self, t: Tensor, heads: int) -> Tensor:  # [B * S, H] -> [B, S, N, D]
        return t.reshape(self.batch, t.shape[0] // self.batch if self.batch else 0, heads, t.shape[1] // heads)

    def _factor(self, Q: Tensor, K: Tensor) -> Tensor | None:  # what multiplies the probabilities
        head_mask = None if self.head_masks is None else self.head_masks[self.layer]
        if self.dropout is None:
            return head_mask
        kept = self.dropout((*Q.shape[:3], K.shape[2]), Q)
        return kept if head_mask is None else head_mask * kept


def probabilities_of(attention: Attention | None) -> list[Tensor]:
    """The probabilities that a MaskedAttention kept, also where a cache's attention wraps it; else none."""
    attention = getattr(attention, "inner", attention)
    return attention.probabilities if isinstance(attention, MaskedAttention) else []
