"""Who is timed after whom, what the rounds say, and when there are enough of them.

A machine may change its speed for seconds on end. So ratios are of turns that lie side by side, and the order of a round sees to it that
they do: the reference returns before it is far, what competes stands together, the fastest of the others beside ours, a subject
that takes part twice beside itself. Every second round runs backwards, so that what drifts cancels.
"""

from collections.abc import Sequence
from typing import Any

from benchmarks.stats import Ratio, Round, Spread, pairs, ratio_of
from benchmarks.subjects import Spec

_FAR = 1.0  # seconds: the reference takes another turn when its last one is longer ago and another rank begins


def schedule(specs: Sequence[Spec], reference: str, seconds: dict[str, float], turn: float, backwards: bool = False) -> list[str]:
    """The turns of a round. `seconds` is what a call of each subject took so far; those without one do not take part. A turn lasts `turn`
    seconds at least."""
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
    """One rank's subjects: first ours, with the fastest of the others right after; a twin right before its original, or first of all where
    that is the reference."""
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
    """By subject: `ratio` to the reference, `best_peer` of those that are ours, `itself` of those that take part twice. Only what `rounds`
    hold turns of."""
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
    """Whether every ratio that will be printed lies within the band of a quiet machine."""
    found = [row for rows in ratios(specs, reference, rounds).values() for row in rows.values()]
    return not any(Ratio(row["value"], row["band"]).noisy for row in found)
