"""The rows of one call."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bertfast.batch.attention import Attention
from bertfast.ops import Ops


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
    cross_cache: Any = None  # bertfast.cache.layout.CrossCache: where its keys and values are kept


@dataclass(slots=True)
class PackedBatch:
    """The rows of one call and the way back to [B, S]."""

    rows: GraphInputs
    batch: int  # B
    columns: int  # S
    indices: Tensor | None  # [R] int64: the cell of each row in the flattened [B, S]; None: rows are the cells themselves
    blank: Tensor | None  # [B, S] bool: padded cells, which come back as a fill; None where there are none, or padding is kept
    first_rows: Tensor  # [B] int64: the row of column 0 of each sequence (of its first token, where column 0 is padding)

    def unpack(self, x: Tensor, O: Ops, fill: float = 0.0) -> Tensor:  # [R, C] -> [B * S, C]
        if self.indices is not None:
            return O.unpack(x, self.indices, self.batch * self.columns, fill)
        return x if self.blank is None else x.masked_fill(self.blank.view(-1, 1), fill)

    def cells(self, x: Tensor) -> Tensor:  # [B * S, C] -> [B, S, C]
        return x.view(self.batch, self.columns, x.shape[1])

    def padding(self) -> Tensor | None:  # [B, S] bool: the cells that come back as a fill; None where there are none
        if self.indices is None:
            return self.blank
        cells = torch.ones(self.batch * self.columns, dtype=torch.bool, device=self.indices.device)
        return cells.index_fill_(0, self.indices, False).view(self.batch, self.columns)

    def unpack_probabilities(self, probabilities: Tensor) -> Tensor:  # [B, N, S, Sk], rows of padded queries blanked
        return probabilities if self.blank is None else probabilities.masked_fill(self.blank[:, None, :, None], 0.0)


@dataclass(frozen=True, slots=True)
class OutputNeeds:
    """What a call asks of its batch beyond the hidden states."""

    keep_padding: bool = False  # padded cells count: compute them as transformers does
    pooled: bool = False  # column 0 is read, whatever it holds
    probabilities: bool = False  # attention probabilities are returned
    differentiable: bool = False  # the graph runs on the reference ops under autograd
