"""TF and Flax checkpoints: each format gives the weights of the equivalent PyTorch file; a damaged file raises one clear error."""

import json
import logging
import os
import shutil
import struct
import sys
import tracemalloc
from pathlib import Path

import h5py
import msgpack
import numpy as np
import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from bertfast import checkpoints
from bertfast.checkpoints import flax_msgpack, hdf5, names
from bertfast.graph.family import BERT

MODELS = Path(__file__).parents[1] / "golden" / "models"
H5, MSGPACK = MODELS / "mini_tf" / "tf_model.h5", MODELS / "mini_flax" / "flax_model.msgpack"
TOKEN, PRETRAINING = transformers.BertForTokenClassification, transformers.BertForPreTraining

FORMATS = {
    "extra_tf_safetensors": ("tf_safetensors", "mini_tf"),
    "extra_tf_sharded": ("tf_h5", "mini_tf"),
    "extra_flax_safetensors": ("flax_safetensors", "mini_flax"),
    "extra_flax_sharded": ("flax_msgpack", "mini_flax"),
    "extra_flax_chunked": ("flax_msgpack", "mini_flax"),
}


def load(cls, folder, **kwargs):
    return checkpoints.from_pretrained(cls.from_pretrained, BERT, folder, **kwargs)


def assert_same(got, want):
    assert got.keys() == want.keys()
    for name, tensor in want.items():
        assert got[name].dtype == tensor.dtype, name
        assert torch.equal(got[name], tensor), name


@pytest.mark.parametrize("folder", FORMATS)
def test_a_format_has_the_weights_of_the_pytorch_file(folder):
    format, same_as = FORMATS[folder]
    assert checkpoints.model_format(MODELS / folder) == format
    assert_same(checkpoints.foreign_state_dict(MODELS / folder), load_file(MODELS / same_as / "model.safetensors"))


@pytest.mark.parametrize(
    "path", [*MODELS.glob("*/tf_model.h5"), *MODELS.glob("[fm]*/flax_model.msgpack")], ids=lambda path: path.parent.name
)
def test_prefer_chooses_among_several_checkpoints(path):
    origin = "tf" if path.suffix == ".h5" else "flax"
    assert checkpoints.model_format(path.parent) == "safetensors"
    assert checkpoints.foreign_state_dict(path.parent) is None
    assert_same(checkpoints.foreign_state_dict(path.parent, origin), load_file(path.parent / "model.safetensors"))


@pytest.mark.parametrize(("folder", "dtype"), [("extra_flax_bf16", torch.bfloat16), ("extra_flax_fp16", torch.float16)])
def test_half_precision_weights_keep_their_dtype(folder, dtype):
    want = {name: t.to(dtype) for name, t in load_file(MODELS / "mini_flax" / "model.safetensors").items()}
    assert_same(checkpoints.foreign_state_dict(MODELS / folder), want)
    assert load(PRETRAINING, MODELS / folder).dtype == dtype
    assert load(PRETRAINING, MODELS / folder, dtype=torch.float32).dtype == torch.float32


@pytest.mark.parametrize("path", sorted(MODELS.glob("*/model.safetensors")), ids=lambda path: path.parent.name)
def test_names_round_trip(path):
    for name in load_file(path) if checkpoints.model_format(path.parent) == "safetensors" else ():
        levels, transposed = names.to_flax(name)
        assert names.from_flax("/".join(levels)) == (name, transposed)
        variable, transposed = names.to_tf(name)
        assert names.from_tf(variable) == (name, transposed)


def test_tf_heads_that_share_a_pytorch_level():
    assert names.from_tf("mlm___cls/predictions/transform/dense/kernel:0") == ("cls.predictions.transform.dense.weight", True)
    assert names.from_tf("nsp___cls/seq_relationship/bias:0") == ("cls.seq_relationship.bias", False)


