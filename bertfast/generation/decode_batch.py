"""The unfinished sequences of a generation.

Shape letters: B prompts, S prompt columns, A unfinished sequences, V vocabulary.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from bertfast import ops
from bertfast.batch.packed import PackedBatch
from bertfast.cache.attention import PromptAttention
from bertfast.cache.decode import DecodeCache
from bertfast.generation import cuda_decoder
from bertfast.generation.cpu_decoder import CpuDecoder
from bertfast.generation.cuda_decoder import CudaDecoder
from bertfast.graph.encoder import encode
from bertfast.runtime.model_types import Model


class DecodeBatch:
    """One row for each unfinished sequence, and its row of the KV cache."""

    def __init__(self, model: Model, batch: PackedBatch, max_length: int, beams: int = 1) -> None:
        """batch: of `pack_prompts`. max_length: of a sequence, padding included. beams: sequences that `reorder` may make of a prompt."""
        self.model, self.batch = model, batch
        base, S = model.base_model, batch.columns
        boundaries = batch.rows.require_varlen().cu_seqlens_q
        self.prompt_lengths = boundaries.diff()  # [B]
        lengths = self.prompt_lengths.tolist()
        self.padded_columns = S - max(lengths)  # in which every prompt is padded
        rows, capacity = batch.batch * beams, max(lengths) + max(max_length - S - 1, 0)
        self.decoder: CpuDecoder | CudaDecoder
        if cuda_decoder.is_supported(model):
            self.decoder = cuda_decoder.acquire(model, rows, capacity, lambda rows, capacity: DecodeCache(base, rows, capacity))
        else:
            self.decoder = CpuDecoder(model, DecodeCache(base, rows, capacity))
        self.cache = self.decoder.cache
        device = boundaries.device
        self.cache_rows = torch.tensor(self.cache.table.admit(lengths), device=device)  # [A] int64
        self.members = torch.arange(batch.batch, device=device)  # [A] int64: the row of the batch that each sequence is
        self.member_list = list(range(batch.batch))  # the same on the host
        self.last_rows = boundaries[1:].long() - 1  # [B]
        types = batch.rows.token_type_ids
        self.decoder.begin(
            positions=batch.rows.position_ids.index_select(0, self.last_rows),
            token_types=None if types is None else types.index_select(0, self.last_rows),  # a new token has its predecessor's
            cache_rows=self.cache_rows,
            lengths=self.prompt_lengths.long(),
        )

    @torch.no_grad()
    def read_prompts(self) -> Tensor:  # [B, V]
        """The logits of the prompts' last tokens; their keys and values go into the cache."""
        rows, lengths = self.batch.rows, self.prompt_lengths.long()
        sequence = torch.repeat_interleave(lengths, output_size=rows.input_ids.shape[0])  # of each packed row
        positions = torch.arange(len(sequence), device=sequence.device) - (self.last_rows + 1 - lengths).index_select(0, sequence)
        store = self.cache.store(self.cache_rows.index_select(0, sequence), positions)
        rows.attention = PromptAttention(rows.require_varlen(), store)
        hidden = encode(self.model.base_model, rows, ops, first_rows=self.last_rows)
        return self.model.family.lm_logits(self.model, hidden, ops)

    @torch.no_grad()
    def step(self, tokens: Tensor) -> Tensor:  # [A] int64 -> [A, V]
        """Reads one token of each sequence."""
        self.cache.table.extend(1)
        return self.decoder(tokens)

    def drop_finished(self, unfinished: list[bool]) -> None:
        """Frees the cache rows of finished sequences, except those that fill up the decoder's step size. unfinished: [B]."""
        going = [i for i, member in enumerate(self.member_list) if unfinished[member]]
        ended = [i for i, member in enumerate(self.member_list) if not unfinished[member]]
        staying = sorted([*going, *ended][: self.decoder.size_for(len(going))])
        if len(staying) < len(self.member_list):
            self.reorder(staying)

    def reorder(self, parents: list[int]) -> None:
        """Sequence i goes on from what was sequence parents[i]; one that is nobody's parent is dropped."""
        if parents == list(range(len(self.member_list))):
            return
        self.cache.reorder(parents)
        self.member_list = [self.member_list[i] for i in parents]
        device = self.cache_rows.device
        parent, self.cache_rows = torch.tensor(parents, device=device), torch.tensor(self.cache.table.running, device=device)
        self.members = self.members.index_select(0, parent)
        self.decoder.reorder(parent, self.cache_rows)

    def as_cache(self) -> DynamicCache:
        """The cached keys and values, padding included, for the caller to keep."""
        columns = self.padded_columns + max(self.cache.table.lengths)
        return self.cache.as_cache(ours=self.decoder.keeps_cache, columns=columns)

    def release(self) -> None:
        """Ends the use of the decoder."""
        self.decoder.release()


def invariant_tiles(model: Model) -> AbstractContextManager[None]:
    """Within: fixed tiles, where the model asks for batch_invariant."""
    return ops.batch_invariant(model.base_model.embeddings.position_embeddings.weight) if model.batch_invariant else nullcontext()
