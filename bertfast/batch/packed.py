"""The rows of one call, and the way back to [B, S].

Shape letters: B batch, S padded length, R rows, Re rows of the encoder, N heads, C any columns.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from bertfast.batch.attention import Attention, VarlenAttention
from bertfast.ops import Ops


class CrossKV(Protocol):
    """Cross-attention's keys and values, kept between the calls of one generation; its layers are served in turn."""

    def read(self) -> tuple[Tensor, Tensor] | None:
        """The next layer's keys and values, [B, N, Se, D] each; None where they have to be computed, and given to `keep`."""

    def keep(self, k: Tensor, v: Tensor, heads: int) -> None:
        """Stores the next layer's keys and values, [B * Se, H] each."""


@dataclass(slots=True)
class GraphInputs:
    """What the embeddings read, a row each, and how the rows attend to one another."""

    input_ids: Tensor  # [R] int64
    words: Tensor | None  # [R', H]: the table input_ids point into, where it is inputs_embeds; None: the word embeddings
    token_type_ids: Tensor | None  # [R] int64; None: type 0
    position_ids: Tensor  # [R] int64
    attention: Attention
    encoder_rows: Tensor | None = None  # [Re, He]: what cross-attention reads
    cross_attention: Attention | None = None
    cross_cache: CrossKV | None = None

    @property
    def varlen(self) -> VarlenAttention | None:
        """The attention where it is varlen and without a cache, which is all that plans and CUDA graphs hold; else None."""
        return self.attention if type(self.attention) is VarlenAttention else None

    @property
    def cross_varlen(self) -> VarlenAttention | None:
        """The cross-attention where it is varlen and without a cache; else None."""
        return self.cross_attention if type(self.cross_attention) is VarlenAttention else None

    def require_varlen(self) -> VarlenAttention:
        """`varlen`, for code that only varlen batches reach. TypeError where it is None."""
        if (varlen := self.varlen) is None:
            raise TypeError(f"attention: got {type(self.attention).__name__}, expected VarlenAttention; ask `varlen` first")
        return varlen


@dataclass(slots=True)
class PackedBatch:
    """The rows of one call and the way back to [B, S]."""

    rows: GraphInputs
    batch: int  # B
    columns: int  # S
    indices: Tensor | None  # [R] int64: the cell of each row in the flattened [B, S]; None: each cell is a row
    pad_mask: Tensor | None  # [B, S] bool: rows that are padding and are overwritten by a fill; None: none are
    first_rows: Tensor  # [B] int64: the row of column 0 of each sequence (of its first token, where column 0 is padding)

    def unpack(self, x: Tensor, O: Ops, fill: float = 0.0) -> Tensor:  # [R, C] -> [B * S, C]
        if self.indices is not None:
            return O.unpack(x, self.indices, self.batch * self.columns, fill)
        return x if self.pad_mask is None else x.masked_fill(self.pad_mask.view(-1, 1), fill)

    def cells(self, x: Tensor) -> Tensor:  # [B * S, C] -> [B, S, C]
        return x.view(self.batch, self.columns, x.shape[1])

    def padding(self) -> Tensor | None:  # [B, S] bool: the cells that `unpack` fills; None: none
        if self.indices is None:
            return self.pad_mask
        padded = torch.ones(self.batch * self.columns, dtype=torch.bool, device=self.indices.device)
        return padded.index_fill_(0, self.indices, False).view(self.batch, self.columns)

    def unpack_probabilities(self, probabilities: Tensor) -> Tensor:  # [B, N, S, Sk]; rows of padded queries become 0
        return probabilities if self.pad_mask is None else probabilities.masked_fill(self.pad_mask[:, None, :, None], 0.0)


@dataclass(frozen=True, slots=True)
class OutputNeeds:
    """What a call needs of its batch beyond the hidden states."""

    keep_padding: bool = False  # compute padded cells as transformers does
    pooled: bool = False  # column 0 is read, also where it is padding
    probabilities: bool = False  # attention probabilities are returned
    differentiable: bool = False  # the graph runs on the reference ops under autograd