@pytest.mark.parametrize("folder", FORMATS)
def test_a_model_equals_that_of_the_pytorch_file(folder):
    cls = TOKEN if "_tf_" in folder else PRETRAINING
    model, info = load(cls, MODELS / folder, output_loading_info=True)
    assert not any(info.values()), info
    want = load_file(MODELS / FORMATS[folder][1] / "model.safetensors")
    assert_same({name: model.state_dict()[name] for name in want}, want)
    if cls is PRETRAINING:
        assert torch.equal(model.cls.predictions.decoder.bias, want["cls.predictions.bias"])
    assert model.name_or_path == str(MODELS / folder)
    assert not model.training


def test_config_keywords_override_the_config_and_loading_keywords_do_not():
    model = load(TOKEN, MODELS / "extra_tf_sharded", hidden_act="relu", dtype=torch.float64, attn_implementation="eager")
    assert (model.config.hidden_act, model.dtype, model.config._attn_implementation) == ("relu", torch.float64, "eager")


def test_missing_and_unexpected_weights_are_reported_as_for_a_pytorch_file(caplog):
    reports = []
    for folder in ("extra_tf_sharded", "mini_tf"):
        caplog.clear()
        logging.getLogger("transformers").propagate = True
        _, info = load(PRETRAINING, MODELS / folder, output_loading_info=True)
        assert f"from: {MODELS / folder}" in caplog.text
        assert "classifier.weight" in caplog.text
        reports.append({name: info[name] for name in ("missing_keys", "unexpected_keys")})
    assert reports[0] == reports[1]
    assert reports[0]["unexpected_keys"] == {"classifier.weight", "classifier.bias"}


def test_a_bare_model_loads_from_a_head_checkpoint():
    model, info = load(transformers.BertModel, MODELS / "extra_tf_sharded", output_loading_info=True)
    want = load_file(MODELS / "mini_tf" / "model.safetensors")
    assert info["missing_keys"] == {"pooler.dense.weight", "pooler.dense.bias"}
    assert torch.equal(model.embeddings.word_embeddings.weight, want["bert.embeddings.word_embeddings.weight"])


def test_generation_config_is_loaded(tmp_path):
    for name in ("config.json", "flax_model.msgpack"):
        shutil.copy(MODELS / "flax_causal" / name, tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": 10, "pad_token_id": 3}))
    model = load(transformers.BertLMHeadModel, tmp_path)
    assert (model.generation_config.eos_token_id, model.generation_config.pad_token_id) == (10, 3)


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_old_layernorm_names_in_pytorch_files(suffix, tmp_path):
    shutil.copy(MODELS / "mini_tf" / "config.json", tmp_path)
    weights = load_file(MODELS / "mini_tf" / "model.safetensors")
    old = {n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): t for n, t in weights.items()}
    assert set(old) != set(weights)
    if suffix == "bin":
        torch.save(old, tmp_path / "pytorch_model.bin")
    else:
        save_file(old, tmp_path / "model.safetensors", metadata={"format": "pt"})
    model, info = load(TOKEN, tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert_same({n: t for n, t in model.state_dict().items() if n in weights}, weights)


def test_from_tf_and_from_flax_choose_the_checkpoint_or_raise(tmp_path):
    shutil.copytree(MODELS / "mini_tf", tmp_path, dirs_exist_ok=True)
    weights = load_file(tmp_path / "model.safetensors")
    save_file({n: t + 1 for n, t in weights.items()}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert torch.equal(load(TOKEN, tmp_path, from_tf=True).classifier.bias, weights["classifier.bias"])
    assert torch.equal(load(TOKEN, tmp_path).classifier.bias, weights["classifier.bias"] + 1)
    with pytest.raises(ValueError, match=r"from_flax=True.*no weights written by Flax"):
        load(TOKEN, tmp_path, from_flax=True)


def test_keras_model_names_with_a_counter_and_split_attributes(tmp_path):
    """Keras appends a counter to the second model of a process, and splits a list of names above 64 KB."""
    path = tmp_path / "tf_model.h5"
    with h5py.File(H5) as old, h5py.File(path, "w") as new:
        layers = [name for name in old if len(old[name].attrs["weight_names"])]
        new.attrs["layer_names0"], new.attrs["layer_names1"] = [layers[:1], layers[1:]]
        for layer in layers:
            group = new.create_group(layer)
            full = [n.replace("tf_bert_for_token_classification", "model_7") for n in old[layer].attrs["weight_names"]]
            group.attrs["weight_names0"], group.attrs["weight_names1"] = full[:1], full[1:]
            for source, target in zip(old[layer].attrs["weight_names"], full, strict=True):
                group[target] = old[layer][source][()]
    assert_same(checkpoints.foreign_state_dict(tmp_path), load_file(MODELS / "mini_tf" / "model.safetensors"))


def test_a_safetensors_file_without_metadata_is_recognised_by_its_names(tmp_path):
    for folder, format in (("extra_tf_safetensors", "tf_safetensors"), ("extra_flax_safetensors", "flax_safetensors")):
        save_file(load_file(MODELS / folder / "model.safetensors"), tmp_path / "model.safetensors")
        assert checkpoints.model_format(tmp_path) == format


def test_without_a_checkpoint_or_a_folder():
    assert checkpoints.model_format(MODELS) is None
    assert checkpoints.model_format(MODELS / "nothing") is None
    with pytest.raises(ValueError, match="prefer: got 'keras'"):
        checkpoints.detect(MODELS, "keras")


def test_without_h5py_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportError, match=r"tf_model.h5 needs h5py: pip install 'bertfast\[compat\]'"):
        checkpoints.foreign_state_dict(MODELS / "mini_tf", "tf")


def test_without_msgpack_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "msgpack", None)
    with pytest.raises(ImportError, match=r"flax_model.msgpack needs msgpack: pip install 'bertfast\[compat\]'"):
        checkpoints.foreign_state_dict(MODELS / "mini_flax", "flax")


