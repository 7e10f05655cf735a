"""Medians, ratios, verdicts, and the comparison of two files."""

import copy

import numpy as np
import pytest

from benchmarks.measure import steps
from benchmarks.report import compare, plots, readme, results, tables
from benchmarks.suite.stats import PLACEMENT, Ratio, Spread, change, ratio_of, verdict


def test_spread_is_median_and_percentiles():
    spread = Spread.of([5.0, 1.0, 2.0, 3.0, 4.0])
    assert (spread.median, spread.p20, spread.p80) == (3.0, 1.8, 4.2)
    assert spread.relative == pytest.approx(0.4)
    with pytest.raises(ValueError, match="no values"):
        Spread.of([])


def test_a_ratio_is_the_median_of_pairs_and_its_band_theirs():
    ratio = ratio_of([3.0, 3.0, 3.0, 3.3, 2.7])
    assert ratio.value == 3.0
    assert ratio_of([3.0, 3.3, 2.7, 3.3, 2.7]).band == pytest.approx(0.1)  # half of 3.3 - 2.7, over 3
    assert ratio_of([3.0] * 9).band == PLACEMENT
    assert ratio_of([2.0, 4.0, 3.0]).noisy
    assert ratio_of([3.0, 3.0]).noisy  # equal, but only two
    with pytest.raises(ValueError, match="no values"):
        ratio_of([])


def test_a_subject_against_itself_lies_within_its_band():
    """For two series of one distribution 1 lies inside the band at least nine times in ten."""
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(200):
        a, b = rng.normal(1.0, 0.02, (2, 9))
        ratio = ratio_of(list(a / b))
        inside += ratio.low <= 1 <= ratio.high
    assert inside > 180


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (Ratio(2.0, 0.02), Ratio(2.4, 0.02), "faster"),
        (Ratio(2.0, 0.02), Ratio(1.7, 0.02), "slower"),
        (Ratio(2.0, 0.02), Ratio(2.04, 0.02), "same"),
        (Ratio(2.0, 0.04), Ratio(2.1, 0.04), "same"),
        (Ratio(2.0, 0.02), Ratio(2.1, 0.02), "faster"),
        (Ratio(2.0, 0.06), Ratio(4.0, 0.02), "noisy"),
        (Ratio(2.0, 0.02), Ratio(4.0, 0.30), "noisy"),
    ],
)
def test_verdict_knows_the_noise(before, after, expected):
    assert verdict(before, after) == expected


def test_independent_noise_adds_in_squares():
    moved = change(Ratio(2.0, 0.03), Ratio(3.0, 0.04))
    assert moved.value == 1.5
    assert moved.band == pytest.approx(0.05)


def row(milliseconds, ratio, band=0.02, **more):
    seconds = milliseconds / 1e3
    spread = {"median": seconds, "p20": seconds * 0.99, "p80": seconds * 1.01}
    check = {"largest": 1e-6, "cosine": 1.0, "agreement": None, "refused": None, "inexact": False}
    return {"status": "timed", "seconds": spread, "ratio": {"to": "transformers", "value": ratio, "band": band}, "check": check, **more}


@pytest.fixture
def result():
    workload = {
        "model": "minilm",
        "title": "all-MiniLM-L6, real weights",
        "task": "encoder",
        "kind": "call",
        "B": 1,
        "S": 128,
        "lengths": [128],
        "new_tokens": 0,
        "tokens": 128,
        "padding": 0.0,
        "reference": "transformers",
        "quality": {"rounds": 9, "disturbed": 0, "noisy": False},
        "rows": {
            "transformers": row(20.0, 1.0, band=0.0, of_arithmetic=0.5),
            "bertfast": row(8.0, 2.5, of_arithmetic=0.9, best_peer={"to": "openvino", "value": 1.25, "band": 0.02}),
            "openvino": {"status": "refused", "reason": "differs by 1.0e-02", "check": None},
            "ctranslate2": {"status": "absent", "reason": "not installed: ctranslate2"},
        },
    }
    subjects = {name: {"dtype": "float32", "setup": "as it is", "ours": name == "bertfast", "absent": None} for name in workload["rows"]}
    return {
        "format": 1,
        "created": "2024-01-01T00:00:00+00:00",
        "machine": {"title": "a machine", "key": "amd-25-avx2-2c", "system": "Linux", "isa": ["AVX2"]},
        "threads": 2,
        "peaks": {"float32": 2e11, "bfloat16": 0.0, "int8": 4e11, "bandwidth": 2.5e10},
        "versions": {"torch": "2.13.0"},
        "notes": [],
        "subjects": subjects,
        "workloads": {"minilm/1x128": workload},
    }


