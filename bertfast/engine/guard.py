"""What the fast path assumes about a module tree, and whether it still holds."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn

from bertfast.batch.inputs import Arguments
from bertfast.engine.module_audit import HOOKS, READ_ATTRIBUTES, READ_SETTINGS, why_unsupported
from bertfast.quantization.layer import QuantizedLayer
from bertfast.runtime.config_access import setting
from bertfast.runtime.native import _C

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TRAINING = "training mode is on (dropout is part of the forward); call model.eval()"


def owned_and_watched(parameters: Sequence[tuple[Mapping[str, object], str]]) -> tuple[list[Tensor], _C.Pointers]:
    """The memory of these parameters, owned, and what tells whether they still lie there.

    Plans hold addresses, and another thread may replace a weight while a call computes without the GIL, or between the two lines below:
    then both are made again.
    """
    while True:
        owned = [t.detach() for d, name in parameters if isinstance(t := d[name], Tensor)]
        pointers = _C.Pointers(list(parameters), getattr(Tensor, "__dlpack_c_exchange_api__", None))  # not in every torch
        if [t.data_ptr() for t in owned] == pointers.addresses():
            return owned, pointers


class Guard:
    """A module tree as it was walked: children, classes, hooks, patched forwards, dropout modes, addresses of parameters.

    Walking 200 modules takes longer than a small forward, so C++ compares pointers instead. It owns the submodules, but neither the model
    nor its __dict__, in which it lies: such a cycle would keep the weights until the garbage collector runs.
    """

    def __init__(self, model: "PreTrainedModel") -> None:
        inner = [m for m in model.modules() if m is not model]
        everything = [model, *inner]
        self._implementation = setting(model.config, "_attn_implementation")
        self._reason = why_unsupported(model, inner)
        parameters = [(m._parameters, name) for m in everything for name, p in m._parameters.items() if p is not None]
        quantized = [(m._buffers, name) for m in everything if isinstance(m, QuantizedLayer) for name in m._buffers]
        self._differentiable = list(dict.fromkeys(p for m in everything for p in m._parameters.values() if p is not None))
        config = object.__getattribute__(model.config, "__dict__")
        self._watch = _C.Watch(
            members=[
                *((config, name, config[name]) for name in READ_SETTINGS if name in config),
                *((d, name, value) for m in everything for d in (m._modules, m._parameters) for name, value in d.items()),
                *((d, name, d[name]) for d, name in quantized),
                *((m.__dict__, "forward", m.__dict__["forward"]) for m in inner if "forward" in m.__dict__),
                *((m.__dict__, name, m.__dict__[name]) for m in inner for name in READ_ATTRIBUTES if name in m.__dict__),
                *((m._buffers, name, buffer) for m in inner if not isinstance(m, QuantizedLayer) for name, buffer in m._buffers.items()),
            ],
            absent=[
                *((m.__dict__, "forward") for m in inner if "forward" not in m.__dict__),
                *((config, name) for name in READ_SETTINGS if name not in config),
            ],
            sizes=[
                *((d, len(d)) for m in everything for d in (m._modules, m._parameters)),
                *((m.__dict__[name], len(m.__dict__[name])) for m in inner for name in HOOKS),
            ],
            classes=[(m, type(m)) for m in inner],
            attributes=[(kind, "forward", kind.forward) for kind in {type(m) for m in inner}],
            falsy=[(m.__dict__, "training") for m in inner if isinstance(m, nn.Dropout)],
        )
        buffers = [b for m in inner if not isinstance(m, QuantizedLayer) for b in m._buffers.values() if b is not None]
        self._buffer_versions = [(b, b._version) for b in buffers if not b.is_inference()]
        watched: list[tuple[Mapping[str, object], str]] = [*parameters, *quantized] if self._reason is None else []
        self._storages, self._pointers = owned_and_watched(watched)

    def holds(self, model: "PreTrainedModel") -> bool:
        """Whether the tree is as it was, hooks and weight addresses included. Modes are not part of this: see why_reference."""
        for buffer, version in self._buffer_versions:
            if buffer._version != version:
                return False
        return self._watch.holds() and self._pointers.hold() and setting(model.config, "_attn_implementation") == self._implementation

    def why_reference(self, model: "PreTrainedModel") -> str | None:
        """Why this model takes transformers' forward; None where the fast path covers it."""
        if self._reason is None and (model.training or not self._watch.quiet()):
            return TRAINING
        return self._reason

    def addresses(self) -> frozenset[int]:
        """Of the parameters, and of the integers and scales of quantized layers."""
        return frozenset(self._pointers.addresses())

    def differentiable_inputs(self, arguments: Arguments) -> list[Tensor]:
        """Every tensor that a gradient may be asked for: parameters, each once, and embeddings or states that the caller passes."""
        given = (arguments.get(name) for name in ("inputs_embeds", "encoder_hidden_states"))
        return [*self._differentiable, *(t for t in given if isinstance(t, Tensor))]

    def wants_gradient(self, arguments: Arguments) -> bool:
        given = (arguments.get(name) for name in ("inputs_embeds", "encoder_hidden_states", "head_mask"))
        return any(p.requires_grad for p in self._differentiable) or any(isinstance(t, Tensor) and t.requires_grad for t in given)