# Damage


def read_all(read, path):
    return [(name, tensor) for name, tensor in read(path)]


def nested(value, levels):
    """31^levels times the value, in lists of 31."""
    for _ in range(levels):
        value = [value] * 31
    return value


def packed(shape, dtype, raw):
    return msgpack.ExtType(1, msgpack.packb([shape, dtype, raw]))


def test_every_kind_of_leaf_and_length_that_flax_writes(tmp_path):
    arrays = {
        "f4": np.arange(6, dtype="<f4").reshape(2, 3),
        "f8": np.float64([1.5]),
        "empty": np.zeros((0, 4), np.float32),
        "long": np.arange(70_000, dtype=np.float16),
        "ints": np.int64([[-1, 2]]),
    }
    tree = {name: packed(a.shape, a.dtype.name, a.tobytes()) for name, a in arrays.items()}
    tree["scalar"] = msgpack.ExtType(3, msgpack.packb([(), "float32", np.float32(2.5).tobytes()]))
    tree["n" * 40] = {str(i): packed((1,), "float32", b"\0\0\0\0") for i in range(20)}  # str8 and map16
    path = tmp_path / "flax_model.msgpack"
    path.write_bytes(msgpack.packb(tree))
    got = dict(flax_msgpack.read(path))
    assert got.keys() == {*arrays, "scalar", *(f"{'n' * 40}/{i}" for i in range(20))}
    assert got["scalar"].item() == 2.5
    for name, array in arrays.items():
        np.testing.assert_array_equal(got[name].numpy(), array)


