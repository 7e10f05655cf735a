"""Which parts of a BERT are quantized, how a quantized model is made, and how it gets into a folder and back.

int8: every linear layer of the encoder, the word embeddings and the decoder of a language-model head, which stays one with the
embeddings where it was tied to them. Positions, token types, LayerNorm, pooler, the transform before a decoder (one H x H matrix) and
classifiers stay float32. The float32 originals are dropped.

fp8: the products of the encoder on a GPU, all but the one after attention: see bertfast.quantization.fp8_layers. It is not saved.

A saved model has its scheme in config.json:

    "quantization_config": {"library": "bertfast", "scheme": "int8", "version": 3}

It has no `quant_method`, so that transformers, which would skip a method that it does not know and go on with random weights, raises
a ValueError instead.
"""

import copy
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bertfast import checkpoints
from bertfast.quantization import fp8_layers
from bertfast.quantization.int8_layers import RELOAD_HINT, Int8Embedding, Int8Linear, QuantizedLayer

SCHEMES = ("int8", "fp8")
SAVED = ("int8",)  # the others are made anew at every load
VERSION = 3  # of what the tensors in a file mean; 2 had a scale for every 64 inputs, 1 another form for word embeddings as well

_local = threading.local()


def check_scheme(name: Any) -> None:
    """ValueError unless `name` is a scheme that there is."""
    if name not in SCHEMES:
        raise ValueError(f"quantization: got {name!r}, expected {' or '.join(map(repr, SCHEMES))}, or None for the weights as they are")


def check_saved(name: str) -> None:
    """ValueError unless models of that scheme can be written into a folder."""
    check_scheme(name)
    if name not in SAVED:
        raise ValueError(f"quantization={name!r}: such a model is made anew at every load, never saved; convert to {' or '.join(SAVED)}")


def scheme_of(module: nn.Module) -> str | None:
    """The scheme of the quantized layers in a module; None where there are none."""
    return next((m.scheme for m in module.modules() if isinstance(m, QuantizedLayer)), None)


def config_entry(scheme: str) -> dict[str, Any]:
    """What config.json says of a quantized model."""
    return {"library": "bertfast", "scheme": scheme, "version": VERSION}


def scheme_in_config(config: Any, where: str) -> str | None:
    """The scheme that a config names, as an object or as the dict of its file. ValueError where it is one of a later version."""
    found = config.get("quantization_config") if isinstance(config, dict) else getattr(config, "quantization_config", None)
    if not isinstance(found, dict) or found.get("library") != "bertfast":
        return None
    scheme = found.get("scheme")
    if scheme not in SAVED or found.get("version") != VERSION:
        raise ValueError(
            f"{where}: quantized by bertfast as {scheme!r}, version {found.get('version')!r}; this version reads "
            f"{', '.join(map(repr, SAVED))}, version {VERSION}"
        )
    return str(scheme)


def why_not_quantizable(model: Any, scheme: str, family: Any = None) -> str | None:
    """Why a BERT cannot be quantized; None where it can."""
    if scheme == "fp8":
        return fp8_layers.why_not_quantizable(model)
    present = scheme_of(model)
    if present not in (None, scheme):
        return f"it is quantized already, as {present!r}; {RELOAD_HINT}, then quantize that"
    for name, parameter in model.named_parameters():
        if parameter.dtype != torch.float32:
            return f"its parameters are {parameter.dtype} ({name}), expected torch.float32; call .float() on it first"
        if parameter.device.type != "cpu":
            return f"its parameters are on {parameter.device} ({name}), and {scheme} runs on CPUs; call .to('cpu') on it first"
        if type(parameter) is not nn.Parameter:
            return f"parameter {name} is a {type(parameter).__name__}"
    for place, layer in quantizable_layers(model, family):
        if not isinstance(layer, QuantizedLayer) and type(layer) not in (nn.Linear, nn.Embedding):
            return f"{place} is a {type(layer).__name__}, expected torch's own layer; merge or remove the adapter first"
    return None


def quantizable_layers(model: Any, family: Any = None) -> Iterator[tuple[str, nn.Module]]:
    """The layers of a model, with or without a head, that int8 replaces, by name; a layer that stands in two places comes twice."""
    family = family or model.family
    for name, module in model.named_modules(remove_duplicate=False):
        if family.quantizable(name):
            yield name, module


