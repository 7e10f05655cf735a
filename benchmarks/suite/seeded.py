"""Seeded lengths and sentences, for timing and for the calibration of int8.

Calibrated models are cached under this file's hash: keep other code out of it."""

from functools import cache
from pathlib import Path

import numpy as np

from benchmarks.suite.models import minilm_folder

SEED = 20240613
FIRST_WORD = 1000  # smaller ids of BERT's vocabulary are special tokens and unused entries
LONGEST = 128


def ragged(rows: int, mean: float, longest: int, shortest: int = 4) -> tuple[int, ...]:
    """Log-normal lengths as of text, with a spread of 0.6, clipped; one row has the longest length, and the mean is exact."""
    rng = np.random.default_rng(SEED + rows)
    lengths = np.clip(rng.lognormal(np.log(mean) - 0.18, 0.6, rows).round().astype(int), shortest, longest)
    lengths[0] = longest
    missing = round(mean * rows) - int(lengths.sum())
    while missing:  # one token at a time, to or from a random row
        row = int(rng.integers(1, rows))
        step = 1 if missing > 0 else -1
        if shortest <= lengths[row] + step <= longest:
            lengths[row] += step
            missing -= step
    return tuple(int(n) for n in lengths)


@cache
def _words(folder: Path) -> tuple[str, ...]:
    """Vocabulary entries that are whole ASCII words: a sentence of n of them has n tokens."""
    entries = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
    return tuple(word for word in entries[FIRST_WORD:] if word.isascii() and word.isalpha() and len(word) > 1)


def sentences(lengths: tuple[int, ...], rng: np.random.Generator) -> list[str]:
    """Sentences of random words; `lengths` count [CLS] and [SEP]."""
    words = _words(minilm_folder())
    return [" ".join(words[i] for i in rng.integers(0, len(words), n - 2)) for n in lengths]
