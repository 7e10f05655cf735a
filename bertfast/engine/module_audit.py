"""What about a model's modules and parameters rules out the fast path."""

from typing import TYPE_CHECKING

from torch import nn

from bertfast.graph.family import Family, family_of
from bertfast.quantization.fp8_layers import Fp8LayerNorm, Fp8Linear
from bertfast.quantization.int8_layers import Int8Embedding, Int8Linear

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ATTENTION_IMPLEMENTATIONS = {
    "eager",
    "sdpa",
    "flash_attention_2",
    "flash_attention_3",
    "flash_attention_4",
    "flex_attention",
    "paged|sdpa",
    None,
}
# Attributes, beside parameters and submodules, that the forwards of known modules read.
READ_ATTRIBUTES = ("eps", "scaling", "attention_head_size", "all_head_size", "is_causal", "layer_idx", "max_norm", "act")
READ_SETTINGS = ("is_decoder",)  # of the config, whose change a module tree does not follow
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def why_unsupported(model: "PreTrainedModel", inner: list[nn.Module]) -> str | None:
    """Why this module tree takes transformers' forward, whatever it is called with; None where the fast path covers it.

    inner: every module of the tree but the model itself.
    """
    if model.config._attn_implementation not in ATTENTION_IMPLEMENTATIONS:
        return (
            f"the config names an attention function of its own, {model.config._attn_implementation!r}; "
            'set attn_implementation to "sdpa" or "eager"'
        )
    family = family_of(model.config)
    for name, m in model.named_modules():
        if m is not model and (reason := why_submodule_unsupported(family, name.rpartition(".")[2], m)) is not None:
            return reason
    for name, m in model.named_modules():
        if hasattr(m, "query") and len(kinds := {type(m.query), type(m.key), type(m.value)}) > 1:
            return f"query, key and value of {name} are of different classes: {', '.join(sorted(kind.__name__ for kind in kinds))}"
    return why_parameters_unsupported(model)


def why_parameters_unsupported(model: nn.Module) -> str | None:
    kinds = set()
    for name, parameter in model.named_parameters():
        if type(parameter) is not nn.Parameter:
            return f"parameter {name} is a {type(parameter).__name__}, not a plain nn.Parameter"
        if parameter.device.type == "meta":
            return f"parameter {name} is on the meta device"
        if not parameter.is_contiguous():
            return f"parameter {name} does not lie row by row (strides {parameter.stride()}); make it contiguous"
        kinds.add((parameter.device, parameter.dtype))
    if len(kinds) > 1:
        return f"parameters differ in dtype or device: {', '.join(sorted(f'{dtype} on {device}' for device, dtype in kinds))}"
    return None


_QUANTIZED: dict[type, tuple[type, ...]] = {
    nn.Linear: (Int8Linear, Fp8Linear),
    nn.Embedding: (Int8Embedding,),
    nn.LayerNorm: (Fp8LayerNorm,),
}
_FORWARDS: dict[type, object] = {kind: vars(kind)["forward"] for kind in _QUANTIZED}  # before anybody patches them
_NEVER_QUANTIZED = ("position_embeddings", "token_type_embeddings")
_KNOWN_MODULES = ("torch.nn.modules.", "transformers.activations", "bertfast.")


def why_submodule_unsupported(family: Family, name: str, m: nn.Module) -> str | None:
    """Why a submodule's own forward has to run; None where the graph computes it. name: in its parent."""
    kind = type(m)
    what = f"the {kind.__name__} called {name}"
    own_module = kind.__module__ != family.modeling.__name__ or kind.forward.__module__ == kind.__module__
    if "forward" in m.__dict__ or not own_module or kind.forward is not _FORWARDS.get(kind, kind.forward):
        return f"the forward of {what} was patched"
    for hooks in HOOKS:
        if any(not is_output_capture(hook) for hook in m.__dict__.get(hooks, {}).values()):
            return f"a hook on {what}; remove it, or register it on the whole model"
    if kind.__module__ != family.modeling.__name__ and not kind.__module__.startswith(_KNOWN_MODULES):
        return f"{what} comes from {kind.__module__}; merge or remove the adapter"
    expected = family.modules.get("<index>" if name.isdecimal() else name, ())
    quantized = () if name in _NEVER_QUANTIZED else tuple(q for each in expected for q in _QUANTIZED.get(each, ()))
    if expected and kind not in (*expected, *quantized):
        return f"{what} was put in the place of a {expected[0].__name__}"
    if kind is nn.LayerNorm and (m.weight is None or m.bias is None):
        return f"{what} has no weight or no bias"
    if kind is nn.Embedding and m.max_norm is not None:
        return f"{what} renormalises its rows (max_norm={m.max_norm})"
    return family.why_changed(name, m)


def is_output_capture(hook: object) -> bool:
    """transformers leaves its hooks that collect hidden states installed; outside its own forward they do nothing."""
    return getattr(hook, "__module__", "") == "transformers.utils.output_capturing"