HOSTILE_MSGPACK = {
    "empty": b"",
    "a map of 4 billion": b"\xdf\xff\xff\xff\xff",
    "an array of 4 billion": b"\xdd\xff\xff\xff\xff",
    "a string of 4 GB": b"\x81\xdb\xff\xff\xff\xffa",
    "an extension of 4 GB": b"\x81\xa1a\xc9\xff\xff\xff\xff\x01",
    "10^12 elements": msgpack.packb({"w": packed((10**12,), "float32", b"\0\0\0\0")}),
    "10^12 rows of nothing": msgpack.packb({"w": packed((10**12, 10**9, 0), "float32", b"")}),
    "a negative size": msgpack.packb({"w": packed((-1, -4), "float32", b"\0" * 16)}),
    "a shape of names": msgpack.packb({"w": packed(("a",), "float32", b"\0" * 4)}),
    "an unknown dtype": msgpack.packb({"w": packed((1,), "object", b"\0" * 8)}),
    "bytes for a dtype": msgpack.packb({"w": packed((1,), b"float32", b"\0" * 4)}),
    "a shape of a million lists": msgpack.packb({"w": packed(nested([], 4), "float32", b"")}),
    "a million lists for an array": msgpack.packb({"w": msgpack.ExtType(1, msgpack.packb(nested([], 4)))}),
    "a million lists for the bytes": msgpack.packb({"w": packed((1,), "float32", nested([], 4))}),
    "a long list": msgpack.packb({"w": [[]] * 10**6}),
    "two parts": msgpack.packb({"w": msgpack.ExtType(1, msgpack.packb([(1,), "float32"]))}),
    "another extension": msgpack.packb({"w": msgpack.ExtType(2, b"12345")}),
    "a timestamp": msgpack.packb({"w": msgpack.Timestamp(1)}),
    "text": msgpack.packb({"w": "text"}),
    "a number": msgpack.packb({"w": 3}),
    "none": msgpack.packb({"w": None}),
    "a list": msgpack.packb([1, 2]),
    "a root that is an array": msgpack.packb(packed((1,), "float32", b"\0" * 4)),
    "names that are numbers": msgpack.packb({3: packed((1,), "float32", b"\0" * 4)}),
    "a name that is not UTF-8": b"\x81\xa1\xff\xc0",
    "a name of 1 MB": msgpack.packb({"n" * 2**20: {}}),
    "deep": b"\x81\xa1a" * 10_000 + b"\xc0",
    "a byte of no meaning": b"\xc1",
    "bytes behind the tree": msgpack.packb({}) + b"x",
    "chunks that do not match the shape": msgpack.packb(
        {"w": {"__msgpack_chunked_array__": True, "shape": {"0": 10**12}, "chunks": {"0": packed((1,), "float32", b"\0" * 4)}}}
    ),
    "chunks of several dtypes": msgpack.packb(
        {
            "w": {
                "__msgpack_chunked_array__": True,
                "shape": {"0": 2},
                "chunks": {"0": packed((1,), "float32", b"\0" * 4), "1": packed((1,), "bfloat16", b"\0\0")},
            }
        }
    ),
    "chunks without a shape": msgpack.packb({"w": {"__msgpack_chunked_array__": True, "shape": 3, "chunks": []}}),
}


@pytest.mark.parametrize("what", HOSTILE_MSGPACK)
def test_a_hostile_msgpack_raises_one_error_within_the_memory_limit(what, tmp_path):
    path = tmp_path / "flax_model.msgpack"
    path.write_bytes(HOSTILE_MSGPACK[what])
    assert_refused(flax_msgpack.read, path)


