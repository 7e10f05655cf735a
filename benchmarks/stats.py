"""Medians, spreads and ratios of repeated timings."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Two processes of one program on one quiet machine differ by this much: where the pages of the weights happen to lie decides.
# A band narrower than this would claim what a second start of the same process refutes.
PLACEMENT = 0.02
FEWEST = 3  # pairs; fewer show no band at all
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


@dataclass(frozen=True)
class Turn:
    """One subject's turn within a round: the median of its calls, between two moments of one clock. All in seconds."""

    name: str
    seconds: float
    begin: float
    end: float


Round = Sequence[Turn]  # in the order in which they were


def pairs(rounds: Sequence[Round], slower: str, faster: str) -> list[float]:
    """slower / faster, one number a round. A turn of the subject that had fewer of them is set against the other's nearest turn in time, so
    that what the machine does for seconds on end slows down both sides of a pair or none; the few pairs that a change of speed falls into
    are outliers, which medians pass over. Rounds that lack either are left out."""
    found = []
    for turns in rounds:
        above, below = ([t for t in turns if t.name == name] for name in (slower, faster))
        if not above or not below:
            continue
        if len(above) <= len(below):
            ratios = [t.seconds / min(below, key=lambda other: _apart(t, other)).seconds for t in above]
        else:
            ratios = [min(above, key=lambda other: _apart(t, other)).seconds / t.seconds for t in below]
        found.append(float(np.median(ratios)))
    return found


def _apart(a: Turn, b: Turn) -> float:
    return max(a.begin - b.end, b.begin - a.end, 0.0)


def ratio_of(ratios: Sequence[float]) -> Ratio:
    """The median of pairs, with the band that they themselves show: never that of the times, which a machine of two speeds tears apart."""
    spread = Spread.of(ratios)
    return Ratio(spread.median, max(spread.relative, PLACEMENT) if len(ratios) >= FEWEST else 1.0)


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
