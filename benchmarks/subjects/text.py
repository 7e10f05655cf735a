"""Sentence embeddings for libraries that compute hidden states only: sort by length, pad per batch, pool, normalise."""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.subjects.adapter import Arrays

BATCH = 32


@dataclass(frozen=True)
class Batch:
    rows: np.ndarray  # the index of each sequence in the input
    inputs: Arrays


class Embedder:
    """Reads tokenizer and pooling from a sentence-transformers folder. `run` takes batches and yields their hidden states [B, S, H] in the
    same order; it may compute several at once."""

    def __init__(self, folder: Path, run: Callable[[Iterable[Batch]], Iterator[np.ndarray]]) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(json.loads((folder / "sentence_bert_config.json").read_text())["max_seq_length"])
        pooling = json.loads((folder / "1_Pooling" / "config.json").read_text())
        self._cls = bool(pooling["pooling_mode_cls_token"])
        self._run = run

    def __call__(self, texts: list[str]) -> np.ndarray:
        encoded = [e.ids for e in self._tokenizer.encode_batch(texts)]
        order = sorted(range(len(texts)), key=lambda i: len(encoded[i]))
        batches = [_pad(order[i : i + BATCH], encoded) for i in range(0, len(order), BATCH)]
        pooled: Any = None
        for batch, hidden in zip(batches, self._run(batches), strict=True):
            vectors = hidden[:, 0] if self._cls else _mean(hidden, batch.inputs["attention_mask"])
            if pooled is None:
                pooled = np.empty((len(texts), vectors.shape[1]), np.float32)
            pooled[batch.rows] = vectors
        return pooled / np.linalg.norm(pooled, axis=1, keepdims=True)


def _pad(rows: list[int], encoded: list[list[int]]) -> Batch:
    S = max(len(encoded[row]) for row in rows)
    ids = np.zeros((len(rows), S), np.int64)
    mask = np.zeros_like(ids)
    for at, row in enumerate(rows):
        ids[at, : len(encoded[row])] = encoded[row]
        mask[at, : len(encoded[row])] = 1
    return Batch(np.array(rows), {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)})


def _mean(hidden: np.ndarray, mask: np.ndarray) -> np.ndarray:
    weights = mask.astype(hidden.dtype)
    return np.einsum("bsh,bs->bh", hidden, weights) / weights.sum(1, keepdims=True)
