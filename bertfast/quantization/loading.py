"""Loading quantized folders, and quantizing while loading."""

import copy
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bertfast import checkpoints
from bertfast.checkpoints.json_files import check_folder
from bertfast.checkpoints.loading import LoadedFamily
from bertfast.quantization import fp8_support, int8
from bertfast.quantization.int8_layers import Int8Embedding, Int8Linear, Int8Table
from bertfast.quantization.schemes import check_scheme, config_entry, forget_ties, quantize, scheme_in_config
from bertfast.quantization.stored import check_scales, check_stored

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

_local = threading.local()


@contextmanager
def building_quantized() -> Iterator[None]:
    """Within: this thread builds models with int8 layers of zeros, for their state dict."""
    _local.building = True
    try:
        yield
    finally:
        _local.building = False


def prepare(model: "PreTrainedModel") -> None:
    """Gives a model that was just built its quantized layers, if it is being loaded from a quantized folder. ValueError for the config of
    such a folder used in any other way."""
    if getattr(_local, "building", False):
        int8.put_empty_layers(model)
        forget_ties(model)
        return
    scheme = scheme_in_config(model.config, "config.quantization_config")
    if scheme is not None:
        raise ValueError(
            f"config.quantization_config: this config belongs to a model in {scheme}, which only from_pretrained can build; "
            "to build a float model, set config.quantization_config to None"
        )


def initialize(layer: Int8Table, std: float) -> None:
    """Initializes a layer whose weights a checkpoint lacks as transformers does, then quantizes."""
    bias = getattr(layer, "bias", None)
    if bias is not None and not getattr(bias, "_is_hf_initialized", False):
        with torch.no_grad():
            bias.zero_()
    if getattr(layer.weight_int8, "_is_hf_initialized", False) and getattr(layer.weight_scales, "_is_hf_initialized", False):
        return
    shape = (layer.num_embeddings, layer.embedding_dim) if isinstance(layer, Int8Embedding) else (layer.out_features, layer.in_features)
    layer.fill(torch.empty(*shape).normal_(0.0, std))


def tie(model: "PreTrainedModel", missing: set[str]) -> None:
    """Ties a decoder that a checkpoint lacks to the word embeddings, and removes it from `missing`."""
    if not getattr(model.config, "tie_word_embeddings", True):
        return
    decoder = model.get_output_embeddings()
    if not isinstance(decoder, Int8Linear):
        return
    name = next(name for name, m in model.named_modules() if m is decoder)
    keys = {f"{name}.{which}" for which in ("weight_int8", "weight_scales")}
    if keys <= missing and not any("word_embeddings.weight" in key for key in missing):
        words = model.get_input_embeddings()
        if isinstance(words, Int8Embedding) and not words.packed:
            with int8.named(f"{model.config.name_or_path}: word_embeddings"):
                check_scales(words.weight_int8, words.weight_scales)
        decoder.tie(words)
        missing -= keys


def from_pretrained(
    load: Callable[..., Any], family: LoadedFamily, path: str | PathLike[str] | None, *args: object, quantization: str | None, **kwargs: Any
) -> Any:
    """checkpoints.from_pretrained, which also loads quantized folders, and quantizes models of others.

    load: a class's `from_pretrained` of transformers. ValueError where folder, quantization and dtype contradict each other.
    """
    if quantization is not None:
        check_scheme(quantization)
    stored = _stored_scheme(path, kwargs)
    if stored is not None and quantization not in (None, stored):
        raise ValueError(f"quantization={quantization!r}: {path} holds a model in {stored}; leave quantization out, or load the original")
    scheme = stored or quantization
    if scheme is None:
        return checkpoints.from_pretrained(load, family, path, *args, **kwargs)
    if scheme == "fp8":
        return _load_fp8(load, family, path, *args, **kwargs)
    _check_int8_arguments(kwargs)
    kwargs["dtype"] = torch.float32
    if stored is None:
        loaded = checkpoints.from_pretrained(load, family, path, *args, **kwargs)
        quantize(loaded[0] if isinstance(loaded, tuple) else loaded, scheme)
        return loaded
    config, kwargs = _float_config(family, path, kwargs)
    checkpoint = checkpoints.detect(Path(path or "") / str(kwargs.get("subfolder") or ""))
    if checkpoint is not None:
        check_stored(checkpoint)
    with_info, any_size = kwargs.pop("output_loading_info", False), kwargs.pop("ignore_mismatched_sizes", False)
    with building_quantized():
        model, info = checkpoints.from_pretrained(
            load, family, path, *args, config=config, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
        )
    if info["mismatched_keys"] and not any_size:
        wrong = "; ".join(f"{name} is {tuple(got)}, the model's {tuple(want)}" for name, got, want in sorted(info["mismatched_keys"]))
        raise ValueError(f"{path}: shapes differ from the config's: {wrong}")
    for name, layer in model.named_modules():
        if isinstance(layer, Int8Table):
            absent = {key for key in info["missing_keys"] if key in (f"{name}.weight_int8", f"{name}.weight_scales")}
            if len(absent) == 1:
                raise ValueError(f"{path}: damaged: it lacks {absent.pop()}, and holds the other half of that weight")
            with int8.named(f"{path}: {name}"):
                if not layer.packed:  # tied embeddings are, by tie
                    check_scales(layer.weight_int8, layer.weight_scales)
                    layer.pack()
    model.config.quantization_config = config_entry(stored)
    return (model, info) if with_info else model


