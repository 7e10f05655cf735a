"""Every reader of a checkpoint refuses a hostile file by name, in bounded time and memory, and without leaving the folder."""

import json
import os
import pickle
import resource
import struct
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import pytest
import torch
import transformers

import bertfast
from bertfast import checkpoints
from bertfast.checkpoints import hdf5, json_files, pickles

BIG = 30_000_000  # bytes of a hostile file
SECONDS = 10.0
MEMORY = 200  # MB above what the imports take


def index_of(name: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / name).write_bytes(b'{"weight_map": {"a": "b"}, "x": [' + b"[]," * (BIG // 3) + b"[]]}")

    return write


def long_header(folder: Path) -> None:
    header = b'{"__metadata__": {"format": "pt"}' + b"".join(
        b',"%07d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}' % i for i in range(BIG // 56)
    )
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header) + 1) + header + b"}")


def archive(folder: Path, *, compression: int = zipfile.ZIP_STORED, pickled: bytes | None = None, records: int = 1) -> None:
    with zipfile.ZipFile(folder / "pytorch_model.bin", "w", compression) as f:
        f.writestr("m/data.pkl", pickle.dumps({}, protocol=2) if pickled is None else pickled)
        for i in range(records):
            f.writestr(f"m/data/{i}", b"" if records > 1 else bytes(10 * BIG))


def deflated(folder: Path) -> None:
    archive(folder, compression=zipfile.ZIP_DEFLATED)


def pickled_dicts(folder: Path) -> None:
    archive(folder, pickled=b"\x80\x02]" + b"(" + b"}" * BIG + b"e.", records=0)


def many_records(folder: Path) -> None:
    archive(folder, records=150_000)


def a_bytearray(folder: Path) -> None:
    archive(folder, pickled=b"\x80\x02c__builtin__\nbytearray\n\x8a\x05\x00\x00\x00\x00\x02\x85R.", records=0)


def pickle_stream(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02](" + b"}" * BIG + b"e.")


def nested_heaps(size: int) -> bytes:
    """Each object of a heap holds the header of another heap, which ends where the first does: the time to check them was quadratic."""
    count = size // 32
    lengths = [16] * (count - 1) + [0]
    return b"".join(b"GCOL\x01\0\0\0" + struct.pack("<QHHIQ", 32 * (count - i), 1, 0, 0, length) for i, length in enumerate(lengths))


def overlapping_heaps(folder: Path) -> None:
    with h5py.File(folder / "tf_model.h5", "w") as f:
        f.attrs["layer_names"] = [b"x"]
    with (folder / "tf_model.h5").open("ab") as f:
        f.write(nested_heaps(BIG))


