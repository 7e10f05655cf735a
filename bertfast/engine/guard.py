"""What the fast path takes for granted about a model."""

import threading
import weakref
from typing import Any

from torch import Tensor, nn

from bertfast.engine.module_audit import _HOOKS, why_unsupported
from bertfast.quantization.layer import QuantizedLayer
from bertfast.runtime.config_access import setting
from bertfast.runtime.native import _C


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
        self._reason = why_unsupported(model, inner)
        self.plans: Any = None  # made by bertfast.engine.cpu_plans, on first use; what they read is watched here
        self.cuda_graphs: Any = None  # the same of bertfast.engine.cuda_graphs
        self._parameters = [(m._parameters, name) for m in everything for name, p in m._parameters.items() if p is not None]
        self._quantized = [(m._buffers, name) for m in everything if isinstance(m, QuantizedLayer) for name in m._buffers]
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