def assert_refused(read, path):
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="truncated, damaged or of another format") as error:
            read_all(read, path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert str(path) in str(error.value)
    assert len(str(error.value)) < 600
    assert peak < 3 * path.stat().st_size + 2**20


def test_a_million_tiny_entries_stay_within_the_memory_limit(tmp_path):
    path = tmp_path / "flax_model.msgpack"
    entries = b"".join(b"\xa4" + b"%04x" % i + b"\x80" for i in range(60_000))  # maps that are empty
    path.write_bytes(
        b"\xde" + struct.pack(">H", 50) + b"".join(b"\xa2%02d\xde" % i + struct.pack(">H", 60_000) + entries for i in range(50))
    )
    assert path.stat().st_size > 2**24
    assert_refused(flax_msgpack.read, path)


def change_h5(path, change):
    shutil.copy(H5, path)
    with h5py.File(path, "r+") as f:
        change(f)


def drop_group(f):
    del f["classifier"]


def drop_names(f):
    del f.attrs["layer_names"]


def drop_weight_names(f):
    del f["bert"].attrs["weight_names"]


def names_are_numbers(f):
    f.attrs["layer_names"] = np.arange(3)


def claim_more_than_there_is(f):
    del f["classifier/tf_bert_for_token_classification/classifier/kernel:0"]
    f.create_dataset("classifier/tf_bert_for_token_classification/classifier/kernel:0", (10**6, 10**6), "f4", chunks=(1000, 1000))


def link_elsewhere(f):
    del f["classifier"]
    f["classifier"] = h5py.ExternalLink("/etc/hostname", "/")


def dangling_link(f):
    del f["classifier"]
    f["classifier"] = h5py.SoftLink("/nowhere")


def link_on_the_way(f):
    del f["classifier/tf_bert_for_token_classification"]
    f["classifier/tf_bert_for_token_classification"] = h5py.ExternalLink(str(H5), "/classifier/tf_bert_for_token_classification")


def link_to_itself(f):
    del f["classifier"]
    f["classifier"] = h5py.SoftLink("/classifier")


def a_chunk_of_256_mb(f):
    name = "classifier/tf_bert_for_token_classification/classifier/bias:0"
    del f[name]
    dataset = f.create_dataset(name, (3,), "f4", maxshape=(None,), chunks=(2**26,), compression="gzip", compression_opts=1)
    dataset[:] = 1.0


def values_elsewhere(f):
    del f["classifier/tf_bert_for_token_classification/classifier/bias:0"]
    f.create_dataset("classifier/tf_bert_for_token_classification/classifier/bias:0", (3,), "f4", external=[("/etc/passwd", 0, 12)])


def text_for_numbers(f):
    del f["classifier/tf_bert_for_token_classification/classifier/bias:0"]
    f["classifier/tf_bert_for_token_classification/classifier/bias:0"] = "text"


def group_for_array(f):
    del f["classifier/tf_bert_for_token_classification/classifier/bias:0"]
    f.create_group("classifier/tf_bert_for_token_classification/classifier/bias:0")


def kernel_that_is_no_matrix(f):
    del f["classifier/tf_bert_for_token_classification/classifier/kernel:0"]
    f["classifier/tf_bert_for_token_classification/classifier/kernel:0"] = np.zeros((2, 2, 2), np.float32)


H5_DAMAGE = [
    drop_group, drop_names, drop_weight_names, names_are_numbers, claim_more_than_there_is, link_elsewhere, dangling_link,
    link_on_the_way, link_to_itself, a_chunk_of_256_mb, values_elsewhere, text_for_numbers, group_for_array,
]  # fmt: skip


@pytest.mark.parametrize("change", H5_DAMAGE)
def test_a_damaged_h5_raises_one_error_within_the_memory_limit(change, tmp_path):
    path = tmp_path / "tf_model.h5"
    change_h5(path, change)
    assert_refused(hdf5.read, path)


@pytest.mark.parametrize(
    "content", [b"", b"x" * 1000, H5.read_bytes()[:30_000], H5.read_bytes()[:100]], ids=["empty", "text", "half", "head"]
)
def test_a_truncated_h5(content, tmp_path):
    path = tmp_path / "tf_model.h5"
    path.write_bytes(content)
    assert_refused(hdf5.read, path)


@pytest.mark.parametrize(("offset", "value"), [(8, 2**40), (8, 2**63), (16 + 8, 2**40), (16 + 8, 2**63)])
def test_a_heap_on_which_the_hdf5_library_would_loop_forever(offset, value, tmp_path):
    content = bytearray(H5.read_bytes())
    heap = content.index(b"GCOL\x01")
    content[heap + offset : heap + offset + 8] = struct.pack("<Q", value)
    path = tmp_path / "tf_model.h5"
    path.write_bytes(content)
    assert_refused(hdf5.read, path)


def test_a_heap_object_of_size_zero(tmp_path):
    """Index 0, size 0: libhdf5 2.0 loops forever on it."""
    content = bytearray(H5.read_bytes())
    heap = content.index(b"GCOL\x01")
    content[heap + 16 : heap + 32] = bytes(16)
    path = tmp_path / "tf_model.h5"
    path.write_bytes(content)
    assert_refused(hdf5.read, path)


def test_a_file_that_crashes_the_hdf5_library(tmp_path):
    """Five changed bytes: libhdf5 2.0 gets SIGSEGV."""
    content = bytearray(H5.read_bytes())
    for place, value in ((1629, 128), (6529, 127), (16775, 123), (23086, 127), (23171, 145)):
        content[place] = value
    path = tmp_path / "tf_model.h5"
    path.write_bytes(content)
    assert_refused(hdf5.read, path)


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("import os; os.kill(os.getpid(), 11)", r"crashed on it \(SIGSEGV\)"),
        ("raise SystemExit(3)", r"crashed on it \(status 3\)"),
        ("import time; time.sleep(100)", "did not finish within"),
        ("print('x' * 2**22)", "returned garbage for it"),
        ("""print('{"name": "a", "shape": [1000000], "dtype": "<f4"}')""", "a claims more bytes than the file can contain"),
        ("""print('{"name": "a", "shape": [8], "dtype": "<f4"}\\n1234')""", r"crashed on it \(status 0\)"),
        ("""print('{"error": "reason"}')""", "reason"),
    ],
)
def test_any_failure_of_the_h5_child_process_is_an_error_that_names_the_file(program, message, tmp_path, monkeypatch):
    shutil.copy(H5, tmp_path)
    monkeypatch.setattr(hdf5, "_BOOT", program)
    if "sleep" in program:
        monkeypatch.setattr(hdf5, "_TIMEOUT", 0.3)
    with pytest.raises(ValueError, match=message) as error:
        read_all(hdf5.read, tmp_path / H5.name)
    assert str(tmp_path / H5.name) in str(error.value)