def quantize(model: Any, scheme: str = "int8") -> None:
    """Quantizes a BERT in place, layer by layer. ValueError, before anything is changed, where it cannot be."""
    check_scheme(scheme)
    reason = why_not_quantizable(model, scheme)
    if reason is not None:
        raise ValueError(f"quantization={scheme!r}: {reason}")
    if scheme == "fp8":
        fp8_layers.quantize(model)
        return
    words = {id(layer.weight): name for name, layer in quantizable_layers(model) if type(layer) is nn.Embedding}
    ties = {
        name: words[id(layer.weight)] for name, layer in quantizable_layers(model) if type(layer) is nn.Linear and id(layer.weight) in words
    }
    shared = {id(model.get_submodule(name)) for name in ties}

    def made(layer: Any) -> QuantizedLayer:
        if isinstance(layer, nn.Embedding):
            return Int8Embedding.of(layer)
        return _empty_linear(layer) if id(layer) in shared else Int8Linear.of(layer)

    _replace(model, made)
    for decoder, embedding in ties.items():
        model.get_submodule(decoder).tie(model.get_submodule(embedding))
    model.config.quantization_config = config_entry(scheme)


def _replace(model: Any, made: Callable[[Any], QuantizedLayer]) -> None:
    done: dict[nn.Module, QuantizedLayer] = {}
    for name, layer in list(quantizable_layers(model)):
        if isinstance(layer, QuantizedLayer):
            continue
        if layer not in done:
            with named(name):
                done[layer] = made(layer)
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, done[layer])
    forget_ties(model)


