"""Logits processors and warpers of generate: float32 [rows, V] -> float32 [rows, V].

Source: those of transformers 4.37's Flax generation. It accepted other settings without effect.
"""

import math
from collections.abc import Callable
from types import SimpleNamespace

import torch
from torch import Tensor

Processor = Callable[[int, Tensor], Tensor]  # (length so far, scores [rows, V]) -> scores


def processors(settings: SimpleNamespace, prompt: int) -> list[Processor]:
    """The processors for these settings. prompt: the prompt's length."""
    found: list[Processor] = []
    if settings.min_length is not None and settings.eos_token_id is not None and settings.min_length > -1:
        found.append(suppress_while(lambda n: n <= settings.min_length, [settings.eos_token_id]))
    if settings.forced_bos_token_id is not None:
        found.append(force_at(1, settings.forced_bos_token_id))
    if settings.forced_eos_token_id is not None:
        found.append(force_at(settings.max_length - 1, settings.forced_eos_token_id))
    if settings.suppress_tokens is not None:
        found.append(suppress_while(lambda n: True, list(settings.suppress_tokens)))
    forced = dict(settings.forced_decoder_ids or [])
    if settings.begin_suppress_tokens is not None:
        begin = prompt if prompt > 1 or settings.forced_bos_token_id is None else prompt + 1
        begin += max(forced, default=0)
        found.append(suppress_while(lambda n: n == begin, list(settings.begin_suppress_tokens)))
    found.extend(force_at(prompt + at - 1, token) for at, token in forced.items())
    return found


def warpers(settings: SimpleNamespace) -> list[Processor]:
    """The warpers of sampling. Raises ValueError, naming the setting, for a value out of range."""
    found: list[Processor] = []
    if settings.temperature is not None and settings.temperature != 1.0:
        if not settings.temperature > 0:
            raise ValueError(f"temperature: got {settings.temperature}, expected a number above 0")
        found.append(lambda n, scores: scores / settings.temperature)
    if settings.top_k is not None and settings.top_k != 0:
        if not isinstance(settings.top_k, int) or settings.top_k < 0:
            raise ValueError(f"top_k: got {settings.top_k}, expected a positive integer")
        found.append(lambda n, scores: keep_top_k(scores, settings.top_k))
    if settings.top_p is not None and settings.top_p < 1.0:
        if settings.top_p < 0:
            raise ValueError(f"top_p: got {settings.top_p}, expected a number from 0 to 1")
        found.append(lambda n, scores: keep_top_p(scores, settings.top_p))
    return found


def apply_all(found: list[Processor], length: int, scores: Tensor) -> Tensor:
    for process in found:
        scores = process(length, scores)
    return scores


def suppress_while(condition: Callable[[int], bool], tokens: list[int]) -> Processor:
    """Sets the tokens' scores to -inf at lengths where `condition` holds."""

    def process(length: int, scores: Tensor) -> Tensor:
        if not condition(length):
            return scores
        return scores.index_fill(1, torch.tensor(tokens, device=scores.device), -math.inf)

    return process


def force_at(at: int, token: int) -> Processor:
    """Sets all other scores to -inf at length `at`."""

    def process(length: int, scores: Tensor) -> Tensor:
        if length != at:
            return scores
        return torch.full_like(scores, -math.inf).index_fill(1, torch.tensor([token], device=scores.device), 0.0)

    return process


def keep_top_k(scores: Tensor, k: int) -> Tensor:
    """Sets all but the k largest scores of each row to -inf."""
    values, indices = stable_top_k(scores, min(k, scores.shape[1]))
    return torch.full_like(scores, -math.inf).scatter(1, indices, values)


def keep_top_p(scores: Tensor, p: float) -> Tensor:
    """Nucleus sampling: the most probable tokens with cumulative probability p, the one that crosses p included, at least one."""
    values, indices = torch.sort(scores, dim=1, descending=True, stable=True)
    before = torch.softmax(values, dim=1).cumsum(dim=1) < p
    kept = torch.cat([torch.ones_like(before[:, :1]), before[:, :-1]], dim=1)
    return torch.full_like(scores, -math.inf).scatter(1, indices, values.masked_fill(~kept, -math.inf))


def stable_top_k(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row, ties by index, as in lax.top_k (torch.topk leaves the order of ties open)."""
    least = torch.topk(scores, k, dim=1).values[:, -1:]
    values, indices = [], []
    for row, bound in zip(scores, least, strict=True):
        candidates = torch.nonzero(row >= bound).squeeze(1)
        order = torch.sort(row[candidates], descending=True, stable=True).indices[:k]
        indices.append(candidates[order])
        values.append(row[indices[-1]])
    return torch.stack(values), torch.stack(indices)
