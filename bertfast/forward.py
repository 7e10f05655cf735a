"""One call of a public class: read what is asked for, take the road, give back transformers' output."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from bertfast import gradients, graphs, ops, roads
from bertfast.attention import Masked
from bertfast.batch import Needs, PackedBatch, make_batch
from bertfast.heads import Encoded, Head, Logits
from bertfast.model import Trace, encode
from bertfast.ops import reference

Arguments = dict[str, Any]


def forward(model: Any, base: type, head: Head, arguments: Arguments) -> Any:
    """What base.forward(model, **arguments) returns, by the fast road where it covers the call."""
    reason = roads.reason_to_leave(model, arguments)
    if reason is None and wants_cache(model.config, head, arguments):
        reason = "a KV cache is asked for"
    if reason is None:
        return compute(model, base, head, arguments)
    if arguments.pop("head_mask", None) is not None:
        raise ValueError(
            f"head_mask: transformers' forward no longer knows it, and this call has to take that forward ({reason}); "
            "call the model in eval mode, without hooks inside and without a cache"
        )
    if reason is not roads.INSIDE:
        roads.say_once(type(model).__name__, f"transformers' own forward is used: {reason}")
    with roads.reference_only():  # the model inside a head as well: its padding may count here
        return base.forward(model, **arguments)  # type: ignore[attr-defined]  # base is the transformers class


def compute(model: Any, base: type, head: Head, arguments: Arguments) -> Any:
    config = model.config
    hidden, attentions = (arguments.get(name, getattr(config, name, False)) for name in ("output_hidden_states", "output_attentions"))
    inputs = flatten_choices(arguments) if head.choices else arguments
    inspected = bool(hidden) or bool(attentions) or inputs.get("head_mask") is not None
    differentiated = torch.is_grad_enabled() and roads.guard_of(model).wants_gradient(inputs)
    call = Call(model, head, arguments, inputs, bool(hidden), bool(attentions), differentiable=differentiated and inspected)
    if not differentiated or inspected:
        with torch.set_grad_enabled(differentiated):
            tensors = call.finished(call.run())
    else:
        tensors = call.run_recomputed(base)
    loss = head.loss(model, tensors, inputs)
    return make_output(call, tensors, loss, hidden, bool(attentions), return_dict(arguments, config))


class Call:
    """One forward on our own graph."""

    def __init__(
        self, model: Any, head: Head, arguments: Arguments, inputs: Arguments, hidden: bool, attentions: bool, differentiable: bool
    ) -> None:
        self.model, self.head = model, head
        self.arguments, self.inputs = arguments, inputs  # as the caller passed them; with the choices of a question laid out as a batch
        self.bert = getattr(model, "bert", model)
        self.O = reference if differentiable else ops
        self.trace = Trace(hidden_states=[]) if hidden else None
        pooled = head.pooled and self.bert.pooler is not None
        keep = model.keep_padding or padding_counts(head, inputs)
        self.batch = make_batch(inputs, self.bert, Needs(keep, pooled, attentions, differentiable))

    def run(self) -> dict[str, Logits]:
        return graphs.run(self) if self.recordable() else self.run_ops(self.batch, self.O)

    def run_ops(self, batch: PackedBatch, O: Any) -> dict[str, Logits]:
        """The forward as calls of the ops O: what graphs.py records, and what everything else runs."""
        first = self.only_first()
        rows = encode(self.bert, batch.rows, O, self.trace, batch.first_rows if first else None)
        return self.head.compute(self.model, Encoded(rows, batch, self.inputs, O, first))

    def only_first(self) -> bool:
        return self.head.only_first and self.trace is None

    def recordable(self) -> bool:
        keep = self.inputs.get("logits_to_keep", 0)
        return self.O is ops and self.trace is None and isinstance(keep, int) and keep == 0

    def finished(self, logits: dict[str, Logits]) -> dict[str, Tensor]:
        """The outputs in the shapes that transformers returns."""
        tensors = {name: self.batch.cells(each.value) if each.cells else each.value for name, each in logits.items()}
        return tensors if self.head.finish is None else self.head.finish(tensors, self.inputs)

    def run_recomputed(self, base: Any) -> dict[str, Tensor]:
        """The fast forward as one autograd node; its backward differentiates transformers' forward."""
        names: list[str] = []
        blanks: list[Tensor | None] = []

        def run() -> list[Tensor]:
            logits = self.run()
            tensors = self.finished(logits)
            # What is finished further (start and end logits) comes from one output.
            sources = [logits.get(name) or next(iter(logits.values())) for name in tensors]
            names.extend(tensors)
            blanks.extend(self.batch.padding() if each.cells else each.blank for each in sources)
            return list(tensors.values())

        unlabelled = {k: v for k, v in self.arguments.items() if k not in NOT_RECOMPUTED}

        def recompute() -> list[Tensor]:
            with roads.reference_only():
                outputs = base.forward(self.model, **{**unlabelled, "return_dict": True})
            # What came back as a fill was a constant: no gradient passes there.
            return [
                outputs[name] if blank is None else outputs[name].masked_fill(expand(blank, outputs[name]), 0.0)
                for name, blank in zip(names, blanks, strict=True)
            ]

        tensors = gradients.recomputed(run, recompute, roads.guard_of(self.model).differentiable_inputs(self.inputs))
        return dict(zip(names, tensors, strict=True))

    def hidden_states(self) -> list[Tensor]:
        states = None if self.trace is None else self.trace.hidden_states
        return [self.batch.cells(self.batch.unpack(x, self.O)) for x in states or ()]

    def probabilities(self, attention: Any) -> tuple[Tensor, ...]:
        return tuple(map(self.batch.unpack_probabilities, attention.probabilities)) if isinstance(attention, Masked) else ()