def verdicts(before, after):
    return {r.subject: r.verdict for r in compare.rows(before, after)}


def test_compare_says_faster_slower_same(result):
    after = copy.deepcopy(result)
    assert verdicts(result, after) == {"transformers": "reference", "bertfast": "same", "openvino": "not timed", "ctranslate2": "not timed"}
    after["workloads"]["minilm/1x128"]["rows"]["bertfast"] = row(6.0, 3.3)
    assert verdicts(result, after)["bertfast"] == "faster"
    assert verdicts(after, result)["bertfast"] == "slower"


def test_a_hundredth_more_memory_is_no_verdict(result):
    """Memory is read once, so its ratio has no band of its own."""

    def file(mib):
        rows = {
            name: {"status": "timed", "mib": m, "ratio": {"to": "transformers", "value": 500 / m, "band": 0.0}} for name, m in mib.items()
        }
        workload = {**result["workloads"]["minilm/1x128"], "kind": "memory", "rows": rows}
        return {**result, "workloads": {"minilm/memory": workload}}

    before = file({"transformers": 500.0, "bertfast": 250.0})
    assert verdicts(before, file({"transformers": 500.0, "bertfast": 252.0}))["bertfast"] == "same"
    assert verdicts(before, file({"transformers": 500.0, "bertfast": 290.0}))["bertfast"] == "slower"


def test_compare_gives_no_verdict_on_a_noisy_machine(result):
    after = copy.deepcopy(result)
    after["workloads"]["minilm/1x128"]["rows"]["bertfast"] = row(4.0, 5.0)
    after["workloads"]["minilm/1x128"]["quality"]["noisy"] = True
    assert verdicts(result, after)["bertfast"] == "noisy"


def test_compare_never_mixes_machine_classes(result):
    after = copy.deepcopy(result)
    after["machine"]["key"] = "amd-26-avx-512-2c"
    after["workloads"]["minilm/1x128"]["rows"]["bertfast"] = row(4.0, 5.0)
    assert verdicts(result, after)["bertfast"] == compare.OTHER_MACHINE
    after["machine"]["key"] = result["machine"]["key"]
    after["threads"] = 4
    assert verdicts(result, after)["bertfast"] == compare.OTHER_MACHINE


def test_compare_lists_what_one_side_lacks(result):
    after = copy.deepcopy(result)
    rows = after["workloads"]["minilm/1x128"]["rows"]
    rows["onnxruntime"] = row(10.0, 2.0)
    del rows["bertfast"]
    found = verdicts(result, after)
    assert found["onnxruntime"] == "only after"
    assert found["bertfast"] == "only before"
    after["workloads"]["minilm/1x16"] = after["workloads"].pop("minilm/1x128")
    assert {r.workload for r in compare.rows(result, after)} == {"minilm/1x128", "minilm/1x16"}


def test_files_round_trip_and_others_are_refused(result, tmp_path):
    path = tmp_path / "some" / "result.json"
    results.save(result, path)
    assert results.load(path) == result
    path.write_text("{}")
    with pytest.raises(ValueError, match="format None"):
        results.load(path)
    path.write_text("no json")
    with pytest.raises(ValueError, match="no result file"):
        results.load(path)


