"""optimize: every transformers BERT inside a module becomes one of ours, in place; restore undoes it.

It is a change of class: the same objects, the same parameters in the same storage, another forward.
"""

import logging
import weakref
from dataclasses import dataclass, field
from typing import Any, TypeVar

from torch import nn
from transformers.models.bert import modeling_bert as theirs

from bertfast.engine.module_audit import why_unsupported
from bertfast.modeling import FAST_CLASS, REFERENCE_CLASS, convert_class, set_class
from bertfast.ops.derivative import RELOAD_HINT
from bertfast.quantization import schemes as quantizing

logger = logging.getLogger("bertfast")
M = TypeVar("M", bound=Any)


@dataclass(slots=True)
class Report:
    """What optimize did to a module; str() of it is a line for each BERT."""

    replaced: list[str] = field(default_factory=list)  # "name: class"
    left: dict[str, str] = field(default_factory=dict)  # name: why

    def __str__(self) -> str:
        lines = [f"{line} runs on bertfast" for line in self.replaced]
        return "\n".join([*lines, *(f"{name} was left as it is: {why}" for name, why in self.left.items())])


def optimize(module: M, *, keep_padding: bool = False, batch_invariant: bool = False, quantization: str | None = None) -> M:
    """Makes every transformers BERT inside `module` run on bertfast, in place, and returns the very same object.

    module: any nn.Module (a SentenceTransformer, a CrossEncoder, an EncoderDecoderModel, a BERT itself), or an object that holds one
        under `.model` (a transformers pipeline, a CrossEncoder of older releases).
    keep_padding, batch_invariant: see bertfast.modeling.
    quantization: "int8" (float32 on a CPU) or "fp8" (bfloat16 or float16 on a GPU) quantizes every BERT that is replaced: see
        bertfast.quantization. Its float weights are gone then, from whoever else holds the model too. ValueError, before
        anything is changed, for another name or where a BERT cannot be quantized (another dtype, another device).

    Without it, each BERT changes its class: isinstance against transformers' class stays true and becomes true against ours. Parameters are
    shared, nothing is copied. What was replaced, and what was left and why, is logged, and kept for `report(module)`.
    """
    report = Report()
    root = root_of(module)
    if quantization is not None:
        check_quantization(root, quantization)
    covered: set[int] = set()  # inside a BERT already decided on
    for name, m in root.named_modules():
        if id(m) in covered or not isinstance(m, theirs.BertPreTrainedModel):
            continue
        covered.update(map(id, m.modules()))
        name = name or "the model"
        why = why_not_convertible(m)
        if why is not None:
            report.left[name] = why
            continue
        for inner in m.modules():
            convert_class(inner)
            if type(inner) in REFERENCE_CLASS:
                inner.keep_padding, inner.batch_invariant = keep_padding, batch_invariant
        if quantization is not None:
            quantizing.quantize(m, quantization)
        report.replaced.append(f"{name}: {type(m).__name__}{'' if quantization is None else f' in {quantization}'}")
    if quantization is not None:
        quantizing.forget_ties(root)
    if not report.replaced and not report.left:
        report.left["the model"] = f"no transformers BERT found in this {type(module).__name__}"
    for name, why in report.left.items():
        logger.warning("optimize: %s was left as it is: %s", name, why)
    for line in report.replaced:
        logger.info("optimize: %s runs on bertfast", line)
    _reports[root] = report
    return module


_reports: "weakref.WeakKeyDictionary[nn.Module, Report]" = weakref.WeakKeyDictionary()


def check_quantization(root: nn.Module, scheme: str) -> None:
    """ValueError where a BERT that optimize would replace cannot be quantized."""
    quantizing.check_scheme(scheme)
    for name, m in root.named_modules():
        if isinstance(m, theirs.BertPreTrainedModel) and why_not_convertible(m) is None:
            why = quantizing.why_not_quantizable(m, scheme)
            if why is not None:
                raise ValueError(f"quantization={scheme!r}: {name or 'the model'} cannot be quantized: {why}")


def restore(module: M) -> M:
    """Undoes optimize, in place: every one of our BERTs inside becomes transformers' class again; nothing was copied, so nothing is
    lost. Returns the same object. ValueError for a quantized model, whose float weights are gone."""
    scheme = quantizing.scheme_of(root_of(module))
    if scheme is not None:
        raise ValueError(f"restore: this model is in {scheme} and its float weights are gone; {RELOAD_HINT}")
    for m in root_of(module).modules():
        original = REFERENCE_CLASS.get(type(m))
        if original is not None:
            for name in ("keep_padding", "batch_invariant"):
                m.__dict__.pop(name, None)
            set_class(m, original)
    return module


def report(module: Any) -> Report:
    """What the last optimize of this module replaced and left. ValueError where there was none."""
    found = _reports.get(root_of(module))
    if found is None:
        raise ValueError(f"report: this {type(module).__name__} was never passed to optimize")
    return found


def root_of(module: Any) -> nn.Module:
    for candidate in (module, getattr(module, "model", None)):
        if isinstance(candidate, nn.Module):
            return candidate
    raise ValueError(f"module: got {type(module).__name__}, expected an nn.Module, or an object that holds one under .model")


def why_not_convertible(m: Any) -> str | None:
    """Why a BERT should keep its own class; None where ours can take its place."""
    if type(m) in REFERENCE_CLASS:
        return None
    if type(m) not in FAST_CLASS:
        return f"{type(m).__name__} is a subclass with a forward or parts of its own"
    if hasattr(m, "_hf_hook") or any(hasattr(inner, "_hf_hook") for inner in m.modules()):
        return "accelerate's hooks move its weights; a forward that reads them directly would miss that"
    if getattr(m, "is_quantized", False):
        return "its weights are quantized by another library"
    kind = getattr(m.config, "position_embedding_type", None)
    if kind not in (None, "absolute"):
        return f"position_embedding_type={kind!r}: only absolute positions are built"
    return why_unsupported(m, [inner for inner in m.modules() if inner is not m])


def register() -> None:
    """From now on transformers' Auto classes (AutoModel, AutoModelForTokenClassification, ...) build bertfast's BERTs.

    Only ever by this call: importing bertfast changes nothing about transformers.
    """
    import transformers
    from transformers import BertConfig

    classes: list[Any] = [c for c in vars(transformers.models.auto.modeling_auto).values() if isinstance(c, type)]
    for original, ours in FAST_CLASS.items():
        for auto in classes:
            mapping = getattr(auto, "_model_mapping", None)
            if mapping is not None and BertConfig in mapping and mapping[BertConfig] is original:
                auto.register(BertConfig, ours, exist_ok=True)
                if mapping[BertConfig] is not ours:  # transformers 5.17 passes over configs of its own without a word
                    mapping._extra_content[BertConfig] = ours
