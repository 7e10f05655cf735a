"""Medians, spreads and ratios of repeated timings."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Two processes of one program on one quiet machine differ by this much: where the pages of the weights happen to lie decides.
# A band narrower than this would claim what a second start of the same process refutes.
PLACEMENT = 0.02
NOISY = 0.05  # a band wider than this each side is a noisy machine's: no verdict


@dataclass(frozen=True)
class Spread:
    """Median with the 20th and 80th percentile."""

    median: float
    p20: float
    p80: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        if len(values) == 0:
            raise ValueError("no values to take a median of")
        p20, median, p80 = np.percentile(np.asarray(values, dtype=np.float64), [20, 50, 80])
        return cls(float(median), float(p20), float(p80))

    @property
    def relative(self) -> float:
        """Half the distance between the percentiles, as a share of the median."""
        return (self.p80 - self.p20) / (2 * self.median)


@dataclass(frozen=True)
class Ratio:
    """How many times faster one subject is than another, with the band within which it is the same as 1 - band .. 1 + band."""

    value: float
    band: float  # relative, each side

    @property
    def noisy(self) -> bool:
        return self.band > NOISY

    @property
    def low(self) -> float:
        return self.value * (1 - self.band)

    @property
    def high(self) -> float:
        return self.value * (1 + self.band)


def ratio_of(slower: Sequence[float], faster: Sequence[float]) -> Ratio:
    """slower / faster, taken within each round of an interleaved run, so that what changes between rounds cancels."""
    if len(slower) != len(faster):
        raise ValueError(f"{len(slower)} rounds of one subject, {len(faster)} of the other: they were not interleaved")
    rounds = Spread.of([s / f for s, f in zip(slower, faster, strict=True)])
    return Ratio(rounds.median, max(rounds.relative, PLACEMENT))


def change(before: Ratio, after: Ratio) -> Ratio:
    """after / before, of two runs whose noise is independent."""
    return Ratio(after.value / before.value, float(np.hypot(before.band, after.band)))


def verdict(before: Ratio, after: Ratio) -> str:
    """faster, slower, same (1 lies within the band), or noisy (a band too wide to say)."""
    if before.noisy or after.noisy:
        return "noisy"
    moved = change(before, after)
    if abs(moved.value - 1) <= moved.band:
        return "same"
    return "faster" if moved.value > 1 else "slower"