def test_files_of_one_machine_and_one_set_of_versions_may_be_joined(result):
    new = copy.deepcopy(result)
    new["workloads"] = {"minilm/1x16": new["workloads"]["minilm/1x128"]}
    both = results.merged(result, new)
    assert list(both["workloads"]) == ["minilm/1x128", "minilm/1x16"]
    left_out = copy.deepcopy(new)
    left_out["subjects"]["bertfast"]["left_out"] = "not asked for this time"
    assert "left_out" not in results.merged(result, left_out)["subjects"]["bertfast"]
    for what, value in (("versions", {"torch": "2.12.0"}), ("threads", 4), ("machine", {**new["machine"], "key": "other"})):
        with pytest.raises(ValueError, match="file"):
            results.merged(result, {**new, what: value})


def test_workloads_of_another_build_are_noted(result):
    assert "another build" not in tables.markdown(result)
    old = {**result["workloads"]["minilm/1x128"], "build": "11111111", "measured": "2024-01-02T03:04:05+00:00"}
    new = {**result["workloads"]["minilm/1x128"], "build": "22222222", "measured": "2024-01-03T03:04:05+00:00"}
    joined = results.merged(
        {**result, "build": "11111111", "workloads": {"minilm/1x128": old, "minilm/1x16": old}},
        {**result, "build": "22222222", "workloads": {"minilm/1x128": new}},
    )
    assert "note: measured with another build of bertfast than the rest: minilm/1x16 (2024-01-02)  \n" in tables.markdown(joined)


def test_a_kept_workload_keeps_the_peaks_of_its_shares(result):
    """Its shares are not recomputed: another run's peaks belong to another clock rate."""
    workload, peaks = result["workloads"]["minilm/1x128"], result["peaks"]
    assert "an earlier run" not in tables.markdown(result)

    def file(name, rate):
        return {**result, "peaks": rate and {**peaks, "float32": rate}, "workloads": {name: workload}}

    twice = results.merged(results.merged(file("minilm/1x16", 1e11), file("minilm/1x128", 3e11)), file("minilm/8x128", 2e11))
    assert {name: w.get("peaks", twice["peaks"])["float32"] for name, w in twice["workloads"].items()} == {
        "minilm/1x16": 1e11,
        "minilm/1x128": 3e11,
        "minilm/8x128": 2e11,
    }
    page = tables.markdown(twice)
    assert "peaks measured in this run: float32 200, int8 400 GFLOP/s (GOP/s), memory 25.0 GB/s  \n" in page
    assert "peaks measured in an earlier run, of minilm/1x16: float32 100, int8 400 GFLOP/s (GOP/s), memory 25.0 GB/s  \n" in page
    assert "peaks measured in an earlier run, of minilm/1x128: float32 300, " in page
    assert page.count("| 90% F |") == 3
    anew = results.merged(twice, file("minilm/1x16", 2e11))
    assert "peaks" not in anew["workloads"]["minilm/1x16"]  # measured in this run
    assert "an earlier run, of minilm/1x128: float32 300, " in tables.markdown(anew)
    unmeasured = tables.markdown(results.merged(file("minilm/1x16", None), file("minilm/1x128", 2e11)))  # without a C compiler then
    assert "an earlier run" not in unmeasured
    assert "in this run: float32 200" in unmeasured


def test_workloads_without_peaks_have_no_bar_in_the_picture_of_shares(result, tmp_path):
    pytest.importorskip("matplotlib")
    unmeasured = copy.deepcopy(result)
    unmeasured["peaks"] = None
    for row in unmeasured["workloads"]["minilm/1x128"]["rows"].values():
        row.pop("of_arithmetic", None)
    new = {**result, "workloads": {"minilm/1x16": result["workloads"]["minilm/1x128"]}}
    drawn = plots.draw(results.merged(unmeasured, new), tmp_path / "joined")
    assert [path.name for path in drawn] == ["joined-latency.png", "joined-peak.png"]


def test_the_floor_of_kept_steps_uses_the_bandwidth_of_their_run(result):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    steps_row = {"status": "timed", "steps": [None, 1e-3, 2e-3], "line": {"first": 1e-3, "slope": 1e-6}}
    workload = {**result["workloads"]["minilm/1x128"], "kind": "steps", "rows": {"bertfast": steps_row}}

    def file(name, bandwidth):
        return {**result, "peaks": {**result["peaks"], "bandwidth": bandwidth}, "workloads": {name: workload}}

    # Keys and values, 6 layers of 384 float32 numbers each: 18432 bytes per token.
    figure = plots._steps(results.merged(file("minilm/steps-1", 18.432e9), file("minilm/steps-8", 36.864e9)), pyplot)
    floors = [axis.get_legend().get_texts()[-1].get_text() for axis in figure.axes]
    pyplot.close(figure)
    assert floors == [f"reading its float32 cache: {each} us a token" for each in ("1", "0.5")]


