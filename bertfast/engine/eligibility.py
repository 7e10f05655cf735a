"""Which road a call takes: our kernels, or transformers' own forward.

The fast road covers inference on the modules as transformers builds them. Whatever a caller has put inside the model to be run
(hooks, adapters, parametrizations, patched forwards), and whatever runs the model as a program of its own (autocast, compilers,
tracers, torch.func), gets transformers' forward instead, and the reason is said once. Nothing is ever decided by catching an error.
"""

import logging
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.modules.module as torch_module
from torch import Tensor, nn
from torch.autograd import forward_ad
from transformers.models.bert import modeling_bert as bert

from bertfast.quantization.fp8_layers import Fp8LayerNorm, Fp8Linear
from bertfast.quantization.int8_layers import Int8Embedding, Int8Linear, Quantized
from bertfast.runtime.config_access import setting
from bertfast.runtime.native import _C

logger = logging.getLogger("bertfast")

_local = threading.local()
_said: set[tuple[str, str]] = set()

ATTENTIONS = {"eager", "sdpa", "flash_attention_2", "flash_attention_3", "flash_attention_4", "flex_attention", "paged|sdpa", None}

# Keyword arguments the graph reads. Others reach transformers' attention functions, which alone know what they mean.
READ = frozenset(
    (
        *("input_ids", "attention_mask", "token_type_ids", "position_ids", "inputs_embeds", "head_mask"),
        *("encoder_hidden_states", "encoder_attention_mask", "cache", "past_key_values", "use_cache"),
        *("labels", "next_sentence_label", "start_positions", "end_positions", "num_items_in_batch", "shift_labels"),
        *("logits_to_keep", "output_attentions", "output_hidden_states", "return_dict"),
    )
)

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_GLOBAL_HOOKS = [
    getattr(torch_module, name)
    for name in ("_global_forward_hooks", "_global_forward_pre_hooks", "_global_backward_hooks", "_global_backward_pre_hooks")
]


def say_once(kind: str, message: str) -> None:
    if (kind, message) not in _said:
        _said.add((kind, message))
        logger.warning("%s: %s", kind, message)


INSIDE = "part of a forward that left the fast road"  # which said why itself


@contextmanager
def reference_only() -> Iterator[None]:
    """Within: every call of this thread takes transformers' forward."""
    before = getattr(_local, "reference_only", False)
    _local.reference_only = True
    try:
        yield
    finally:
        _local.reference_only = before


def reason_to_leave(model: nn.Module, arguments: Any) -> str | None:
    """Why this call takes transformers' forward; None where the fast road covers it."""
    if getattr(_local, "reference_only", False):
        return INSIDE
    if torch.compiler.is_compiling() or torch._C._is_tracing():
        return "a compiler or tracer reads the forward (torch.compile, torch.export, torch.jit)"
    if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
        return "autocast is on"
    if torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0:
        return "a torch.func transform or forward-mode differentiation is active"
    if torch._C._len_torch_dispatch_stack():
        return "a torch dispatch mode is active"
    if any(_GLOBAL_HOOKS):
        return "a global module hook is registered"
    if not READ.issuperset(arguments):
        return f"an argument that transformers' attention functions read: {', '.join(sorted(set(arguments) - READ))}"
    for name, value in arguments.items():
        if isinstance(value, Tensor) and type(value) is not Tensor and type(value) is not nn.Parameter:
            return f"{name} is a {type(value).__name__}"
    return guard_of(model).reason()


class Guard:
    """What the fast road takes for granted about a module tree, and whether it still holds.

    Walking a tree of 200 modules takes longer than a small forward. So the walk is done once, and what it saw is remembered in a
    form that C++ compares: children, classes, hooks, patched forwards, dropout modes, where the parameters lie.
    """

    def __init__(self, model: Any) -> None:
        self._model = weakref.ref(model)
        self._lock = threading.Lock()
        self._refresh(model)

    def _refresh(self, model: Any) -> None:
        inner = [m for m in model.modules() if m is not model]
        everything = [model, *inner]
        self._implementation = setting(model.config, "_attn_implementation")
        self._reason = lasting_reason(model, inner)
        self.plans: Any = None  # made by bertfast.engine.cpu_plans, on first use; what they read is watched here
        self.cuda_graphs: Any = None  # the same of bertfast.engine.cuda_graphs
        self._parameters = [(m._parameters, name) for m in everything for name, p in m._parameters.items() if p is not None]
        self._quantized = [(m._buffers, name) for m in everything if isinstance(m, Quantized) for name in m._buffers]
        self._differentiable = list(dict.fromkeys(d[name] for d, name in self._parameters))
        self._watch = _C.Watch(
            members=[
                *((d, name, value) for m in everything for d in (m._modules, m._parameters) for name, value in d.items()),
                *((d, name, d[name]) for d, name in self._quantized),
                *((m.__dict__, "forward", m.__dict__["forward"]) for m in inner if "forward" in m.__dict__),
                *((m.__dict__, "max_norm", m.max_norm) for m in inner if isinstance(m, nn.Embedding)),
            ],
            absent=[(m.__dict__, "forward") for m in inner if "forward" not in m.__dict__],
            sizes=[
                *((d, len(d)) for m in everything for d in (m._modules, m._parameters)),
                *((m.__dict__[name], len(m.__dict__[name])) for m in inner for name in _HOOKS),
            ],
            classes=[(m, type(m)) for m in inner],
            attributes=[(kind, "forward", kind.forward) for kind in {type(m) for m in inner}],
            falsy=[(m.__dict__, "training") for m in everything if m is model or isinstance(m, nn.Dropout)],
        )
        watched = [*self._parameters, *self._quantized] if self._reason is None else []
        self._pointers = _C.Pointers(watched, getattr(Tensor, "__dlpack_c_exchange_api__", None))  # not in every torch

    def reason(self) -> str | None:
        model = self._model()
        if model is None:
            raise RuntimeError("the model of this guard is gone")
        if not self._holds(model):
            with self._lock:
                if not self._holds(model):
                    self._refresh(model)
        if self._reason is None and not self._watch.quiet():
            return "training mode: dropout is part of the forward"
        return self._reason

    def _holds(self, model: Any) -> bool:
        return self._watch.holds() and self._pointers.hold() and setting(model.config, "_attn_implementation") == self._implementation

    def addresses(self) -> frozenset[int]:
        """Where the parameters lie, and the integers and scales of quantized layers."""
        return frozenset(self._pointers.addresses())

    # Both of the following go by the parameters that were there when the guard last looked, which reason() makes sure of.

    def differentiable_inputs(self, arguments: Any) -> list[Tensor]:
        """Every tensor a gradient may be asked for: parameters, each once, and embeddings or states the caller passes."""
        given = (arguments.get(name) for name in ("inputs_embeds", "encoder_hidden_states"))
        return [*self._differentiable, *(t for t in given if t is not None)]

    def wants_gradient(self, arguments: Any) -> bool:
        given = (arguments.get(name) for name in ("inputs_embeds", "encoder_hidden_states", "head_mask"))
        return any(p.requires_grad for p in self._differentiable) or any(t is not None and t.requires_grad for t in given)