def test_closing_the_reader_early_ends_the_child_process():
    reader = hdf5.read(H5)
    assert next(reader)[0].startswith("bert/")
    reader.close()
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_a_matrix_of_the_wrong_rank_or_shape_names_the_weight(tmp_path):
    shutil.copy(MODELS / "mini_tf" / "config.json", tmp_path)
    change_h5(tmp_path / "tf_model.h5", kernel_that_is_no_matrix)
    with pytest.raises(ValueError, match=r"classifier/kernel:0 has shape \(2, 2, 2\), expected a matrix"):
        load(TOKEN, tmp_path)
    shutil.copy(H5, tmp_path)
    with pytest.raises(ValueError, match=r"tf_model.h5: shapes differ.*word_embeddings.weight is \(30, 16\), the model's \(31, 16\)"):
        load(TOKEN, tmp_path, vocab_size=31)
    model, info = load(TOKEN, tmp_path, vocab_size=31, ignore_mismatched_sizes=True, output_loading_info=True)
    assert len(info["mismatched_keys"]) == 1
    assert model.bert.embeddings.word_embeddings.weight.shape == (31, 16)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("{", "is not valid JSON"),
        ("[]", "no 'weight_map'"),
        ('{"weight_map": {}}', "no 'weight_map'"),
        ('{"weight_map": {"a": 3}}', "no 'weight_map'"),
        ('{"weight_map": {"a": "gone.msgpack"}}', "the shard 'gone.msgpack'"),
        ('{"weight_map": {"a": "../mini_flax/flax_model.msgpack"}}', "the shard '../mini_flax"),
        ('{"weight_map": {"bert/pooler/dense/nothing": "flax_model-00001-of-00004.msgpack"}}', "'bert/pooler/dense/nothing'"),
        ("[" * 200_000, "nested too deeply"),
    ],
)
def test_a_damaged_index_raises_one_error(index, message, tmp_path):
    shutil.copytree(MODELS / "extra_flax_sharded", tmp_path / "model")
    shutil.copytree(MODELS / "mini_flax", tmp_path / "mini_flax")
    (tmp_path / "model" / "flax_model.msgpack.index.json").write_text(index)
    with pytest.raises(ValueError, match=r"index\.json.*" + message.replace(".", r"\.")):
        checkpoints.foreign_state_dict(tmp_path / "model")


