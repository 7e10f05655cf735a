"""Every recorded case, replayed through the compat class from each checkpoint format.

Limits (tests/golden: distance from the classes to float64 with room for another order of operations): float32 5e-5, attentions
5e-6, 2e-3 where scores lie near 10000; bfloat16 0.15 and float16 2e-2, for vocabulary logits 1.0 and 0.1; sequences exactly.
"""

import copy
import shutil
from functools import cache, lru_cache
from typing import Any

import numpy as np
import pytest
import transformers

from bertfast.compat import flax, tf
from compat import golden

# Recorded errors that do not raise here; below, cases that raise here only. docs/compat.md explains each.
DOCUMENTED = {
    ("tf_tokcls", "head_mask_1d"), ("tf_tokcls", "head_mask_2d"), ("tf_qa", "head_mask_1d"), ("tf_qa", "head_mask_2d"),
}  # fmt: skip
XLA = {("tf_qa", "xla_loss_out_of_range"), ("tf_qa", "xla_loss_negative")}

# What an error message must name, by the start of the case id; the first match counts.
NAMED = [
    ("act_", "hidden_act"), ("err_inputs_embeds_kw", "input_ids"), ("err_inputs_embeds", "inputs_embeds"), ("err_embeds", "inputs_embeds"),
    ("err_both", "inputs_embeds"), ("err_token_type", "token_type_ids"), ("err_position", "position_ids"), ("err_unknown_kwarg", "foo"),
    ("unknown_kwarg", "foo"), ("err_labels", "labels"), ("err_add_cross", "add_cross_attention"), ("err_", "input_ids"),
    ("mask_shape", "attention_mask"), ("labels_", "labels"), ("num_labels", "num_labels"), ("loss_minus100", "end_positions"),
    ("loss_", "start_positions"), ("graph_loss", "start_positions"), ("fmt_pylist", "input_ids"), ("fmt_dict_unknown", "nonsense"),
    ("head_mask", "head_mask"), ("train_true", "dropout_rng"), ("ids_pylist", "input_ids"), ("empty_batch", "input_ids"),
    ("init_cache_not", "is_decoder"), ("not_decoder_init", "is_decoder"), ("greedy_not_decoder", "is_decoder"),
    ("cross_enc_mask", "encoder_attention_mask"), ("cross_enc", "encoder_hidden_states"), ("cache_max_length", "max_length"),
    ("cache_wrong_batch", "past_key_values"), ("cache_mask", "attention_mask"), ("cache_no_cross", "attention_mask"),
    ("greedy_no_cross", "add_cross_attention"), ("greedy_encoder", "encoder_hidden_states"), ("greedy_max_length", "max_length"),
    ("beam_sample", "do_sample"),
]  # fmt: skip

FORMATS = {"safetensors": "model.safetensors", "h5": "tf_model.h5", "msgpack": "flax_model.msgpack"}


def cases() -> list[Any]:
    found = []
    for group in golden.GROUPS:
        for id in golden.ids(group):
            model = golden.MODELS / golden.load(group, id)["model"]
            for format, name in FORMATS.items():
                if (model / name).is_file():
                    both = (False, True) if format == "safetensors" else (True,)
                    found += [pytest.param(group, id, format, keep, id=f"{group}-{id}-{format}{'-kept' * keep}") for keep in both]
    return found


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """(model, format) -> a folder with the model in that format only."""

    @cache
    def folder(model, format):
        path = tmp_path_factory.mktemp(f"{model}-{format}")
        for source in (golden.MODELS / model).iterdir():
            if source.suffix == ".json" or source.name == FORMATS[format]:
                shutil.copy(source, path)
        return path

    return folder


