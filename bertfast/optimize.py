"""optimize: every transformers BERT inside a module becomes bertfast's, in place; restore undoes it.

Only the class changes: same objects, same parameters in the same storage, another forward.
"""

import logging
import weakref
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from torch import nn

from bertfast.engine.model_state import drop_state
from bertfast.engine.module_audit import why_unsupported
from bertfast.graph.family import FAMILIES
from bertfast.modeling import FAST_CLASS, REFERENCE_CLASS, convert_class, set_class
from bertfast.ops.derivative import RELOAD_HINT
from bertfast.quantization import schemes as quantizing

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.models.auto.auto_factory import _BaseAutoModelClass

logger = logging.getLogger("bertfast")
M = TypeVar("M")

# What transformers' pipelines read at padding. Token classification skips special tokens, which padding counts as; fill-mask reads the
# masked positions; feature extraction returns every position.
PADDING_OF_TASK = {"feature-extraction": True, "token-classification": False, "ner": False, "question-answering": False, "fill-mask": False}


@dataclass(slots=True)
class Report:
    """What optimize did to a module; str() gives one line for each BERT."""

    replaced: list[str] = field(default_factory=list)  # "name: class"
    left: dict[str, str] = field(default_factory=dict)  # name -> reason

    def __str__(self) -> str:
        lines = [f"{line} runs on bertfast" for line in self.replaced]
        return "\n".join([*lines, *(f"{name} was left as it is: {why}" for name, why in self.left.items())])


def optimize(module: M, *, keep_padding: bool | None = None, batch_invariant: bool = False, quantization: str | None = None) -> M:
    """Makes every transformers BERT inside `module` run on bertfast, in place, and returns the same object.

    module: any nn.Module (a SentenceTransformer, a CrossEncoder, an EncoderDecoderModel, a BERT itself), or an object that holds one
        under `.model` (a transformers pipeline, a CrossEncoder of older releases).
    keep_padding: True computes padded positions as transformers does, None all but an encoder's hidden states, False only where the call
        itself reads them: see bertfast.BertModel. None on a pipeline takes what its task reads: hidden states for feature-extraction, no
        padded position for token-classification, question-answering and fill-mask.
    batch_invariant: on CUDA, a sequence gets the same bits alone and in any batch, at a cost in speed.
    quantization: "int8" (float32 on a CPU) or "fp8" (bfloat16 or float16 on a GPU) quantizes every BERT that is replaced, which drops its
        float weights for every holder of the model: see bertfast.quantization.

    isinstance against transformers' class stays true and becomes true against bertfast's. Without quantization, parameters are shared and
    nothing is copied. What was replaced, and what was left and why, is logged and kept for `report(module)`.

    Raises ValueError, before anything is changed, for an object that holds no nn.Module, for an unknown quantization, and, with
    one, where a BERT cannot be quantized (another dtype or device, an adapter inside, a subclass) or there is none.
    """
    report = Report()
    root = root_of(module)
    if keep_padding is None:
        keep_padding = PADDING_OF_TASK.get(str(getattr(module, "task", None)))
    models = models_inside(root)
    if quantization is not None:
        check_quantization(module, models, quantization)
    for name, m, why in models:
        if why is not None:
            report.left[name] = why
            continue
        for inner in m.modules():
            convert_class(inner)
            if type(inner) in REFERENCE_CLASS:
                inner.keep_padding, inner.batch_invariant = keep_padding, batch_invariant  # type: ignore[assignment]  # plain attributes
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


def models_inside(root: nn.Module) -> list[tuple[str, nn.Module, str | None]]:
    """The outermost models of known families: name, model, and why it keeps its class or None."""
    found: list[tuple[str, nn.Module, str | None]] = []
    covered: set[int] = set()  # modules inside a model already found
    for name, m in root.named_modules():
        if id(m) not in covered and is_of_a_family(m):
            covered.update(map(id, m.modules()))
            found.append((name or "the model", m, why_not_convertible(m)))
    return found


