"""The schemes of quantization, and how a model is quantized by one.

int8, for CPUs (int8.py): every linear layer of the encoder, the word embeddings, and the decoder of a language-model head, which shares the
embeddings' matrix if it was tied to them.
fp8, for NVIDIA GPUs (fp8.py): the products of the encoder but the one after attention. It is not saved.

A saved model names its scheme in config.json:

    "quantization_config": {"library": "bertfast", "scheme": "int8", "version": 3}

There is no `quant_method`: transformers would skip an unknown method and load random weights, but raises ValueError without one.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor, nn

from bertfast.ops.derivative import RELOAD_HINT
from bertfast.quantization import fp8, int8
from bertfast.quantization.layer import QuantizedLayer

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

SCHEMES = ("int8", "fp8")
SAVED = ("int8",)  # the others are made at every load
VERSION = 3  # of the tensors in a file; 2 had a scale for every 64 inputs, 1 another form for word embeddings too


def check_scheme(name: object) -> None:
    """ValueError unless `name` is one of SCHEMES."""
    if name not in SCHEMES:
        raise ValueError(f"quantization: got {name!r}, expected {' or '.join(map(repr, SCHEMES))}, or None for the weights as they are")


def check_saved(name: str) -> None:
    """ValueError unless models of that scheme can be written into a folder."""
    check_scheme(name)
    if name not in SAVED:
        raise ValueError(f"quantization={name!r}: such a model is quantized at every load, never saved; convert to {' or '.join(SAVED)}")


def scheme_of(module: nn.Module) -> str | None:
    """The scheme of the quantized layers in a module; None where there are none."""
    return next((m.scheme for m in module.modules() if isinstance(m, QuantizedLayer)), None)


def config_entry(scheme: str) -> dict[str, str | int]:
    """`quantization_config` of a quantized model."""
    return {"library": "bertfast", "scheme": scheme, "version": VERSION}


def scheme_in_config(config: "PreTrainedConfig | dict[str, object]", where: str) -> str | None:
    """The scheme that a config names (an object, or the dict of its file). ValueError for another scheme or version than this one reads."""
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


def why_not_quantizable(model: "PreTrainedModel", scheme: str) -> str | None:
    """Why a model, with or without a head, cannot be quantized; None where it can."""
    if scheme == "fp8":
        return fp8.why_not_quantizable(model)
    present = scheme_of(model)
    if present not in (None, scheme):
        return f"it is quantized already, as {present!r}; {RELOAD_HINT}, then quantize that"
    return int8.why_not_quantizable(model)


def quantize(model: "PreTrainedModel", scheme: str = "int8") -> None:
    """Quantizes a model in place, layer by layer. ValueError, before anything is changed, where it cannot be."""
    check_scheme(scheme)
    reason = why_not_quantizable(model, scheme)
    if reason is not None:
        raise ValueError(f"quantization={scheme!r}: {reason}")
    if scheme == "fp8":
        fp8.quantize(model)
        return
    int8.quantize(model)
    forget_ties(model)
    model.config.quantization_config = config_entry(scheme)


def check_conversion(model: "PreTrainedModel", fn: Callable[[Tensor], Tensor]) -> None:
    """RuntimeError, before any tensor of the model is changed, where its scheme has no such dtype or device: see QuantizedLayer."""
    first = next((m for m in model.modules() if isinstance(m, QuantizedLayer)), None)
    if first is not None:
        first.check_conversion(fn)


def forget_ties(root: nn.Module) -> None:
    """Removes quantized layers, which have no parameter to tie, from `_tied_weights_keys` (of a class) and `all_tied_weights_keys` (of a
    model) of every transformers model in `root`."""
    for module in root.modules():
        keys = getattr(module, "_tied_weights_keys", None), module.__dict__.get("all_tied_weights_keys")
        if not any(isinstance(each, dict) for each in keys):
            continue
        gone = {f"{name}.weight" for name, m in module.named_modules(remove_duplicate=False) if isinstance(m, QuantizedLayer)}
        for name, ties in zip(("_tied_weights_keys", "all_tied_weights_keys"), keys, strict=True):
            if gone and isinstance(ties, dict):
                kept = {target: source for target, source in ties.items() if target not in gone and source not in gone}
                module.__dict__[name] = kept