@pytest.mark.parametrize(("group", "id", "format", "keep"), cases())
def test_case(group, id, format, keep, folders):
    case = golden.load(group, id)
    if ("error" in case and (group, id) not in DOCUMENTED) or (group, id) in XLA:
        with pytest.raises((ValueError, TypeError, KeyError)) as error:
            run(build(case, folders(case["model"], format), keep), case)
        name = next(name for start, name in NAMED if id.startswith(start)) if (group, id) not in XLA else "start_positions"
        assert name in str(error.value)
        return
    out = run(build(case, folders(case["model"], format), keep), case)
    if (group, id) in DOCUMENTED:
        return  # values are in the group tf_head_mask_doc
    named = {str(i): value for i, value in enumerate(out)} if isinstance(out, tuple) else out
    assert case.get("output_type", type(out).__name__) == type(out).__name__
    if case.get("kind") is None and "output_order" in case:
        assert list(named) == [str(name) for name in case["output_order"]]
    limit = 2e-3 if group.startswith("tf") and id in ("mask_row_fully_masked", "mask_shape_B_1", "mask_value_2") else None
    compare(named, case["outputs"], Limits(case, limit), None if keep else padding(case))


def build(case, folder, keep):
    if case.get("call_format") == "gradient_checkpointing":
        return flax.FlaxBertModel.from_pretrained(folder, gradient_checkpointing=True, keep_padding=keep)
    overrides = tuple(sorted(case["config_overrides"].items()))
    model = loaded(case["cls"], folder, case.get("dtype") if case["framework"] == "flax" else None, overrides)
    model.keep_padding = keep
    return model


@lru_cache(maxsize=8)  # consecutive cases share their model
def loaded(name, folder, dtype, overrides):
    if name.startswith("TF"):
        return getattr(tf, name).from_pretrained(folder, **dict(overrides))
    return getattr(flax, name).from_pretrained(folder, dtype=dtype or "float32", **dict(overrides))


def run(model, case):
    kind = case.get("kind")
    extra = {"params": other_params(model, case["params_transform"])} if "params_transform" in case else {}
    if kind is None:
        return call(model, case, extra)
    if kind == "cached_steps":
        return cached_steps(model, case)
    inputs = case["inputs"]
    if kind == "generate":
        return model.generate(**inputs, **case["generate_kwargs"], **extra)
    if kind == "init_cache":
        return model.init_cache(**case["init_cache"])
    if kind == "prepare_inputs_for_generation":
        return model.prepare_inputs_for_generation(max_length=case["max_length"], **inputs)
    if kind == "update_inputs_for_generation":
        prepared = model.prepare_inputs_for_generation(inputs["input_ids"], case["max_length"])
        return model.update_inputs_for_generation(model(inputs["input_ids"], **prepared), prepared)
    assert kind == "from_head_checkpoint"
    whole = model(**inputs, output_hidden_states=True).hidden_states[-1]
    bare = flax.FlaxBertModel.from_pretrained(model.name_or_path)(**inputs).last_hidden_state
    return {"diff": np.abs(whole - bare).max()}


def call(model, case, extra):
    inputs, kwargs, format = case["inputs"], {**case["kwargs"], **extra}, case.get("call_format", "kw")
    rest = {name: value for name, value in inputs.items() if name != "input_ids"}
    if format.startswith("tf_function"):  # recorded with the flags as call arguments; called eagerly here
        order = case.get("output_order", [])
        kwargs |= {f"output_{name}": name in order for name in ("hidden_states", "attentions")}
        kwargs["return_dict"] = case.get("output_type") != "tuple"
        return model(**inputs, **kwargs)
    if format == "fresh_model":
        config = copy.deepcopy(model.config)
        config.num_labels = 3
        return type(model)(config)(**inputs, **kwargs)
    ways = {
        "kw": lambda: model(**inputs, **kwargs),
        "jax_array": lambda: model(**inputs, **kwargs),  # NumPy arrays here; JAX arrays: tests/frameworks
        "gradient_checkpointing": lambda: model(**inputs, **kwargs),
        "tensor": lambda: model(inputs["input_ids"], **kwargs),
        "tensor_then_kw": lambda: model(inputs["input_ids"], **rest, **kwargs),
        "list": lambda: model(list(inputs.values()), **kwargs),
        "tuple": lambda: model(tuple(inputs.values()), **kwargs),
        "dict": lambda: model(dict(inputs), **kwargs),
        "batch_encoding": lambda: model(transformers.BatchEncoding(dict(inputs)), **kwargs),
        "dict_then_kw": lambda: model({"input_ids": inputs["input_ids"]}, **rest, **kwargs),
        "positional": lambda: model(*inputs.values(), **kwargs),
        "nested_list": lambda: model(inputs["input_ids"].tolist(), **kwargs),
        "no_args": lambda: model(),
        "positional_none": lambda: model(None),
        "keras_predict": lambda: model.predict(dict(inputs)),
        "dict_with_key_nonsense": lambda: model({**inputs, "nonsense": inputs["input_ids"]}),
        "fresh_cache": lambda: model(**inputs, **kwargs, past_key_values=model.init_cache(**case["init_cache"])),
    }
    return ways[format]()


