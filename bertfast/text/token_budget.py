"""Batching under a token budget: which texts share a batch."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from bertfast.runtime.native import _C


def plan_batches(lengths: Sequence[int], *, max_tokens: int, max_rows: int) -> list[npt.NDArray[np.int64]]:
    """Split texts into batches of similar length, each of at most `max_tokens` tokens and `max_rows` texts.

    lengths: tokens of each text, [n]. Returns the indices of each batch, int64; together they are a permutation of 0 .. n - 1. A text
    longer than `max_tokens` is a batch by itself. Raises ValueError for a limit below 1.
    """
    for name, value in (("max_tokens", max_tokens), ("max_rows", max_rows)):
        if value < 1:
            raise ValueError(f"{name}: got {value}, expected at least 1")
    tokens = np.ascontiguousarray(lengths, dtype=np.int64)
    order = np.empty(len(tokens), dtype=np.int64)
    bounds = _C.plan_batches(tokens.ctypes.data, len(tokens), max_tokens, max_rows, order.ctypes.data)
    return [order[start:end] for start, end in pairwise(bounds)]