# What a recomputed forward does without: its outputs are logits alone, and the loss is taken outside.
NOT_RECOMPUTED = frozenset(
    (
        *("labels", "next_sentence_label", "start_positions", "end_positions", "num_items_in_batch", "shift_labels"),
        *("output_hidden_states", "output_attentions", "use_cache", "cache", "past_key_values"),
    )
)


def expand(blank: Tensor, like: Tensor) -> Tensor:
    return blank.view(*blank.shape, *(1 for _ in range(like.dim() - blank.dim())))


def wants_cache(config: Any, head: Head, arguments: Arguments) -> bool:
    if arguments.get("cache") is not None or arguments.get("past_key_values") is not None:
        return True
    if not config.is_decoder or (head.shifted and arguments.get("labels") is not None):
        return False
    use_cache = arguments.get("use_cache")
    return bool(config.use_cache if use_cache is None else use_cache)


def padding_counts(head: Head, inputs: Mapping[str, Any]) -> bool:
    """Whether the loss reads logits of padded cells, which then must be what transformers computes there."""
    if head.span_labels and all(inputs.get(name) is not None for name in head.span_labels):
        return True
    mask = inputs.get("attention_mask")
    for name in head.token_labels:
        labels = inputs.get(name)
        if labels is not None and mask is not None and mask.dim() == 2 and labels.shape == mask.shape:
            padded, counts = mask.eq(0), labels.ne(-100)
            if (padded & counts).any() or (head.shifted and (padded[:, :-1] & counts[:, 1:]).any()):
                return True
    return False


def flatten_choices(arguments: Arguments) -> Arguments:
    """[B, choices, S] inputs as a batch of B * choices."""
    given = arguments.get("input_ids") if arguments.get("input_ids") is not None else arguments.get("inputs_embeds")
    if not isinstance(given, Tensor) or given.dim() < 3:
        raise ValueError("input_ids: expected a tensor [batch, choices, length] (or inputs_embeds with one more dimension)")
    flat = dict(arguments, num_choices=given.shape[1])
    for name in ("input_ids", "attention_mask", "token_type_ids", "position_ids"):
        if flat.get(name) is not None:
            flat[name] = flat[name].reshape(-1, flat[name].shape[-1])
    if flat.get("inputs_embeds") is not None:
        flat["inputs_embeds"] = flat["inputs_embeds"].reshape(-1, *flat["inputs_embeds"].shape[-2:])
    return flat


def return_dict(arguments: Arguments, config: Any) -> bool:
    asked = arguments.get("return_dict")
    return bool(getattr(config, "return_dict", True) if asked is None else asked)


def make_output(
    call: Call,
    tensors: Mapping[str, Tensor],
    loss: Tensor | None,
    hidden: bool | int | Sequence[int] | None,
    attentions: bool,
    as_dict: bool,
) -> Any:
    """The head's ModelOutput; fields and order as transformers fills them."""
    inside: dict[str, Any] = {}
    if hidden:
        inside["hidden_states"] = select_hidden(call.hidden_states(), hidden)
    if attentions:
        rows = call.batch.rows
        inside["attentions"] = call.probabilities(rows.attention)
        inside["cross_attentions"] = call.probabilities(rows.cross_attention)
    if call.bert is call.model:
        if inside.get("hidden_states") and inside["hidden_states"][-1] is not None:
            inside["hidden_states"] = (*inside["hidden_states"][:-1], tensors["last_hidden_state"])
        out = call.head.output(**tensors)
        for name, value in inside.items():  # transformers adds these to the finished output, so they come last in its tuple
            out[name] = value
    else:
        known = {field.name for field in fields(call.head.output)}
        out = call.head.output(loss=loss, **tensors, **{name: value for name, value in inside.items() if name in known})
    return out if as_dict else out.to_tuple()


def select_hidden(states: list[Tensor], wanted: bool | int | Sequence[int]) -> tuple[Tensor | None, ...]:
    """All of them; or, for an index or a list of indices, None in the place of every other, as transformers 5.23 and later do."""
    if isinstance(wanted, bool):
        return tuple(states)
    indices = {i % len(states) for i in ([wanted] if isinstance(wanted, int) else wanted) if -len(states) <= i < len(states)}
    return tuple(state if i in indices else None for i, state in enumerate(states))
