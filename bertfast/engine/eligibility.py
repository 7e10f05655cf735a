"""Fast path or reference path: which forward a call takes, and why.

The fast path covers inference on the modules as transformers builds them. transformers' forward runs where the model has hooks, adapters,
parametrizations or patched forwards inside, and under autocast, compilers, tracers and torch.func; the reason is logged once. Nothing is
decided by catching an error.
"""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
import torch.nn.modules.module as torch_module
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils._device import DeviceContext

from bertfast.batch.inputs import Arguments
from bertfast.cache import objects as kv_cache
from bertfast.engine.guard import Guard
from bertfast.engine.model_state import current_state
from bertfast.engine.outputs import FIELDS
from bertfast.graph.heads import Head
from bertfast.runtime.config_access import setting
from bertfast.runtime.model_types import Model

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

logger = logging.getLogger("bertfast")

_local = threading.local()
_said: set[tuple[str, str]] = set()

# Keyword arguments the graph reads. transformers passes any other on to its attention functions.
FORWARD_ARGUMENTS = frozenset(
    (
        *("input_ids", "attention_mask", "token_type_ids", "position_ids", "inputs_embeds", "head_mask"),
        *("encoder_hidden_states", "encoder_attention_mask", "cache", "past_key_values", "use_cache"),
        *("labels", "next_sentence_label", "start_positions", "end_positions", "num_items_in_batch", "shift_labels"),
        *("logits_to_keep", "output_attentions", "output_hidden_states", "return_dict"),
    )
)

_GLOBAL_HOOKS = [
    getattr(torch_module, name)
    for name in ("_global_forward_hooks", "_global_forward_pre_hooks", "_global_backward_hooks", "_global_backward_pre_hooks")
]

INSIDE_REFERENCE = "part of a forward on the reference path"  # which logged its own reason


def warn_once(kind: str, message: str) -> None:
    if (kind, message) not in _said:
        _said.add((kind, message))
        logger.warning("%s: %s", kind, message)


@contextmanager
def force_reference() -> Iterator[None]:
    """Within: every call of this thread takes transformers' forward."""
    before = getattr(_local, "reference_only", False)
    _local.reference_only = True
    try:
        yield
    finally:
        _local.reference_only = before


def why_reference(model: nn.Module, arguments: Arguments) -> str | None:
    """Why this call takes transformers' forward; None where the fast path covers it."""
    reason = why_call_reference(arguments)
    return current_state(model).guard.why_reference(model) if reason is None else reason


def why_call_reference(arguments: Arguments) -> str | None:
    """The part of why_reference that does not depend on the model."""
    if getattr(_local, "reference_only", False):
        return INSIDE_REFERENCE
    if torch.compiler.is_compiling() or torch._C._is_tracing():
        return "a compiler or tracer reads the forward (torch.compile, torch.export, torch.jit)"
    if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
        return "autocast is on; convert the model instead, for example model.to(torch.bfloat16)"
    if torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0:
        return "a torch.func transform or forward-mode differentiation is active"
    if torch._C._len_torch_dispatch_stack():
        return "a torch dispatch mode is active"
    if (modes := torch._C._len_torch_function_stack()) and not only_default_device(modes):
        return "a torch function mode is active"
    if any(_GLOBAL_HOOKS):
        return "a global module hook is registered; remove it"
    if not FORWARD_ARGUMENTS.issuperset(arguments):
        return f"arguments that only transformers' attention functions read: {', '.join(sorted(set(arguments) - FORWARD_ARGUMENTS))}"
    for name, value in arguments.items():
        if isinstance(value, Tensor) and type(value) is not Tensor and type(value) is not nn.Parameter:
            return f"{name} is a {type(value).__name__}, a subclass of torch.Tensor"
    return None


def only_default_device(modes: int) -> bool:
    """Whether the torch function modes are those of `with torch.device(...)` and set_default_device, which change no op of a forward."""
    return all(type(torch._C._get_function_stack_at(i)) is DeviceContext for i in range(modes))


def wants_cache(config: "PreTrainedConfig", head: Head, arguments: Arguments) -> bool:
    """Whether the call reads or writes a KV cache."""
    if kv_cache.given_cache(arguments) is not None:
        return True
    if not setting(config, "is_decoder") or kv_cache.CACHE_FIELD not in FIELDS[head.output]:
        return False
    if head.shifted and arguments.get("labels") is not None:
        return False
    use_cache = arguments.get("use_cache")
    return bool(setting(config, "use_cache") if use_cache is None else use_cache)


def why_reference_with_cache(model: Model, guard: Guard, arguments: Arguments) -> str | None:
    """Why a call with a KV cache takes transformers' forward; None where the fast path covers it.

    Under grad mode the fast path stays: its keys and values carry no gradient, and a backward that needs one raises. Hidden states and
    attentions show their gradient to the caller, so those calls take transformers' forward.
    """
    inspected = any(arguments.get(name, setting(model.config, name, False)) for name in ("output_hidden_states", "output_attentions"))
    if inspected and torch.is_grad_enabled() and guard.wants_gradient(arguments):
        return "hidden states or attentions with a KV cache under grad mode; use torch.no_grad() or use_cache=False"
    given = kv_cache.given_cache(arguments)
    return None if given is None else kv_cache.why_unsupported(kv_cache.from_legacy(given), model.config)
