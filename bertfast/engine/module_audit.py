"""What about the modules keeps a model off the fast path."""

from typing import Any

from torch import nn

from bertfast.graph.family import Family, family_of
from bertfast.quantization.fp8_layers import Fp8LayerNorm, Fp8Linear
from bertfast.quantization.int8_layers import Int8Embedding, Int8Linear

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


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def why_unsupported(model: Any, inner: list[nn.Module]) -> str | None:
    """What about the modules themselves keeps a model off the fast road."""
    if model.config._attn_implementation not in ATTENTION_IMPLEMENTATIONS:
        return f"the config names an attention function of its own: {model.config._attn_implementation}"
    family = family_of(model.config)
    for name, m in model.named_modules():
        if m is not model and (kind := why_submodule_unsupported(family, name.rpartition(".")[2], m)) is not None:
            return kind
    kinds = set()
    for name, parameter in model.named_parameters():
        if type(parameter) is not nn.Parameter:
            return f"parameter {name} is a {type(parameter).__name__}"
        if parameter.device.type == "meta":
            return f"parameter {name} is on the meta device"
        if not parameter.is_contiguous():
            return f"parameter {name} does not lie row by row: its strides are {parameter.stride()}"
        kinds.add((parameter.device, parameter.dtype))
    for name, m in model.named_modules():
        if hasattr(m, "query") and len({type(m.query), type(m.key), type(m.value)}) > 1:
            return f"query, key and value of {name} are layers of several kinds"
    if len(kinds) > 1:
        return f"parameters of several kinds: {', '.join(sorted(f'{dtype} on {device}' for device, dtype in kinds))}"
    return None


_QUANTIZED: dict[type, tuple[type, ...]] = {
    nn.Linear: (Int8Linear, Fp8Linear),
    nn.Embedding: (Int8Embedding,),
    nn.LayerNorm: (Fp8LayerNorm,),
}


_NEVER_QUANTIZED = ("position_embeddings", "token_type_embeddings")


_KNOWN_MODULES = ("torch.nn.modules.", "transformers.activations", "bertfast.")


def why_submodule_unsupported(family: Family, name: str, m: Any) -> str | None:
    """Why the own forward of a submodule, called `name` in its parent, has to run."""
    kind = type(m)
    what = f"the {kind.__name__} called {name}"
    if "forward" in m.__dict__ or (kind.forward.__module__ != kind.__module__ and kind.__module__ == family.modeling.__name__):
        return f"the forward of {what} was patched"
    for hooks in _HOOKS:
        if any(not is_capture(hook) for hook in m.__dict__.get(hooks, {}).values()):
            return f"a hook on {what}"
    if kind.__module__ != family.modeling.__name__ and not kind.__module__.startswith(_KNOWN_MODULES):
        return f"{what} is of {kind.__module__}"
    expected = family.modules.get("<index>" if name.isdecimal() else name, ())
    quantized = () if name in _NEVER_QUANTIZED else tuple(q for each in expected for q in _QUANTIZED.get(each, ()))
    if expected and kind not in (*expected, *quantized):
        return f"{what} is no {expected[0].__name__}"
    if kind is nn.LayerNorm and (m.weight is None or m.bias is None):
        return f"{what} has no weight or no bias"
    if kind is nn.Embedding and m.max_norm is not None:
        return f"{what} renormalises its rows"
    return None


def is_capture(hook: Any) -> bool:
    """transformers leaves the hooks that collect hidden states in place; outside its own forward they do nothing."""
    return getattr(hook, "__module__", "") == "transformers.utils.output_capturing"