_guards: "weakref.WeakKeyDictionary[nn.Module, Guard]" = weakref.WeakKeyDictionary()


def guard_of(model: nn.Module) -> Guard:
    guard = _guards.get(model)
    if guard is None:
        guard = _guards[model] = Guard(model)
    return guard


def lasting_reason(model: Any, inner: list[nn.Module]) -> str | None:
    """What about the modules themselves keeps a model off the fast road."""
    if model.config._attn_implementation not in ATTENTIONS:
        return f"the config names an attention function of its own: {model.config._attn_implementation}"
    for name, m in model.named_modules():
        if m is not model and (kind := foreign(name.rpartition(".")[2], m)) is not None:
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
        if isinstance(m, bert.BertSelfAttention) and len({type(m.query), type(m.key), type(m.value)}) > 1:
            return f"query, key and value of {name} are layers of several kinds"
    if len(kinds) > 1:
        return f"parameters of several kinds: {', '.join(sorted(f'{dtype} on {device}' for device, dtype in kinds))}"
    return None


# What the graph reads the parameters of, by the name it has in its parent: exactly that class (or its quantized form), or its own
# forward has to run.
_EXPECTED: dict[str, type] = {
    **dict.fromkeys(("query", "key", "value", "dense", "decoder", "classifier", "qa_outputs", "seq_relationship"), nn.Linear),
    **dict.fromkeys(("word_embeddings", "position_embeddings", "token_type_embeddings"), nn.Embedding),
    "LayerNorm": nn.LayerNorm,
    "layer": nn.ModuleList,
    "embeddings": bert.BertEmbeddings,
    "encoder": bert.BertEncoder,
    "pooler": bert.BertPooler,
    "self": bert.BertSelfAttention,
    "intermediate": bert.BertIntermediate,
    "crossattention": bert.BertAttention,
    "attention": bert.BertAttention,
    "transform": bert.BertPredictionHeadTransform,
    "predictions": bert.BertLMPredictionHead,
}
_QUANTIZED: dict[type, tuple[type, ...]] = {
    nn.Linear: (Int8Linear, Fp8Linear),
    nn.Embedding: (Int8Embedding,),
    nn.LayerNorm: (Fp8LayerNorm,),
}
_NEVER_QUANTIZED = ("position_embeddings", "token_type_embeddings")
_AT_HOME = ("torch.nn.modules.", "transformers.models.bert.", "transformers.activations", "bertfast.")


def foreign(name: str, m: Any) -> str | None:
    """Why the own forward of a submodule, called `name` in its parent, has to run."""
    kind = type(m)
    what = f"the {kind.__name__} called {name}"
    if "forward" in m.__dict__ or (kind.forward.__module__ != kind.__module__ and kind.__module__ == bert.__name__):
        return f"the forward of {what} was patched"
    for hooks in _HOOKS:
        if any(not is_capture(hook) for hook in m.__dict__.get(hooks, {}).values()):
            return f"a hook on {what}"
    if not kind.__module__.startswith(_AT_HOME):
        return f"{what} is of {kind.__module__}"
    expected = _EXPECTED.get(name, bert.BertLayer if name.isdecimal() else None)
    quantized = kind in _QUANTIZED.get(expected, ()) and name not in _NEVER_QUANTIZED if expected is not None else False
    if expected is not None and kind is not expected and not quantized and not (name == "self" and kind is bert.BertCrossAttention):
        return f"{what} is no {expected.__name__}"
    if kind is nn.LayerNorm and (m.weight is None or m.bias is None):
        return f"{what} has no weight or no bias"
    if kind is nn.Embedding and m.max_norm is not None:
        return f"{what} renormalises its rows"
    return None


def is_capture(hook: Any) -> bool:
    """transformers leaves the hooks that collect hidden states in place; outside its own forward they do nothing."""
    return getattr(hook, "__module__", "") == "transformers.utils.output_capturing"
