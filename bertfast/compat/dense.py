"""The model graph under an arbitrary mask, for calls of the TF and Flax classes that the kernels do not cover.

Additive masks of any values, head masks, dropout, returned probabilities, and Flax's lookups out of range, all by the reference ops
on padded rows. It is the same graph (bertfast.graph.encoder.encode) with another Attention and, for dropout, other ops.

Shape letters: B batch, S padded length, N heads, D head size, H = N * D, Sk keys of a sequence, Se encoder length.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from bertfast import ops
from bertfast.batch.packed import GraphInputs, PackedBatch
from bertfast.ops import Ops, reference


@dataclass(slots=True)
class Dropout:
    """Inverted dropout from a generator of its own: the same seed, the same outputs."""

    hidden: float
    attention: float
    generator: torch.Generator

    def keep(self, shape: Sequence[int], rate: float, like: Tensor) -> Tensor:
        """0 where dropped, 1 / (1 - rate) elsewhere."""
        kept = torch.empty(tuple(shape), device=like.device, dtype=torch.float32).bernoulli_(1 - rate, generator=self.generator)
        return (kept / (1 - rate)).to(like.dtype)

    def __call__(self, x: Tensor, rate: float) -> Tensor:
        return x * self.keep(x.shape, rate, x) if rate > 0 else x


@dataclass(slots=True)
class DroppingOps:
    """The ops of the graph with BERT's dropout: after the embeddings, and after each block's output layer."""

    dropout: Dropout

    def embed_layer_norm(self, *args: Any) -> Tensor:
        return self.dropout(reference.embed_layer_norm(*args), self.dropout.hidden)

    def add_layer_norm(self, x: Tensor, residual: Tensor | None, *args: Any) -> Tensor:
        # Without a residual it is the prediction head's LayerNorm, where BERT has no dropout.
        return reference.add_layer_norm(x if residual is None else self.dropout(x, self.dropout.hidden), residual, *args)

    int8_embed_layer_norm = staticmethod(reference.int8_embed_layer_norm)
    linear = staticmethod(reference.linear)
    linear_concat = staticmethod(reference.linear_concat)
    int8_linear = staticmethod(reference.int8_linear)
    fp8_linear = staticmethod(reference.fp8_linear)
    fp8_add_layer_norm = staticmethod(reference.fp8_add_layer_norm)
    varlen_attention = staticmethod(reference.varlen_attention)
    write_cache = staticmethod(reference.write_cache)
    cached_attention = staticmethod(reference.cached_attention)
    pack = staticmethod(reference.pack)
    unpack = staticmethod(reference.unpack)


class KVMemory(Protocol):
    """The KV cache interface of attention."""

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Stores the layer's new k and v [B, S, N, D]; returns the keys and values to attend to, [B, Sk, N, D] each."""


@dataclass(slots=True)
class PaddedAttention:
    """softmax(q k^T / sqrt(D) + mask) v on padded rows; one object serves the layers in turn."""

    batch: int
    mask: Tensor | None  # broadcast to [B, N, S, Sk], added to the scores
    head_masks: Sequence[Tensor] | None = None  # a layer each, broadcast to [B, N, S, Sk], multiplies the probabilities
    keep: bool = False
    dropout: Dropout | None = None
    shared_dropout: bool = False  # one dropout pattern for all sequences and heads, as flax.linen's broadcast_dropout
    memory: KVMemory | None = None
    probabilities: list[Tensor] = field(default_factory=list)  # [B, N, S, Sk] a layer, where kept
    layer: int = 0

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, heads: int, O: Ops) -> Tensor:
        Q, K, V = (self.split(t, heads) for t in (q, k, v))  # [B, rows, N, D]
        if self.memory is not None:
            K, V = self.memory.append(self.layer, K, V)
        Q, K, V = Q.transpose(1, 2), K.transpose(1, 2), V.transpose(1, 2)
        factor = None if self.head_masks is None else self.head_masks[self.layer]
        if self.dropout is not None and self.dropout.attention > 0:
            shape = (1, 1, Q.shape[2], K.shape[2]) if self.shared_dropout else (*Q.shape[:3], K.shape[2])
            kept = self.dropout.keep(shape, self.dropout.attention, Q)
            factor = kept if factor is None else factor * kept
        context, probabilities = reference.attention(Q, K, V, self.mask, head_mask=factor)
        if self.keep:
            self.probabilities.append(probabilities)
        self.layer += 1
        return context.transpose(1, 2).reshape(q.shape)

    def split(self, t: Tensor, heads: int) -> Tensor:
        return t.reshape(self.batch, t.shape[0] // self.batch if self.batch else 0, heads, t.shape[1] // heads)

    def first_rows(self) -> None:
        return None


def padded_batch(
    shape: tuple[int, int],
    embeddings: Any,
    input_ids: Tensor | None,  # [B, S], or None with words
    words: Tensor | None,  # [B * S, H]: the word vectors themselves
    token_type_ids: Tensor | None,  # [B, S]
    position_ids: Tensor,  # [B, S]
    attention: PaddedAttention,
    encoder_rows: Tensor | None = None,  # [B * Se, He]
    cross_attention: PaddedAttention | None = None,
) -> PackedBatch:
    """A batch whose rows are all of its cells. Every id must lie in its table."""
    B, S = shape
    device = embeddings.word_embeddings.weight.device
    ids = torch.arange(B * S, device=device) if input_ids is None else flat(input_ids)
    rows = GraphInputs(
        ids, words, None if token_type_ids is None else flat(token_type_ids), flat(position_ids), attention, encoder_rows, cross_attention
    )
    return PackedBatch(rows, B, S, None, None, torch.arange(B, device=device) * S)


def flat(ids: Tensor) -> Tensor:
    return ids.reshape(-1).to(torch.int64).contiguous()


def gather_words(embeddings: Any, shape: tuple[int, int], *lookups: tuple[Tensor, int]) -> tuple[list[Tensor], Tensor]:
    """Lookups as JAX's gather does them: a negative id counts from the end, and one outside the table gives NaN.

    lookups: (ids broadcast to [B, S], rows of its table); the first are word ids. Returns ids that lie in their tables, and the word
    vectors [B * S, H], NaN wherever one of the lookups of that cell misses.
    """
    inside, lost = [], torch.zeros(shape, dtype=torch.bool, device=embeddings.word_embeddings.weight.device)
    for ids, rows in lookups:
        wrapped = torch.where(ids < 0, ids + rows, ids)
        missed = (wrapped < 0) | (wrapped >= rows)
        lost |= missed
        inside.append(wrapped.masked_fill(missed, 0).expand(shape))
    words = ops.pack(embeddings.word_embeddings.weight, flat(inside[0]))
    return inside, words.masked_fill(lost.reshape(-1, 1), float("nan"))
