"""Medians, spreads and ratios of repeated timings."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

# Two processes of one program on a quiet machine differ by this much, depending on where the pages of the weights lie. No band is
# narrower.
PLACEMENT = 0.02
FEWEST = 3  # pairs that a band needs
NOISY = 0.05  # with a band wider than this on each side the machine was noisy: no verdict


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

    def as_dict(self) -> dict[str, float]:
        return asdict(self)

    @property
    def relative(self) -> float:
        """Half the distance between the percentiles, as a share of the median."""
        return (self.p80 - self.p20) / (2 * self.median)


@dataclass(frozen=True)
class Ratio:
    """How many times as fast one subject is as another; ratios within value * (1 - band .. 1 + band) are not told apart."""

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
    """One subject's turn within a round: the median of its calls, and when the turn began and ended on one clock. All in seconds.
    `back_to_back`: seconds per call without waiting in between, where calls are asynchronous."""

    name: str
    seconds: float
    begin: float
    end: float
    back_to_back: float | None = None


Round = Sequence[Turn]  # in order of time


def pairs(rounds: Sequence[Round], slower: str, faster: str) -> list[float]:
    """slower / faster, one number per round; rounds that lack either subject are left out. Each turn of the subject with fewer turns is
    paired with the other's nearest turn in time, so that a machine that is slow for seconds slows both sides of a pair. The few pairs that
    a change of speed falls into are outliers, which the median ignores."""
    found = []
    for turns in rounds:
        above, below = ([t for t in turns if t.name == name] for name in (slower, faster))
        if not above or not below:
            continue
        if len(above) <= len(below):
            ratios = [t.seconds / min(below, key=lambda other: _gap(t, other)).seconds for t in above]
        else:
            ratios = [min(above, key=lambda other: _gap(t, other)).seconds / t.seconds for t in below]
        found.append(float(np.median(ratios)))
    return found


def _gap(a: Turn, b: Turn) -> float:
    return max(a.begin - b.end, b.begin - a.end, 0.0)


def ratio_of(ratios: Sequence[float]) -> Ratio:
    """The median of the pairs, with half the distance between their 20th and 80th percentile as the band. The spread of the times is not
    used: a machine that changes its speed widens it without changing the ratios."""
    spread = Spread.of(ratios)
    return Ratio(spread.median, max(spread.relative, PLACEMENT) if len(ratios) >= FEWEST else 1.0)


def change(before: Ratio, after: Ratio) -> Ratio:
    """after / before of two runs with independent noise."""
    return Ratio(after.value / before.value, float(np.hypot(before.band, after.band)))


def verdict(before: Ratio, after: Ratio) -> str:
    """faster, slower, same (1 lies within the band) or noisy (the band is too wide)."""
    if before.noisy or after.noisy:
        return "noisy"
    moved = change(before, after)
    if abs(moved.value - 1) <= moved.band:
        return "same"
    return "faster" if moved.value > 1 else "slower"
