"""Greedy decoding and sampling on the KV cache, one step at a time.

Source: FlaxGenerationMixin of transformers 4.37.

Shape letters: R rows (sequences, or beams of all prompts), S prompt length, M max_length, V vocabulary.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bertfast import ops
from bertfast.batch.attention import MaskedAttention
from bertfast.compat import arrays
from bertfast.compat.dense import padded_batch
from bertfast.compat.engine import Engine
from bertfast.compat.flax import inputs, prng
from bertfast.compat.flax.cache_buffers import cached_step
from bertfast.compat.flax.processors import Processor, apply_all, warpers
from bertfast.graph.encoder import encode

if TYPE_CHECKING:
    from bertfast.compat.flax.pretrained import FlaxBertPreTrainedModel

CustomProcessor = Callable[[npt.NDArray[np.generic], npt.NDArray[np.generic], int], arrays.Array]  # (input_ids, scores, length) -> scores
CustomProcessors: TypeAlias = CustomProcessor | list[CustomProcessor] | tuple[CustomProcessor, ...]


def full_mask(ids: Tensor, mask: object, length: int) -> tuple[Tensor, Tensor]:
    """The prompt's mask extended to `length` columns with ones, and the prompt's position_ids (-1 at left padding)."""
    full = torch.ones(ids.shape[0], length, dtype=torch.int64, device=ids.device)
    if mask is None:
        return full, torch.arange(ids.shape[1], device=ids.device).expand(ids.shape)
    read = inputs.as_int32(mask, "attention_mask", ids.device)
    if read.dim() != 2 or read.shape[0] != ids.shape[0] or read.shape[1] > length:
        raise ValueError(f"attention_mask: got shape {tuple(read.shape)}, expected {tuple(ids.shape)}")
    full[:, : read.shape[1]] = read
    return full, read.cumsum(dim=1) - 1


class CachedDecoder:
    """A model with a KV cache; each step appends tokens and gives the scores of the next one."""

    def __init__(self, model: "FlaxBertPreTrainedModel", engine: Engine, prompt: Tensor, mask: Tensor | None, length: int) -> None:
        self.engine, self.config = engine, model.config
        self.buffers = model._new_buffers(prompt.shape[0], length, engine.device)
        full, self.positions = full_mask(prompt, mask, length)
        self.mask = full.ne(0)
        self.prompt = prompt
        self.index = 0

    def step(self, tokens: Tensor) -> Tensor:  # [R, s] -> float32 [R, V]
        """Appends `tokens` and returns the next token's scores."""
        read = inputs.FlaxInputs(
            (tokens.shape[0], tokens.shape[1]), tokens, None, self.positions, self.mask,
            inputs.within(tokens, self.config.vocab_size) and inputs.within(self.positions, self.config.max_position_embeddings),
        )  # fmt: skip
        memory, visible = cached_step(self.buffers, self.index, read, self.config, False)
        embeddings = self.engine.bert.embeddings
        ids, words, positions, types = inputs.embedding_inputs(read, embeddings, self.config)
        attention = MaskedAttention(tokens.shape[0], inputs.additive(visible), memory=memory)
        rows = encode(self.engine.bert, padded_batch(read.shape, embeddings, ids, words, types, positions, attention).rows)
        last = rows.view(*read.shape, -1)[:, -1].contiguous()
        self.buffers = memory.buffers
        self.index += tokens.shape[1]
        self.positions = self.positions[:, -1:] + 1
        return self.engine.module.family.lm_logits(self.engine.module, last, ops).float()

    def reorder(self, rows: Tensor) -> None:
        """Continues with the cache rows `rows`, in that order."""
        self.buffers = self.buffers.reordered(rows)


def decode(
    decoder: CachedDecoder, ids: Tensor, settings: SimpleNamespace, process: list[Processor], key: prng.Key | None
) -> Tensor:  # -> [B, M] int32
    """Greedy decoding, or sampling with a key; a sequence that has ended is padded."""
    (B, S), M = ids.shape, settings.max_length
    sequences = torch.full((B, M), settings.pad_token_id, dtype=torch.int64, device=ids.device)
    sequences[:, :S] = ids
    finished = torch.zeros(B, dtype=torch.bool, device=ids.device)
    warp = warpers(settings) if key is not None else []
    tokens = ids
    for length in range(S, M):
        if bool(finished.all()):
            break
        scores = apply_all(warp, length, apply_all(process, length, decoder.step(tokens)))
        if key is not None:
            now, key = prng.split(key)
            scores = scores + torch.from_numpy(prng.gumbel(now, tuple(scores.shape))).to(scores.device)
        chosen = scores.argmax(dim=1).masked_fill(finished, settings.pad_token_id)
        if settings.eos_token_id is not None:
            finished = finished | chosen.eq(settings.eos_token_id)
        sequences[:, length] = chosen
        tokens = chosen[:, None]
    return sequences.to(torch.int32)


def custom_processors(given: CustomProcessors | None, decoder: CachedDecoder) -> list[Processor]:
    """The caller's processors f(input_ids, scores, length) -> scores, which take NumPy arrays."""
    found = given if isinstance(given, (list, tuple)) else [] if given is None else [given]

    def adapted(f: CustomProcessor) -> Processor:
        def process(length: int, scores: Tensor) -> Tensor:
            out = f(arrays.to_numpy(decoder.prompt), arrays.to_numpy(scores), length)
            return arrays.to_torch(out, "logits_processor").to(scores.device, torch.float32)

        return process

    return [adapted(f) for f in found]
