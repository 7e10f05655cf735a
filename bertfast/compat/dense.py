"""Calls of the TensorFlow and Flax classes that the kernels do not cover: all cells are rows, and the reference definitions run.

Covers additive masks of any values, head masks, dropout, returned probabilities and Flax's lookups out of range. The graph is the same
(bertfast.graph.encoder.encode), with MaskedAttention and, for dropout, other ops.

Shape letters: B batch, S padded length, H hidden, Se encoder length.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bertfast import ops
from bertfast.batch.attention import MaskedAttention, ProbabilityDropout
from bertfast.batch.packed import GraphInputs, PackedBatch
from bertfast.ops import reference

if TYPE_CHECKING:
    from transformers.models.bert.modeling_bert import BertEmbeddings


@dataclass(slots=True)
class Dropout:
    """Inverted dropout with its own generator: equal seeds give equal outputs."""

    hidden: float
    attention: float
    generator: torch.Generator

    def keep(self, shape: Sequence[int], rate: float, like: Tensor) -> Tensor:
        """0 where dropped, 1 / (1 - rate) elsewhere."""
        kept = torch.empty(tuple(shape), device=like.device, dtype=torch.float32).bernoulli_(1 - rate, generator=self.generator)
        return (kept / (1 - rate)).to(like.dtype)

    def __call__(self, x: Tensor, rate: float) -> Tensor:
        return x * self.keep(x.shape, rate, x) if rate > 0 else x

    def of_probabilities(self, shared: bool = False) -> ProbabilityDropout | None:
        """Dropout of attention probabilities; None where its rate is 0. shared: one pattern for all sequences and heads, as
        flax.linen's broadcast_dropout."""
        if self.attention <= 0:
            return None
        return lambda shape, like: self.keep((1, 1, *shape[2:]) if shared else shape, self.attention, like)


@dataclass(slots=True)
class DroppingOps:
    """The reference ops with BERT's dropout: after the embeddings and after the dense layer of each block."""

    dropout: Dropout

    def embed_layer_norm(self, *args: Any) -> Tensor:
        return self.dropout(reference.embed_layer_norm(*args), self.dropout.hidden)

    def add_layer_norm(self, x: Tensor, residual: Tensor | None, *args: Any) -> Tensor:
        # No residual: the prediction head's LayerNorm, where BERT has no dropout.
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


def padded_batch(
    shape: tuple[int, int],
    embeddings: "BertEmbeddings",
    input_ids: Tensor | None,  # [B, S]; None with words
    words: Tensor | None,  # [B * S, H]: word vectors, where there are no ids
    token_type_ids: Tensor | None,  # [B, S]
    position_ids: Tensor,  # [B, S]
    attention: MaskedAttention,
    encoder_rows: Tensor | None = None,  # [B * Se, He]
    cross_attention: MaskedAttention | None = None,
) -> PackedBatch:
    """A batch whose rows are all cells of [B, S]. Each id must lie in its table."""
    B, S = shape
    device = embeddings.word_embeddings.weight.device
    ids = torch.arange(B * S, device=device) if input_ids is None else flat(input_ids)
    rows = GraphInputs(
        ids, words, None if token_type_ids is None else flat(token_type_ids), flat(position_ids), attention, encoder_rows, cross_attention
    )
    return PackedBatch(rows, B, S, None, None, torch.arange(B, device=device) * S)


def flat(ids: Tensor) -> Tensor:
    return ids.reshape(-1).to(torch.int64).contiguous()


def gather_words(embeddings: "BertEmbeddings", shape: tuple[int, int], *lookups: tuple[Tensor, int]) -> tuple[list[Tensor], Tensor]:
    """Lookups with the semantics of JAX's gather: a negative id counts from the end, an id outside the table gives NaN.

    lookups: (ids that broadcast to [B, S], rows of their table), the word ids first. Returns ids inside their tables, and the word
    vectors [B * S, H], NaN where any lookup of that cell is outside.
    """
    inside, lost = [], torch.zeros(shape, dtype=torch.bool, device=embeddings.word_embeddings.weight.device)
    for ids, rows in lookups:
        wrapped = torch.where(ids < 0, ids + rows, ids)
        missed = (wrapped < 0) | (wrapped >= rows)
        lost |= missed
        inside.append(wrapped.masked_fill(missed, 0).expand(shape))
    words = ops.pack(embeddings.word_embeddings.weight, flat(inside[0]))
    return inside, words.masked_fill(lost.reshape(-1, 1), float("nan"))
