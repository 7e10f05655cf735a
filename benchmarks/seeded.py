"""Lengths and sentences, drawn with a seed: those that are timed, and those that int8 is calibrated with. A model that was calibrated is
kept under this file's hash, so what draws neither stays out of it."""

from functools import cache
from pathlib import Path

import numpy as np

from benchmarks.models import minilm_folder

SEED = 20240613
FIRST_WORD = 1000  # BERT's vocabulary holds special tokens and unused slots below
LONGEST = 128


def ragged(rows: int, mean: float, longest: int, shortest: int = 4) -> tuple[int, ...]:
    """Lengths as text has them: log-normal with a spread of 0.6, clipped, the longest present, and the mean met exactly."""
    rng = np.random.default_rng(SEED + rows)
    lengths = np.clip(rng.lognormal(np.log(mean) - 0.18, 0.6, rows).round().astype(int), shortest, longest)
    lengths[0] = longest
    missing = round(mean * rows) - int(lengths.sum())
    while missing:  # one token at a time, to or from rows that can take it
        row = int(rng.integers(1, rows))
        step = 1 if missing > 0 else -1
        if shortest <= lengths[row] + step <= longest:
            lengths[row] += step
            missing -= step
    return tuple(int(n) for n in lengths)


@cache
def _words(folder: Path) -> tuple[str, ...]:
    """Vocabulary entries that are one plain English-looking word, so that a sentence of n of them is n tokens."""
    entries = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
    return tuple(word for word in entries[FIRST_WORD:] if word.isascii() and word.isalpha() and len(word) > 1)


def sentences(lengths: tuple[int, ...], rng: np.random.Generator) -> list[str]:
    """Seeded words; `lengths` count [CLS] and [SEP]."""
    words = _words(minilm_folder())
    return [" ".join(words[i] for i in rng.integers(0, len(words), n - 2)) for n in lengths]
