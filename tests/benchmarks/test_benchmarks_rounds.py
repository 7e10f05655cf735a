"""The order of turns, and the ratios on a machine that changes its speed. Turns are simulated; nothing is timed."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.measure import rounds
from benchmarks.subjects import SUBJECTS, again, select
from benchmarks.suite.stats import NOISY, PLACEMENT, Turn, pairs, ratio_of

REFERENCE = "transformers"
# Seconds of a call on a padded batch, where the reference takes most of a round.
SECONDS = {
    "transformers": 0.70,
    "bertfast": 0.22,
    "ctranslate2": 0.31,
    "openvino": 0.51,
    "onnxruntime": 0.56,
    "bertfast-bf16": 0.11,
    "openvino-bf16": 0.285,
    "transformers-bf16": 0.38,
    "bertfast-int8": 0.086,
    "ctranslate2-int8": 0.152,
    "openvino-int8": 0.178,
    "onnxruntime-int8": 0.267,
}


def turn(name, seconds, begin=0.0):
    return Turn(name, seconds, begin, begin + seconds)


def test_the_reference_returns_and_ours_is_beside_the_fastest_peer():
    order = rounds.schedule(select([], full=False), REFERENCE, SECONDS, 0.05)
    assert order == [
        *("transformers", "bertfast", "ctranslate2", "openvino", "onnxruntime"),
        *("transformers", "bertfast-bf16", "openvino-bf16", "transformers-bf16", "bertfast-int8"),
        *("ctranslate2-int8", "openvino-int8", "onnxruntime-int8"),
    ]
    assert rounds.schedule(select([], full=False), REFERENCE, SECONDS, 0.05, backwards=True) == order[::-1]
    slower = {name: 2 * seconds for name, seconds in SECONDS.items()}
    assert rounds.schedule(select([], full=False), REFERENCE, slower, 0.05).count(REFERENCE) == 3
    short = {name: seconds / 100 for name, seconds in SECONDS.items()}
    assert rounds.schedule(select([], full=False), REFERENCE, short, 0.05).count(REFERENCE) == 1


def test_a_twin_is_beside_its_original():
    for name in ("bertfast", "openvino", "transformers"):
        specs = [*select([], full=False), again(name)]
        order = rounds.schedule(specs, REFERENCE, {**SECONDS, f"{name} (again)": SECONDS[name]}, 0.05)
        assert abs(order.index(name) - order.index(f"{name} (again)")) == 1, name
        assert len(set(order)) == len(SECONDS) + 1
    order = rounds.schedule([again("bertfast")], REFERENCE, {"bertfast (again)": 0.2}, 0.05)
    assert order == ["bertfast (again)"]  # its original and the reference do not take part


def test_pairs_are_of_adjacent_turns():
    one = [turn("a", 2.0, 0), turn("b", 1.0, 2), turn("c", 9.0, 3), turn("a", 4.0, 12), turn("d", 1.0, 16)]
    assert pairs([one], "a", "b") == [2.0]
    assert pairs([one], "a", "d") == [4.0]
    assert pairs([one], "d", "a") == [0.25]
    assert pairs([one, [turn("a", 1.0)]], "a", "b") == [2.0]  # a round without one of them is left out
    assert pairs([one], "a", "nobody") == []


class TwoSpeeds:
    """A simulated machine that alternates between two speeds, `slowdown` apart, `dwell` seconds each on average. A turn across a change is
    slowed in part."""

    def __init__(self, rng, dwell, slowdown=1.26, jitter=0.004):
        self.rng, self.dwell, self.slowdown, self.jitter = rng, dwell, slowdown, jitter
        self.now, self.slow, self.until = 0.0, False, 0.0

    def take(self, name, seconds):
        work = seconds * float(np.exp(self.rng.normal(0, self.jitter)))
        begin = self.now
        while work > 0:
            if self.now >= self.until:
                self.slow = not self.slow
                self.until = self.now + float(self.rng.exponential(self.dwell)) + 0.5
            factor = self.slowdown if self.slow else 1.0
            spent = min(work * factor, self.until - self.now)
            self.now += spent
            work -= spent / factor
        return Turn(name, self.now - begin, begin, self.now)

    def run(self, specs, seconds, count):
        return [
            [self.take(name, seconds[name]) for name in rounds.schedule(specs, REFERENCE, seconds, 0.05, backwards=i % 2 == 1)]
            for i in range(count)
        ]


@pytest.fixture(scope="module")
def runs():
    """Runs of the padded batch, 9 rounds each, with bertfast twice."""
    rng = np.random.default_rng(0)
    specs = [*select([], full=False), again("bertfast")]
    seconds = {**SECONDS, "bertfast (again)": SECONDS["bertfast"]}
    return specs, [TwoSpeeds(rng, dwell=8.0).run(specs, seconds, 9) for _ in range(200)]


def test_two_speeds_spread_times_but_not_ratios_of_adjacent_turns(runs):
    specs, made = runs
    wide_times = [rounds.times(run, "bertfast").relative > NOISY for run in made]
    assert np.mean(wide_times) > 0.8  # noisy, if bands were of the times
    found = [rounds.ratios(specs, REFERENCE, run)["bertfast"] for run in made]
    for key, true in (
        ("ratio", SECONDS["transformers"] / SECONDS["bertfast"]),
        ("best_peer", SECONDS["ctranslate2"] / SECONDS["bertfast"]),
    ):
        off = np.array([row[key]["value"] / true - 1 for row in found])
        assert np.abs(np.median(off)) < 0.005
        assert np.mean(np.abs(off) < 0.02) > 0.9
    # Pairs of turns that are far apart in the same rounds scatter more.
    near = np.std([pairs(run, "ctranslate2", "bertfast") for run in made])
    far = np.std([np.array(pairs(run, "onnxruntime-int8", "bertfast")) * 0.31 / SECONDS["onnxruntime-int8"] for run in made])
    assert far > 1.5 * near


def test_the_band_is_honest_on_a_machine_of_two_speeds(runs):
    """Where the band is narrow enough for a verdict, the true ratio lies within it."""
    specs, made = runs
    inside, given, possible = 0, 0, 0
    for run in made:
        for name, rows in rounds.ratios(specs, REFERENCE, run).items():
            if name == REFERENCE:
                continue
            true = SECONDS[REFERENCE] / {**SECONDS, "bertfast (again)": SECONDS["bertfast"]}[name]
            possible += 1
            if rows["ratio"]["band"] <= NOISY:
                given += 1
                inside += abs(rows["ratio"]["value"] / true - 1) <= rows["ratio"]["band"]
    assert inside / given > 0.95
    assert given / possible > 0.4  # verdicts remain possible


def test_a_subject_against_itself_is_1_within_its_band(runs):
    specs, made = runs
    rows = [rounds.ratios(specs, REFERENCE, run)["bertfast (again)"]["itself"] for run in made]
    assert {row["to"] for row in rows} == {"bertfast"}
    assert np.mean([abs(row["value"] - 1) <= row["band"] for row in rows]) > 0.95
    assert np.mean([row["band"] <= NOISY for row in rows]) > 0.9


def test_a_quiet_machine_settles_with_the_narrowest_band():
    machine = TwoSpeeds(np.random.default_rng(1), dwell=1e9)
    specs = select([], full=False)
    run = machine.run(specs, SECONDS, 5)
    assert rounds.settled(specs, REFERENCE, run)
    found = rounds.ratios(specs, REFERENCE, run)
    assert {name for name, rows in found.items() if "best_peer" in rows} == {"bertfast", "bertfast-bf16", "bertfast-int8"}
    assert all(rows["ratio"]["band"] in (0.0, PLACEMENT) for rows in found.values())
    assert found["bertfast-int8"]["best_peer"]["to"] == "ctranslate2-int8"


def test_wide_pairs_are_not_settled():
    specs = [SUBJECTS[REFERENCE], SUBJECTS["bertfast"]]
    noisy = [[turn(REFERENCE, seconds), turn("bertfast", 1.0)] for seconds in (2.0, 3.0, 2.0, 3.0, 2.5)]
    assert not rounds.settled(specs, REFERENCE, noisy)
    assert ratio_of(pairs(noisy, REFERENCE, "bertfast")).noisy
    alone = [[turn("bertfast", 1.0)]]
    assert rounds.ratios(specs, REFERENCE, alone) == {"bertfast": {}}
    own = replace(again(REFERENCE), name="own", twin="", ours=True)
    both = [[turn("own", 1.0), turn(REFERENCE, 2.0)]]
    assert rounds.ratios([SUBJECTS[REFERENCE], own], REFERENCE, both)["own"]["best_peer"]["value"] == 2.0


def test_a_peer_of_float16_weights_that_computes_in_float32_competes_there():
    specs = [SUBJECTS[name] for name in ("sentence-transformers", "bertfast", "fasttextembed")]
    seconds = {"sentence-transformers": 0.9, "bertfast": 0.1, "fasttextembed": 0.2}
    assert rounds.schedule(specs, "sentence-transformers", seconds, 0.05) == ["sentence-transformers", "bertfast", "fasttextembed"]
    found = rounds.ratios(specs, "sentence-transformers", [[turn(name, seconds[name]) for name in seconds]])
    assert found["bertfast"]["best_peer"] == {**found["bertfast"]["best_peer"], "to": "fasttextembed", "value": 2.0}
