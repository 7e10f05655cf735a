"""The order of turns in a round, the ratios of the rounds, and when there are enough rounds.

A machine may change its speed for seconds at a time, so a ratio is of adjacent turns. The order of a round makes them adjacent: the
reference has a turn at least every few seconds, competing subjects follow each other, the fastest peer follows ours, a twin
precedes its original. Every second round runs backwards, so that a drift cancels.
"""

from collections.abc import Sequence
from typing import Any

from benchmarks.subjects import Spec
from benchmarks.suite.stats import Ratio, Round, Spread, pairs, ratio_of

_FAR = 1.0  # seconds since the reference's last turn; after more it gets another turn before the next rank


def schedule(specs: Sequence[Spec], reference: str, seconds: dict[str, float], turn: float, backwards: bool = False) -> list[str]:
    """The turns of a round. `seconds`: of a call of each subject so far; subjects without one do not take part. A turn lasts at least
    `turn` seconds."""
    here = [s for s in specs if s.name in seconds]
    others = [s for s in here if s.name != reference]
    found = [reference] if reference in seconds else []
    since = 0.0
    for rank in dict.fromkeys(["float32", *(s.rank for s in others)]):
        group = _beside([s for s in others if s.rank == rank], seconds)
        if group and since > _FAR and found:
            found.append(reference)
            since = 0.0
        found += group
        since += sum(max(turn, seconds[name]) for name in group)
    return found[::-1] if backwards else found


def _beside(group: list[Spec], seconds: dict[str, float]) -> list[str]:
    """One rank's subjects: ours first, then the fastest peer. A twin directly precedes its original, or comes first if that is the
    reference."""
    here = {spec.name for spec in group}
    alone = [[spec] for spec in group if spec.twin and spec.twin not in here]
    ours, peers = [], []
    for spec in group:
        if not spec.twin:
            both = [*(twin for twin in group if twin.twin == spec.name), spec]
            (ours if spec.ours else peers).append(both)
    peers.sort(key=lambda both: seconds[both[-1].name])
    ordered = [*alone, *ours[:1], *peers[:1], *ours[1:], *peers[1:]]
    return [spec.name for both in ordered for spec in both]


def ratios(specs: Sequence[Spec], reference: str, rounds: Sequence[Round]) -> dict[str, dict[str, dict[str, Any]]]:
    """By subject with turns in `rounds`: `ratio` to the reference; for ours `best_peer`, the ratio to the fastest peer; for a twin
    `itself`, the ratio to its original."""
    present = {turn.name for turns in rounds for turn in turns}
    medians = {name: times(rounds, name).median for name in present}
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for spec in specs:
        if spec.name not in present:
            continue
        rows = found[spec.name] = {}
        if spec.name == reference:
            rows["ratio"] = {"to": reference, "value": 1.0, "band": 0.0}
            continue
        if reference in present:
            rows["ratio"] = _to(reference, spec.name, rounds)
        if spec.twin in present:
            rows["itself"] = _to(spec.twin, spec.name, rounds)
        peers = [s.name for s in specs if not s.ours and s.rank == spec.rank and s.name in present]
        if spec.ours and peers:
            rows["best_peer"] = _to(min(peers, key=lambda name: medians[name]), spec.name, rounds)
    return {name: {key: row for key, row in rows.items() if row} for name, rows in found.items()}


def _to(other: str, name: str, rounds: Sequence[Round]) -> dict[str, Any]:
    each = pairs(rounds, other, name)
    if not each:
        return {}
    ratio = ratio_of(each)
    return {"to": other, "value": ratio.value, "band": ratio.band, "pairs": each}


def times(rounds: Sequence[Round], name: str) -> Spread:
    return Spread.of([turn.seconds for turns in rounds for turn in turns if turn.name == name])


def settled(specs: Sequence[Spec], reference: str, rounds: Sequence[Round]) -> bool:
    """Whether no ratio is noisy."""
    found = [row for rows in ratios(specs, reference, rounds).values() for row in rows.values()]
    return not any(Ratio(row["value"], row["band"]).noisy for row in found)