def _load_fp8(load: Callable[..., Any], family: LoadedFamily, path: str | PathLike[str] | None, *args: object, **kwargs: Any) -> Any:
    """Loads the float model in bfloat16 (or float16 if asked for), moves it to the GPU (device_map, else the current one), quantizes it."""
    device = torch.device(kwargs.pop("device_map", None) or "cuda")
    why = fp8_support.why_device_unsupported(device) if device.type != "cuda" or torch.cuda.is_available() else "torch sees no GPU"
    if why is not None:
        raise ValueError(f"quantization='fp8': {why}")
    names = [name for name in ("dtype", "torch_dtype") if kwargs.get(name) not in (None, "auto")]
    dtype = kwargs.pop(names[0]) if names else torch.bfloat16
    if dtype not in (torch.bfloat16, torch.float16, "bfloat16", "float16"):
        raise ValueError(f"{names[0]}={dtype}: what is not in fp8 is in bfloat16 or float16; ask for one of them")
    loaded = checkpoints.from_pretrained(load, family, path, *args, **{**kwargs, "dtype": dtype})
    model = loaded[0] if isinstance(loaded, tuple) else loaded
    model.to(device)
    quantize(model, "fp8")
    return loaded


def _stored_scheme(path: str | PathLike[str] | None, kwargs: dict[str, Any]) -> str | None:
    """The scheme of the model in a local folder."""
    if not isinstance(path, (str, PathLike)):
        return None
    file = Path(path) / (kwargs.get("subfolder") or "") / "config.json"
    check_folder(file.parent)
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # transformers reads it next, and says what is wrong
        return None
    return scheme_in_config(config, str(file)) if isinstance(config, dict) else None


def _check_int8_arguments(kwargs: dict[str, object]) -> None:
    for name in ("dtype", "torch_dtype"):
        dtype = kwargs.pop(name, None)
        if dtype not in (None, "auto", "float32", torch.float32):
            raise ValueError(f"{name}={dtype}: a model in int8 computes in int8 and float32; leave {name} out")
    for name in ("device_map", "quantization_config", "gguf_file"):
        value = kwargs.get(name)
        if value is not None and not (name == "device_map" and str(value) == "cpu"):
            raise ValueError(f"{name}={value!r}: int8 runs on CPUs and does not take it; leave {name} out")


def _float_config(
    family: LoadedFamily, path: str | PathLike[str] | None, kwargs: dict[str, Any]
) -> tuple["PreTrainedConfig", dict[str, object]]:
    """The config of a quantized folder without its quantization_config, for transformers; and the remaining keywords."""
    from transformers import PreTrainedConfig

    config = kwargs.pop("config", None)
    if isinstance(config, PreTrainedConfig):
        config = copy.deepcopy(config)
    else:
        kept = {name: kwargs.pop(name) for name in checkpoints.NOT_CONFIG & kwargs.keys()}
        where = {name: kwargs[name] for name in ("subfolder",) if name in kwargs}
        config, kwargs = family.config.from_pretrained(path if config is None else config, return_unused_kwargs=True, **kwargs)
        kwargs |= kept | where
    config.__dict__.pop("quantization_config", None)
    return config, kwargs