def cached_steps(model, case):
    cache, steps = model.init_cache(**case["init_cache"]), []
    for step in case["inputs"]["steps"]:
        out = model(**step, **case["inputs"].get("common", {}), **case["kwargs"], past_key_values=cache)
        cache = out[1] if isinstance(out, tuple) else out.past_key_values
        steps.append({str(i): v for i, v in enumerate(out)} if isinstance(out, tuple) else out)
    if "output_order" in case:
        assert list(steps[0]) == case["output_order"]
    return {"steps": steps, "cache": cache}


def other_params(model, transform):
    if transform in ("to_bf16", "to_fp16"):
        return getattr(model, transform)(model.params)
    path, factor = transform.split(" * ")
    changed = copy.deepcopy(model.params)
    *levels, last = path.split("/")
    node = changed
    for level in levels:
        node = node[level]
    node[last] = node[last] * np.float32(factor)
    return changed


def padding(case):
    """[B, S] bool: the positions whose outputs may be zeros."""
    inputs = case["inputs"]
    mask = inputs.get("attention_mask") if case.get("kind") is None else None
    if mask is None:
        return None
    like = inputs["input_ids"] if inputs.get("input_ids") is not None else inputs["inputs_embeds"]
    return np.broadcast_to(mask.astype(np.int32) <= 0, like.shape[:2])


class Limits:
    def __init__(self, case, limit):
        self.dtype = case.get("dtype", "float32")
        self.generated = case.get("kind") == "generate"
        self.limit = limit

    def __call__(self, path, want):
        if self.limit is not None:
            return self.limit
        if self.generated:
            return 1e-4
        if self.dtype == "float32":
            return 5e-6 if want.ndim == 4 and "cached" not in path[-1] else 5e-5
        vocabulary = path[-1] in ("logits", "prediction_logits")
        return {"bfloat16": 1.0 if vocabulary else 0.15, "float16": 0.1 if vocabulary else 2e-2}[self.dtype]


def compare(got, want, limits, pad_mask, path=()):
    if isinstance(want, dict):
        assert set(want) <= set(got), path
        for name, inner in want.items():
            compare(got[name], inner, limits, pad_mask, (*path, name))
    elif isinstance(want, list):
        assert len(got) == len(want), path
        for g, w in zip(got, want, strict=True):
            compare(g, w, limits, pad_mask, path)
    else:
        got = np.asarray(got)
        assert got.shape == want.shape, path
        if want.dtype == np.int32:
            assert got.dtype == np.int32, path
            np.testing.assert_array_equal(got, want)
            return
        if path[-1] != "diff" and not limits.generated:
            assert got.dtype.name == limits.dtype, path
        off = np.abs(got.astype(np.float64) - want.astype(np.float64))
        np.testing.assert_array_equal(np.isnan(got), np.isnan(want), err_msg=str(path))
        off = np.where(np.isnan(want), 0.0, off)
        if pad_mask is not None and want.ndim == 4 and want.shape[2] == pad_mask.shape[1]:
            off = np.where(pad_mask[:, None, :, None], 0.0, off)
        elif pad_mask is not None and want.ndim in (2, 3) and want.shape[:2] == pad_mask.shape:
            off = np.where(pad_mask.reshape(*pad_mask.shape, *(1,) * (want.ndim - 2)), 0.0, off)
        assert off.size == 0 or off.max() <= limits(path, want), (path, off.max())


def test_every_group_is_replayed():
    assert sum(len(golden.ids(group)) for group in golden.GROUPS) == 513
    assert len(DOCUMENTED) + len(XLA) == 6