def a_heap_of_many_objects(folder: Path) -> None:
    with h5py.File(folder / "tf_model.h5", "w") as f:
        f.attrs["layer_names"] = [b"x"]
    with (folder / "tf_model.h5").open("ab") as f:
        f.write(b"GCOL\x01\0\0\0" + struct.pack("<Q", BIG) + struct.pack("<HHIQ", 1, 0, 0, 0) * (BIG // 16 - 1))


def config_of(content: bytes, name: str = "config.json") -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return write


HOSTILE = {
    "safetensors-index": index_of("model.safetensors.index.json"),
    "pytorch-index": index_of("pytorch_model.bin.index.json"),
    "tf-index": index_of("tf_model.h5.index.json"),
    "flax-index": index_of("flax_model.msgpack.index.json"),
    "safetensors-header": long_header,
    "bin-deflated": deflated,
    "bin-dicts": pickled_dicts,
    "bin-records": many_records,
    "bin-bytearray": a_bytearray,
    "bin-before-torch-1.6": pickle_stream,
    "h5-overlapping-heaps": overlapping_heaps,
    "h5-heap-objects": a_heap_of_many_objects,
    "config-long": config_of(b'{"model_type": "bert", "x": [' + b"{}," * (BIG // 3) + b"{}]}"),
    "config-deep": config_of(b'{"x": ' + b"[" * BIG),
    "config-digits": config_of(b'{"model_type": "bert", "x": ' + b"9" * 5000 + b"}"),
    "config-layers": config_of(b'{"model_type": "bert", "num_hidden_layers": 1000000000}'),
    "generation-config-long": config_of(b'{"x": [' + b"{}," * (BIG // 3) + b"{}]}", "generation_config.json"),
}

READ = """
import os, resource, sys, time
import h5py, torch, transformers
from transformers.models.bert import modeling_bert
from bertfast import BertLMHeadModel
from bertfast.checkpoints import flax_msgpack, hdf5, pickles
for folder in sys.argv[1:]:
    if os.fork():  # the child's memory starts where that of the imports ended
        os.wait()
        continue
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    try:
        BertLMHeadModel.from_pretrained(folder)
    except ValueError as error:
        message = str(error)[:300].replace(chr(10), " ")
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        print(grown // 1024, f"{time.process_time() - start:.1f}", message, sep=chr(9), flush=True)
    else:
        print(0, 0, "not refused", sep=chr(9), flush=True)
    os._exit(0)
"""


@pytest.fixture(scope="module")
def refusals(tmp_path_factory) -> dict[str, tuple[int, float, str, set[str]]]:
    """For each file of HOSTILE: megabytes, seconds and message of its refusal, and the names of the files written."""
    root, names = tmp_path_factory.mktemp("hostile"), []
    config = transformers.BertConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=1, intermediate_size=8)
    for what, write in HOSTILE.items():
        folder = root / what
        config.save_pretrained(folder)
        if what.startswith(("config", "generation")):
            transformers.BertLMHeadModel(config).save_pretrained(folder)
        before = {path.name: path.stat().st_size for path in folder.iterdir()}
        write(folder)
        names.append({path.name for path in folder.iterdir() if before.get(path.name) != path.stat().st_size})
    command = [sys.executable, "-c", READ, *(str(root / what) for what in HOSTILE)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    return {
        what: (int(grown), float(seconds), message, written)
        for what, (grown, seconds, message), written in zip(HOSTILE, lines, names, strict=True)
    }


@pytest.mark.parametrize("what", HOSTILE)
def test_a_big_hostile_file_is_refused_in_bounded_time_and_memory(what, refusals):
    megabytes, seconds, message, names = refusals[what]
    assert any(name in message for name in names), message
    assert megabytes < MEMORY, message
    assert seconds < SECONDS, message


def test_time_of_the_heap_check_is_linear(tmp_path):
    path = tmp_path / "tf_model.h5"
    path.write_bytes(nested_heaps(262_144))
    start = time.process_time()
    with pytest.raises(ValueError, match=r"tf_model\.h5: the heap at byte 16 overlaps another|tf_model\.h5: the heap at byte 32 overlaps"):
        hdf5._check_heaps(path)
    assert time.process_time() - start < 0.5  # 25 s where every heap is checked


@pytest.mark.parametrize("kind", ["external", "soft", "pipe"])
def test_a_link_at_model_weights_is_refused(kind, tmp_path):
    """`Model.save` keeps the weights in a group of that name; through a link it could be a group of any file."""
    (tmp_path / "m").mkdir()
    path = tmp_path / "m" / "tf_model.h5"
    other = tmp_path / "other.h5"
    if kind == "pipe":
        os.mkfifo(other)
    else:
        with h5py.File(other, "w") as f:
            f.attrs["layer_names"] = [b"layer"]
            f["layer"] = [1.0]
    with h5py.File(path, "w") as f:
        f["model_weights"] = h5py.SoftLink("/elsewhere") if kind == "soft" else h5py.ExternalLink(str(other), "/")
    start = time.monotonic()
    with pytest.raises(ValueError, match=r"tf_model\.h5: 'model_weights' in / is a soft or external link"):
        list(hdf5.read(path))
    assert time.monotonic() - start < 20


def test_a_pipe_behind_a_layer_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with h5py.File(tmp_path / "tf_model.h5", "w") as f:
        f.attrs["layer_names"] = [b"layer"]
        f["layer"] = h5py.ExternalLink(str(tmp_path / "pipe"), "/")
    with pytest.raises(ValueError, match="is a soft or external link"):
        list(hdf5.read(tmp_path / "tf_model.h5"))


def test_a_pipe_in_place_of_a_json_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(ValueError, match=r"config\.json is not a regular file"):
        json_files.read_json(tmp_path / "config.json", dict)


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe{}", b'{"a": ' + b"9" * 5000 + b"}", b"[" * 100_000, b'{"a": 1e5', b""])
def test_damaged_json_is_one_error_that_names_the_file(content, tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"config\.json is not valid JSON"):
        json_files.read_json(path, dict)


class Runs:
    def __reduce__(self):
        return (os.mkdir, ("ran",))


@pytest.fixture
def pickled(tmp_path, monkeypatch) -> Path:
    config = transformers.BertConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=1, intermediate_size=8, vocab_size=20)
    config.save_pretrained(tmp_path)
    torch.save(transformers.BertModel(config).state_dict(), tmp_path / "pytorch_model.bin")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_an_older_torch_reads_no_pickled_file(pickled, monkeypatch):
    bertfast.BertModel.from_pretrained(pickled)
    monkeypatch.setattr(torch, "__version__", "2.5.1+cpu")
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: pytest.fail("torch.load was called"))
    for read in (
        bertfast.BertModel.from_pretrained,
        lambda folder: checkpoints.read_weights(checkpoints.detect(folder)),
        lambda folder: bertfast.BertModel.from_pretrained(folder, quantization="int8"),
    ):
        with pytest.raises(ValueError, match=r"torch 2\.5\.1\+cpu may run code of a pickled file .*install torch 2\.6"):
            read(pickled)


def test_what_transformers_refused_is_not_loaded(pickled, monkeypatch):
    def refuse() -> None:
        raise ValueError("refused")

    monkeypatch.setattr(transformers.modeling_utils, "check_torch_load_is_safe", refuse)
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: pytest.fail("torch.load was called"))
    with pytest.raises(ValueError, match=r"^refused$"):
        bertfast.BertModel.from_pretrained(pickled)


def test_a_pickle_that_runs_code_is_refused_by_name(pickled):
    torch.save({"weight": Runs()}, pickled / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin: .*truncated, damaged"):
        bertfast.BertModel.from_pretrained(pickled)
    with pytest.raises(ValueError, match=r"pytorch_model\.bin: .*truncated, damaged"):
        checkpoints.read_weights(checkpoints.detect(pickled))
    assert not (pickled / "ran").exists()


def test_torch_files_of_both_formats_pass_the_check(pickled):
    weights = torch.load(pickled / "pytorch_model.bin", weights_only=True)
    torch.save(weights, pickled / "old.bin", _use_new_zipfile_serialization=False)
    for name in ("pytorch_model.bin", "old.bin"):
        assert pickles.read(pickled / name).keys() == weights.keys()


def test_overlapping_records_are_refused(pickled):
    path = pickled / "pytorch_model.bin"
    with zipfile.ZipFile(path) as f:
        directory = f.start_dir
        records = len(f.infolist())
    content = path.read_bytes()
    again = (
        content[directory : content.rindex(b"PK\x06\x06")]
        if b"PK\x06\x06" in content
        else content[directory : content.rindex(b"PK\x05\x06")]
    )
    end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 40 * records, 40 * records, 40 * len(again), directory, 0)
    path.write_bytes(content[:directory] + 40 * again + end)
    with pytest.raises(ValueError, match=r"pytorch_model\.bin: its records overlap"):
        pickles.check(path)


def test_the_project_requires_a_torch_that_reads_pickles_safely():
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    assert f'"torch>={pickles.SAFE_TORCH}"' in project


def test_json_limits_leave_room_for_real_files(minilm_dir):
    for path in minilm_dir.rglob("*.json"):
        if path.name != "tokenizer.json":
            assert path.stat().st_size < json_files.MAX_BYTES / 50
            json.loads(json_files.read_text(path))


@pytest.mark.parametrize("levels", [101, 900])
def test_json_deeper_than_a_folders_is_refused(levels, tmp_path):
    """repr, copy and other functions of Python give up at some depth above that, with RecursionError."""
    path = tmp_path / "config.json"
    path.write_bytes(b"[" * levels + b"]" * levels)
    with pytest.raises(ValueError, match=r"config\.json is not valid JSON of a model folder: it is nested too deeply"):
        json_files.read_json(path, list)
    path.write_bytes(b"[" * 100 + b"]" * 100)
    assert json_files.read_json(path, list)


def test_weights_whose_names_are_no_text_are_refused(tmp_path):
    torch.save({1: torch.ones(2)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin: its content is not a dict of tensors by name"):
        pickles.read(tmp_path / "pytorch_model.bin")


def test_a_record_name_that_is_no_utf8_is_an_error_of_the_file(tmp_path):
    path = tmp_path / "pytorch_model.bin"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("naïve", b"x")
    content = path.read_bytes().replace("naïve".encode(), b"na\xff\xffve")
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"pytorch_model\.bin: its archive is damaged: .*utf-8"):
        pickles.check(path)


def test_a_length_in_a_pickle_is_no_reason_to_allocate(tmp_path):
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(b"\x80\x02X\xff\xff\xff\xffab.")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    asked = []

    class Stream:
        def __init__(self, f):
            self.f, self.readline, self.tell = f, f.readline, f.tell

        def read(self, count):
            asked.append(count)
            return self.f.read(count)

    with path.open("rb") as f, pytest.raises(ValueError, match=r"pytorch_model\.bin: its pickle is damaged"):
        pickles._check_opcodes(Stream(f), path)
    assert max(asked) <= path.stat().st_size
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KB


H5_VALUES = {
    "none": lambda f: f.__setitem__("x", h5py.Empty("f4")),  # the child wrote the address of an object
    "of 16 bytes": lambda f: f.create_dataset("x", (1,), "f16"),  # a TypeError of torch
    "references": lambda f: f.create_dataset("x", data=[f.ref], dtype=h5py.ref_dtype),
}


@pytest.mark.parametrize("what", H5_VALUES)
def test_values_that_are_no_floats_are_refused(what, tmp_path):
    with h5py.File(tmp_path / "tf_model.h5", "w") as f:
        f.attrs["layer_names"] = [b"x"]
        H5_VALUES[what](f)
    with pytest.raises(ValueError, match=r"tf_model\.h5: x (has no values|holds )"):
        list(hdf5.read(tmp_path / "tf_model.h5"))
