"""Beam search on the KV cache.

Source: FlaxGenerationMixin of transformers 4.37. Unlike PyTorch's, running beams do not compete with finished ones at the end.

Shape letters: B batch, K beams, S prompt length, M max_length, V vocabulary.
"""

from dataclasses import dataclass
from types import SimpleNamespace

import torch
from torch import Tensor

from bertfast.compat.flax.decoding import CachedDecoder
from bertfast.compat.flax.processors import Processor, apply_all, stable_top_k

_NEVER = -1.0e7  # 4.37's score of a hypothesis that must not be chosen


@dataclass(slots=True)
class Beams:
    """K running and K finished hypotheses of each prompt, best first."""

    running: Tensor  # [B, K, M]
    running_scores: Tensor  # [B, K] sum of log probabilities
    finished: Tensor  # [B, K, M]
    finished_scores: Tensor  # [B, K] that sum / length ** length_penalty
    is_finished: Tensor  # [B, K] bool


def beam_search(decoder: CachedDecoder, ids: Tensor, settings: SimpleNamespace, process: list[Processor]) -> tuple[Tensor, Tensor]:
    """(sequences [B * num_return_sequences, M] int32, their scores [B * num_return_sequences] float32), best first per prompt."""
    (B, S), M, K = ids.shape, settings.max_length, int(settings.num_beams)
    empty = torch.full((B, K, M), settings.pad_token_id, dtype=torch.int64, device=ids.device)
    running = empty.clone()
    running[:, :, :S] = ids[:, None]
    scores = torch.full((B, K), _NEVER, device=ids.device)
    state = Beams(running, scores.clone(), empty, scores, torch.zeros(B, K, dtype=torch.bool, device=ids.device))
    state.running_scores[:, 0] = 0.0  # all beams start equal: only the first may be extended
    length, tokens = S, decoder.prompt
    while length == S or (length < M and can_improve(state, length - S, M - S, settings)):
        origin = extend(state, decoder.step(tokens), length, S, settings, process)
        decoder.reorder((origin + K * torch.arange(B, device=ids.device)[:, None]).reshape(-1))
        tokens = state.running[:, :, min(length, M - 1)].reshape(B * K, 1)
        length += 1
    any_finished = state.is_finished.any(dim=1)
    sequences = torch.where(any_finished[:, None, None], state.finished, state.running)
    scores = torch.where(any_finished[:, None], state.finished_scores, state.running_scores)
    n = int(settings.num_return_sequences)
    return sequences[:, :n].reshape(B * n, M).to(torch.int32), scores[:, :n].reshape(B * n)


def can_improve(state: Beams, generated: int, longest: int, settings: SimpleNamespace) -> bool:
    """Whether the best running hypothesis of some prompt can still beat its worst finished one."""
    if settings.early_stopping is True and bool(state.is_finished.all()):
        return False
    penalty = settings.length_penalty
    reach = longest if settings.early_stopping == "never" and penalty > 0 else generated
    best = state.running_scores[:, :1] / float(reach) ** penalty
    worst = torch.where(state.is_finished, state.finished_scores.amin(dim=1, keepdim=True), _NEVER)
    return bool((best > worst).any())


def extend(state: Beams, scores: Tensor, length: int, S: int, settings: SimpleNamespace, process: list[Processor]) -> Tensor:
    """Extends the running hypotheses by one token; returns each one's parent, [B, K]."""
    B, K, M = state.running.shape
    log_probs = apply_all(process, length, torch.log_softmax(scores, dim=1))
    V = log_probs.shape[1]
    total = log_probs.view(B, K, V) + state.running_scores[:, :, None]
    # 2 K candidates: if K of them end here, K keep running.
    values, picked = stable_top_k(total.reshape(B, K * V), 2 * K)
    parents, tokens = picked // V, picked % V
    grown = take_rows(state.running, parents)
    grown[:, :, min(length, M - 1)] = tokens
    ends = torch.zeros_like(tokens, dtype=torch.bool) if settings.eos_token_id is None else tokens.eq(settings.eos_token_id)

    alive = values + ends * _NEVER
    state.running_scores, order = stable_top_k(alive, K)
    state.running = take_rows(grown, order)

    full = state.is_finished.all(dim=1, keepdim=True) if settings.early_stopping is True else torch.zeros_like(ends[:, :1])
    final = values / float(length + 1 - S) ** settings.length_penalty + (~ends | full) * _NEVER
    merged = torch.cat([state.finished_scores, final], dim=1)
    state.finished_scores, best = stable_top_k(merged, K)
    state.finished = take_rows(torch.cat([state.finished, grown], dim=1), best)
    state.is_finished = torch.cat([state.is_finished, ends], dim=1).gather(1, best)
    return parents.gather(1, order)


def take_rows(sequences: Tensor, rows: Tensor) -> Tensor:  # [B, n, M], [B, k] -> [B, k, M]
    return sequences.gather(1, rows[:, :, None].expand(-1, -1, sequences.shape[2]))
