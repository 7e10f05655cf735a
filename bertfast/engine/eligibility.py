"""Which road a call takes: our kernels, or transformers' own forward.

The fast road covers inference on the modules as transformers builds them. Whatever a caller has put inside the model to be run
(hooks, adapters, parametrizations, patched forwards), and whatever runs the model as a program of its own (autocast, compilers,
tracers, torch.func), gets transformers' forward instead, and the reason is said once. Nothing is ever decided by catching an error.
"""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.modules.module as torch_module
from torch import Tensor, nn
from torch.autograd import forward_ad

from bertfast.engine.guard import guard_of

logger = logging.getLogger("bertfast")

_local = threading.local()
_said: set[tuple[str, str]] = set()


# Keyword arguments the graph reads. Others reach transformers' attention functions, which alone know what they mean.
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


def warn_once(kind: str, message: str) -> None:
    if (kind, message) not in _said:
        _said.add((kind, message))
        logger.warning("%s: %s", kind, message)


INSIDE_REFERENCE = "part of a forward that left the fast road"  # which said why itself


@contextmanager
def force_reference() -> Iterator[None]:
    """Within: every call of this thread takes transformers' forward."""
    before = getattr(_local, "reference_only", False)
    _local.reference_only = True
    try:
        yield
    finally:
        _local.reference_only = before


def why_reference(model: nn.Module, arguments: Any) -> str | None:
    """Why this call takes transformers' forward; None where the fast road covers it."""
    if getattr(_local, "reference_only", False):
        return INSIDE_REFERENCE
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
    if not FORWARD_ARGUMENTS.issuperset(arguments):
        return f"an argument that transformers' attention functions read: {', '.join(sorted(set(arguments) - FORWARD_ARGUMENTS))}"
    for name, value in arguments.items():
        if isinstance(value, Tensor) and type(value) is not Tensor and type(value) is not nn.Parameter:
            return f"{name} is a {type(value).__name__}"
    return guard_of(model).reason()
