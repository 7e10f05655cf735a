"""One forward on our own graph, whoever asks for it and however it is run: op by op, recorded or replayed."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bertfast import ops
from bertfast.batch.attention import probabilities_of
from bertfast.batch.layout import make_batch
from bertfast.batch.packed import OutputNeeds, PackedBatch
from bertfast.cache.layout import make_cached_batch
from bertfast.cache.store import open_cache
from bertfast.graph.encoder import encode
from bertfast.graph.heads import Head, HeadInputs, HeadOutput
from bertfast.ops import Ops, reference

Arguments = dict[str, Any]


class ForwardCall:
    """One forward on our own graph: its inputs read, checked and laid out; and what came out, as transformers returns it."""

    def __init__(
        self, model: Any, head: Head, inputs: Arguments, hidden: bool = False, attentions: bool = False, differentiable: bool = False,
        cached: bool = False,
    ) -> None:  # fmt: skip
        self.model, self.head = model, head
        self.inputs = inputs  # as the caller passed them, the choices of a question laid out as a batch
        self.base = model.base_model
        self.O = reference if differentiable else ops
        self.hidden: list[Tensor] | None = [] if hidden else None  # [R, H] after the embeddings and each layer
        pooled = head.pooled and self.base.pooler is not None
        keep = model.keep_padding or padding_affects_loss(head, inputs)
        needs = OutputNeeds(keep, pooled, attentions, differentiable)
        self.cache = open_cache(inputs, self.base.config) if cached else None
        self.store = None
        self.logits: dict[str, HeadOutput] = {}  # what the head gave, once the call was computed
        with torch.set_grad_enabled(differentiable):
            if self.cache is None:
                self.batch = make_batch(inputs, self.base, needs)
            else:
                self.batch, self.store = make_cached_batch(inputs, self.base, needs, self.cache)

    def run_ops(self, batch: PackedBatch, O: Ops) -> dict[str, HeadOutput]:
        """The forward as calls of the ops O: what is recorded, and what runs where nothing is."""
        first = self.only_first()
        rows = encode(self.base, batch.rows, O, self.hidden, batch.first_rows if first else None)
        if self.store is not None:
            self.store.finish()
        return self.head.compute(self.model, HeadInputs(rows, batch, self.inputs, O, first))

    def only_first(self) -> bool:
        return self.head.only_first and self.hidden is None

    def reason_against_recording(self) -> str | None:
        if self.O is not ops:
            return "the plain definitions run, under autograd"
        if self.hidden is not None:
            return "hidden states are wanted"
        keep = self.inputs.get("logits_to_keep", 0)
        return None if isinstance(keep, int) and keep == 0 else "logits_to_keep"

    def tensors(self) -> dict[str, Tensor]:
        """What was computed, in the shapes that transformers returns."""
        tensors = {name: self.batch.cells(each.value) if each.cells else each.value for name, each in self.logits.items()}
        return tensors if self.head.finish is None else self.head.finish(tensors, self.inputs)

    def blanks(self, tensors: Mapping[str, Tensor]) -> list[Tensor | None]:
        """Where each of these outputs is a fill: bool over its leading dimensions; None: nowhere."""
        # What is finished further (start and end logits) comes from one output.
        sources = [self.logits.get(name) or next(iter(self.logits.values())) for name in tensors]
        return [self.batch.padding() if each.cells else each.blank for each in sources]

    def hidden_states(self) -> list[Tensor]:
        return [self.batch.cells(self.batch.unpack(x, self.O)) for x in self.hidden or ()]

    def probabilities(self, attention: Any) -> tuple[Tensor, ...]:
        return tuple(map(self.batch.unpack_probabilities, probabilities_of(attention)))


def padding_affects_loss(head: Head, inputs: Mapping[str, Any]) -> bool:
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