@contextmanager
def named(name: str) -> Iterator[None]:
    """Within: a ValueError says which layer it is about."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def forget_ties(root: nn.Module) -> None:
    """No model in `root` goes on believing that a quantized layer has a parameter to tie: what transformers keeps in
    `_tied_weights_keys` (of the class) and in `all_tied_weights_keys` (of the object)."""
    for module in root.modules():
        keys = getattr(module, "_tied_weights_keys", None), module.__dict__.get("all_tied_weights_keys")
        if not any(isinstance(each, dict) for each in keys):
            continue
        gone = {f"{name}.weight" for name, m in module.named_modules(remove_duplicate=False) if isinstance(m, QuantizedLayer)}
        for name, ties in zip(("_tied_weights_keys", "all_tied_weights_keys"), keys, strict=True):
            if gone and isinstance(ties, dict):
                kept = {target: source for target, source in ties.items() if target not in gone and source not in gone}
                module.__dict__[name] = kept


@contextmanager
def building(scheme: str) -> Iterator[None]:
    """Within: models of this thread are built with quantized layers, empty, for a state dict of theirs."""
    _local.building = scheme
    try:
        yield
    finally:
        _local.building = None


def prepare(model: Any) -> None:
    """For a model that was just built: its quantized layers, where it is being loaded from a quantized folder. ValueError for a config of
    such a folder that is used in another way."""
    if getattr(_local, "building", None) is None:
        scheme = scheme_in_config(model.config, "config.quantization_config")
        if scheme is not None:
            raise ValueError(
                f"config.quantization_config: this config belongs to a model in {scheme}, which only from_pretrained can build; "
                "to build a float model, set config.quantization_config to None"
            )
        return
    _replace(
        model,
        lambda layer: (
            Int8Embedding(layer.num_embeddings, layer.embedding_dim, layer.padding_idx)
            if isinstance(layer, nn.Embedding)
            else _empty_linear(layer)
        ),
    )


def _empty_linear(layer: Any) -> Int8Linear:
    made = Int8Linear(layer.in_features, layer.out_features, bias=False)
    made.bias = layer.bias  # tied to another one, in a language-model head
    return made


def initialize(layer: QuantizedLayer, std: float) -> None:
    """For a layer whose weights a checkpoint lacks: what transformers would draw, quantized."""
    if getattr(layer.weight_int8, "_is_hf_initialized", False) and getattr(layer.weight_scales, "_is_hf_initialized", False):
        return
    shape = (layer.num_embeddings, layer.embedding_dim) if isinstance(layer, Int8Embedding) else (layer.out_features, layer.in_features)
    layer.fill(torch.empty(*shape).normal_(0.0, std))


def tie(model: Any, missing: set[str]) -> None:
    """A decoder that is tied to the word embeddings, and that a checkpoint lacks, is theirs; `missing` forgets it."""
    if not getattr(model.config, "tie_word_embeddings", True):
        return
    for name, decoder in list(model.named_modules()):
        if not isinstance(decoder, Int8Linear) or not name.endswith("predictions.decoder"):
            continue
        keys = {f"{name}.{which}" for which in ("weight_int8", "weight_scales")}
        words = model.get_input_embeddings()
        if keys <= missing and not any("word_embeddings.weight" in key for key in missing):
            decoder.tie(words)
            missing -= keys


def from_pretrained(load: Callable[..., Any], config_class: Any, path: Any, *args: Any, quantization: str | None, **kwargs: Any) -> Any:
    """checkpoints.from_pretrained, for quantized folders too, and quantizing what is not.

    load: a class's `from_pretrained` as transformers has it. ValueError where the folder, quantization and dtype do not go together.
    """
    if quantization is not None:
        check_scheme(quantization)
    stored = _stored_scheme(path, kwargs)
    if stored is not None and quantization not in (None, stored):
        raise ValueError(f"quantization={quantization!r}: {path} holds a model in {stored}; leave quantization out, or load the original")
    scheme = stored or quantization
    if scheme is None:
        return checkpoints.from_pretrained(load, config_class, path, *args, **kwargs)
    if scheme == "fp8":
        return _load_fp8(load, config_class, path, *args, **kwargs)
    _check_loading(scheme, kwargs)
    kwargs["dtype"] = torch.float32
    if stored is None:
        loaded = checkpoints.from_pretrained(load, config_class, path, *args, **kwargs)
        quantize(loaded[0] if isinstance(loaded, tuple) else loaded, scheme)
        return loaded
    config, kwargs = _plain_config(config_class, path, kwargs)
    with_info = kwargs.pop("output_loading_info", False)
    with building(stored):
        model, info = checkpoints.from_pretrained(load, config_class, path, *args, config=config, output_loading_info=True, **kwargs)
    for name, layer in model.named_modules():
        if isinstance(layer, QuantizedLayer):
            absent = {key for key in info["missing_keys"] if key in (f"{name}.weight_int8", f"{name}.weight_scales")}
            if len(absent) == 1:
                raise ValueError(f"{path}: damaged: it lacks {absent.pop()}, and holds the other half of that weight")
            with named(f"{path}: {name}"):
                layer.pack()
    model.config.quantization_config = config_entry(stored)
    return (model, info) if with_info else model


def _load_fp8(load: Callable[..., Any], config_class: Any, path: Any, *args: Any, **kwargs: Any) -> Any:
    """The float model, in bfloat16 unless float16 was asked for, on the GPU (the current one unless device_map names it), in fp8."""
    device = torch.device(kwargs.pop("device_map", None) or "cuda")
    why = fp8_layers.why_device_unsupported(device) if device.type != "cuda" or torch.cuda.is_available() else "torch sees no GPU"
    if why is not None:
        raise ValueError(f"quantization='fp8': {why}")
    names = [name for name in ("dtype", "torch_dtype") if kwargs.get(name) not in (None, "auto")]
    dtype = kwargs.pop(names[0]) if names else torch.bfloat16
    if dtype not in (torch.bfloat16, torch.float16, "bfloat16", "float16"):
        raise ValueError(f"{names[0]}={dtype}: what is not in fp8 is in bfloat16 or float16; ask for one of them")
    loaded = checkpoints.from_pretrained(load, config_class, path, *args, **{**kwargs, "dtype": dtype})
    model = loaded[0] if isinstance(loaded, tuple) else loaded
    model.to(device)
    quantize(model, "fp8")
    return loaded


def _stored_scheme(path: Any, kwargs: dict[str, Any]) -> str | None:
    """The scheme of the model in a local folder."""
    if not isinstance(path, (str, PathLike)):
        return None
    file = Path(path) / (kwargs.get("subfolder") or "") / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # whoever reads it next says what is wrong
        return None
    return scheme_in_config(config, str(file)) if isinstance(config, dict) else None


def _check_loading(scheme: str, kwargs: dict[str, Any]) -> None:
    for name in ("dtype", "torch_dtype"):
        dtype = kwargs.pop(name, None)
        if dtype not in (None, "auto", "float32", torch.float32):
            raise ValueError(f"{name}={dtype}: a model in {scheme} computes in int8 and float32; leave {name} out")
    for name in ("device_map", "quantization_config", "gguf_file"):
        value = kwargs.get(name)
        if value is not None and not (name == "device_map" and str(value) == "cpu"):
            raise ValueError(f"{name}={value!r}: it does not go together with {scheme}, which runs on CPUs; leave {name} out")


def _plain_config(config_class: Any, path: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The config of a quantized folder without its record, as transformers may see it; and the keywords that are left."""
    from transformers import PreTrainedConfig

    config = kwargs.pop("config", None)
    if isinstance(config, PreTrainedConfig):
        config = copy.deepcopy(config)
    else:
        kept = {name: kwargs.pop(name) for name in checkpoints.NOT_CONFIG & kwargs.keys()}
        where = {name: kwargs[name] for name in ("subfolder",) if name in kwargs}
        config, kwargs = config_class.from_pretrained(path if config is None else config, return_unused_kwargs=True, **kwargs)
        kwargs |= kept | where
    config.__dict__.pop("quantization_config", None)
    return config, kwargs