def check_quantization(module: object, models: list[tuple[str, nn.Module, str | None]], scheme: str) -> None:
    """ValueError for an unknown scheme, where there is nothing to quantize, and for a model that would stay in floating point."""
    quantizing.check_scheme(scheme)
    if not models:
        raise ValueError(f"quantization={scheme!r}: no transformers BERT found in this {type(module).__name__}")
    for name, m, why in models:
        why = quantizing.why_not_quantizable(m, scheme) if why is None else why
        if why is not None:
            raise ValueError(f"quantization={scheme!r}: {name} cannot be quantized: {why}")


def restore(module: M) -> M:
    """Undoes optimize, in place: every bertfast BERT inside `module` becomes transformers' class again. Returns the same object.

    module: as for optimize. Nothing was copied, so nothing is lost; keep_padding and batch_invariant are dropped. Raises ValueError for a
    quantized model, whose float weights are gone.
    """
    scheme = quantizing.scheme_of(root_of(module))
    if scheme is not None:
        raise ValueError(f"restore: this model is in {scheme} and its float weights are gone; {RELOAD_HINT}")
    for m in root_of(module).modules():
        original = REFERENCE_CLASS.get(type(m))
        if original is not None:
            for name in ("keep_padding", "batch_invariant"):
                m.__dict__.pop(name, None)
            drop_state(m)
            set_class(m, original)
    return module


def report(module: object) -> Report:
    """What the last optimize of this module replaced and left. Raises ValueError for a module that was never passed to optimize."""
    found = _reports.get(root_of(module))
    if found is None:
        raise ValueError(f"report: this {type(module).__name__} was never passed to optimize")
    return found


def root_of(module: object) -> nn.Module:
    for candidate in (module, getattr(module, "model", None)):
        if isinstance(candidate, nn.Module):
            return candidate
    raise ValueError(f"module: got {type(module).__name__}, expected an nn.Module, or an object that holds one under .model")


def is_of_a_family(module: nn.Module) -> bool:
    """Whether a module is a transformers model of a family that bertfast has, with or without a head."""
    return isinstance(module, tuple(family.pretrained for family in FAMILIES.values()))


def why_not_convertible(m: "PreTrainedModel") -> str | None:
    """Why a BERT keeps its class; None where ours can take its place."""
    if type(m) in REFERENCE_CLASS:
        return None
    if type(m) not in FAST_CLASS:
        return f"{type(m).__name__} is a subclass, whose forward or parts may differ"
    if hasattr(m, "_hf_hook") or any(hasattr(inner, "_hf_hook") for inner in m.modules()):
        return "accelerate's hooks move its weights, which the kernels would not see; load it on one device, without device_map"
    if getattr(m, "is_quantized", False):
        return "its weights are quantized by another library"
    kind = getattr(m.config, "position_embedding_type", None)
    if kind not in (None, "absolute"):
        return f"position_embedding_type={kind!r}: only absolute positions are built"
    return why_unsupported(m, [inner for inner in m.modules() if inner is not m])


def register() -> None:
    """Makes transformers' Auto classes (AutoModel, AutoModelForTokenClassification, ...) build bertfast's BERTs, in this process.

    Importing bertfast alone changes nothing about transformers. Calling it twice does no harm; there is no way back in the same process.
    """
    import transformers

    classes: list[type[_BaseAutoModelClass]] = [c for c in vars(transformers.models.auto.modeling_auto).values() if isinstance(c, type)]
    for original, ours in FAST_CLASS.items():
        config = ours.family.config
        for auto in classes:
            mapping = getattr(auto, "_model_mapping", None)
            if mapping is not None and config in mapping and mapping[config] is original:
                auto.register(config, ours, exist_ok=True)
                if mapping[config] is not ours:  # transformers 5.17 silently ignores register() for its own configs
                    mapping._extra_content[config] = ours