def test_markdown_shows_refused_and_absent_rows_with_their_reasons(result):
    page = tables.markdown(result)
    assert "| bertfast | 8 ms | 7.92 ms - 8.08 ms | 2.50x ± 2% | 90% F |" in page
    assert "1.25x ± 2% the best peer, openvino; 16,000 tokens/s" in page
    assert "| openvino | refused |" in page
    assert "differs by 1.0e-02" in page
    assert "| ctranslate2 | absent |" in page
    assert "float32 200, int8 400 GFLOP/s" in page


def test_markdown_shows_noise_twins_and_subjects_left_out(result):
    rows = result["workloads"]["minilm/1x128"]["rows"]
    rows["bertfast"]["best_peer"]["band"] = 0.07
    rows["bertfast (again)"] = row(8.0, 2.5, itself={"to": "bertfast", "value": 1.01, "band": 0.03})
    result["subjects"]["torch.compile"] = {**result["subjects"]["bertfast"], "left_out": "it compiles"}
    page = tables.markdown(result)
    assert "1.25x ± 7% (noisy, no verdict) the best peer, openvino" in page
    assert "1.01x ± 3% itself" in page
    assert "- left out: torch.compile (it compiles; --full or -s torch.compile)" in page


def test_readme_table_is_written_between_the_markers_only(result, tmp_path):
    page = tmp_path / "README.md"
    page.write_text(f"before\n{readme.BEGIN}\nold\n{readme.END}\nafter\n")
    assert readme.update(page, [result])
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "| minilm/1x128 | 8 ms (2.50x) | 20 ms | 1.25x |" in text
    assert readme.current(page) == readme.section([result])
    noisy = copy.deepcopy(result)
    noisy["workloads"]["minilm/1x128"]["rows"]["bertfast"]["ratio"]["band"] = 0.06
    assert "| 8 ms (~2.50x) | 20 ms | 1.25x |" in readme.section([noisy])
    noisy["workloads"]["minilm/1x128"]["quality"]["noisy"] = True
    assert "| 8 ms (~2.50x) | 20 ms | ~1.25x |" in readme.section([noisy])
    assert not readme.update(page, [result])
    with pytest.raises(ValueError, match="no committed results"):
        readme.update(page, [])
    page.write_text("no markers")
    with pytest.raises(ValueError, match="no place for the table"):
        readme.update(page, [result])


def test_steps_are_summarised_by_stretches():
    """10 ms and 4 us more per token, with a spike in every generation, on a machine that slows down in the middle of each."""
    base = [None if i % steps.STRETCH == 0 else 0.010 + 4e-6 * i for i in range(400)]
    spiked = [[step if step is None or i != at else 1.0 for i, step in enumerate(base)] for at in (30, 200, 333)]
    found = steps.summary(spiked)
    assert found["steps"] == base
    assert found["line"] == {"first": pytest.approx(0.010), "slope": pytest.approx(4e-6)}
    slowed = [[step if step is None or i < 200 else 1.25 * step for i, step in enumerate(one)] for one in spiked]
    slower = [[None if step is None else 4 * step for step in one] for one in slowed]
    assert steps.ratio(slower, slowed) == {"value": pytest.approx(4.0), "band": PLACEMENT}
    assert steps.ratio(slower[:1], slowed[:1])["band"] == 1.0  # one generation shows no band
    assert steps.ratio(slower, slower, same=True) == {"value": 1.0, "band": 0.0}
    unlike = [[None if step is None else step * (1 + 0.2 * g) for step in one] for g, one in enumerate(slower)]
    assert steps.ratio(unlike, slowed)["band"] > 0.05