@pytest.mark.parametrize("content", [b"", b"12345678", b"\xff" * 8 + b"{}", b"\x02" + b"\0" * 7 + b"[]", b"\x02" + b"\0" * 7 + b"{]"])
def test_a_damaged_safetensors_header(content, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.safetensors: .*truncated, damaged"):
        checkpoints.detect(tmp_path)


def test_a_truncated_safetensors_of_tf(tmp_path):
    content = (MODELS / "extra_tf_safetensors" / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(content[:-100])
    with pytest.raises(ValueError, match=r"model\.safetensors: .*truncated, damaged"):
        checkpoints.foreign_state_dict(tmp_path)


def test_two_arrays_of_one_parameter(tmp_path):
    weights = load_file(MODELS / "extra_tf_safetensors" / "model.safetensors")
    weights["bert/embeddings/LayerNorm/weight:0"] = weights["bert/embeddings/LayerNorm/gamma:0"].clone()
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "tf"})
    with pytest.raises(ValueError, match=r"two of its arrays are bert\.embeddings\.LayerNorm\.weight"):
        checkpoints.foreign_state_dict(tmp_path)


edits = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=40)
fuzzed = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def edited(content, edits, keep):
    damaged = bytearray(content)
    for place, value in edits:
        damaged[int(place * len(damaged))] = value
    return bytes(damaged[: int(keep * len(damaged)) if keep < 0.9 else None])


def assert_read_or_refused(read, path, content):
    path.write_bytes(content)
    tracemalloc.start()
    try:
        read_all(read, path)
    except ValueError as error:
        assert str(path) in str(error)  # noqa: PT017
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 5 * len(content) + 2**20


@fuzzed
@given(edits=edits, keep=st.floats(0, 1))
@pytest.mark.parametrize("name", ["mini_flax", "extra_flax_chunked"])
def test_any_damage_to_a_msgpack_is_read_or_refused(name, edits, keep, tmp_path):
    content = (MODELS / name / "flax_model.msgpack").read_bytes()
    assert_read_or_refused(flax_msgpack.read, tmp_path / "flax_model.msgpack", edited(content, edits, keep))


@fuzzed
@given(content=st.binary(max_size=300))
def test_any_bytes_are_no_msgpack_checkpoint(content, tmp_path):
    assert_read_or_refused(flax_msgpack.read, tmp_path / "flax_model.msgpack", content)


@fuzzed
@given(edits=edits, keep=st.floats(0, 1))
@pytest.mark.parametrize("name", ["extra_tf_safetensors", "extra_flax_safetensors"])
def test_any_damage_to_safetensors_in_another_layout_is_read_or_refused(name, edits, keep, tmp_path):
    content = (MODELS / name / "model.safetensors").read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")  # half of the edits go to the header, where they matter
    early = [(place * header / len(content), value) for place, value in edits[::2]]
    path = tmp_path / "model.safetensors"
    assert_read_or_refused(lambda _: (checkpoints.foreign_state_dict(tmp_path) or {}).items(), path, edited(content, early + edits, keep))


@settings(fuzzed, max_examples=60)
@given(edits=edits, keep=st.floats(0, 1))
def test_any_damage_to_an_index_is_read_or_refused(edits, keep, tmp_path):
    shutil.copytree(MODELS / "extra_flax_sharded", tmp_path, dirs_exist_ok=True)
    path = tmp_path / "flax_model.msgpack.index.json"
    content = edited(path.read_bytes(), edits, keep)
    path.write_bytes(content)
    try:
        weights = checkpoints.foreign_state_dict(tmp_path)
    except ValueError as error:
        assert str(path) in str(error)  # noqa: PT017
    else:
        assert_same(weights, load_file(MODELS / "mini_flax" / "model.safetensors"))


@settings(fuzzed, max_examples=20)  # each starts a process
@given(edits=edits, keep=st.floats(0, 1))
def test_any_damage_to_an_h5_is_read_or_refused(edits, keep, tmp_path):
    assert_read_or_refused(hdf5.read, tmp_path / "tf_model.h5", edited(H5.read_bytes(), edits, keep))
