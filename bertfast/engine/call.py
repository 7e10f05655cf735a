"""One forward on the model graph: inputs read and laid out, computed by a set of ops, outputs in transformers' shapes."""

from collections.abc import Mapping

import torch
from torch import Tensor

from bertfast import ops
from bertfast.batch.attention import Attention, probabilities_of
from bertfast.batch.inputs import Arguments, CheckedArguments
from bertfast.batch.layout import make_batch
from bertfast.batch.packed import OutputNeeds, PackedBatch
from bertfast.cache.layout import make_cached_batch
from bertfast.cache.store import open_cache
from bertfast.engine.model_state import ModelState, state_of
from bertfast.engine.padding_policy import computes_padding
from bertfast.graph.encoder import encode
from bertfast.graph.heads import Head, HeadInputs, HeadOutput
from bertfast.ops import Ops, reference
from bertfast.runtime.model_types import Model


class ForwardCall:
    """Shape letters: R rows, H hidden, B sequences, S columns."""

    def __init__(
        self, model: Model, head: Head, inputs: Arguments, hidden: bool = False, attentions: bool = False, differentiable: bool = False,
        cached: bool = False, state: ModelState | None = None,
    ) -> None:  # fmt: skip
        """inputs: the caller's arguments, choices flattened. hidden, attentions: collect them. differentiable: on the reference ops under
        autograd. cached: with a KV cache. state: the one that was checked for this call; None: the latest. ValueError, naming the argument,
        for inputs that make no sense."""
        self.model, self.head, self.state = model, head, state
        self.inputs: CheckedArguments = inputs
        self.base = model.base_model
        self.O: Ops = reference if differentiable else ops
        self.hidden: list[Tensor] | None = [] if hidden else None  # [R, H] after the embeddings and each layer
        pooled = head.pooled and self.base.pooler is not None
        keep = computes_padding(model, head, inputs, hidden)
        needs = OutputNeeds(keep, pooled, attentions, differentiable)
        self.cache = open_cache(inputs, self.base.config) if cached else None
        self.store = None
        self.logits: dict[str, HeadOutput] = {}  # set once the call is computed
        with torch.set_grad_enabled(differentiable):
            if self.cache is None:
                self.batch = make_batch(inputs, self.base, needs)
            else:
                self.batch, self.store = make_cached_batch(inputs, self.base, needs, self.cache)

    def run_ops(self, batch: PackedBatch, O: Ops) -> dict[str, HeadOutput]:
        """The forward as calls of the ops O."""
        first = self.first_rows_only()
        rows = encode(self.base, batch.rows, O, self.hidden, batch.first_rows if first else None)
        outputs = self.head.compute(self.model, HeadInputs(rows, batch, self.inputs, O, first))
        if self.store is not None:  # last: after an error the cache is as it was
            self.store.finish()
        return outputs

    def first_rows_only(self) -> bool:
        """Whether the last layer computes the first row of each sequence alone."""
        return self.head.first_rows_only and self.hidden is None

    def owner(self) -> ModelState:
        """The state that was checked for this call: held until the call is done, it owns the weights' memory and the CUDA graphs."""
        return state_of(self.model) if self.state is None else self.state

    def why_eager(self) -> str | None:
        """Why neither a plan nor a CUDA graph can hold this call, whatever the device; None where one may."""
        if self.O is not ops:
            return "the reference ops run under autograd"
        if self.hidden is not None:
            return "hidden states are returned"
        keep = self.inputs.get("logits_to_keep", 0)
        return None if isinstance(keep, int) and keep == 0 else "logits_to_keep is set"

    def tensors(self) -> dict[str, Tensor]:
        """The computed outputs in the shapes that transformers returns."""
        tensors = {name: self.batch.cells(each.value) if each.padded_rows else each.value for name, each in self.logits.items()}
        return tensors if self.head.finish is None else self.head.finish(tensors, self.inputs)

    def pad_masks(self, tensors: Mapping[str, Tensor]) -> list[Tensor | None]:
        """For each of these outputs, where it is padding: bool over its leading dimensions, or None for nowhere."""
        # An output of `finish` (start and end logits) shares the mask of the one it was made from.
        sources = [self.logits.get(name) or next(iter(self.logits.values())) for name in tensors]
        return [self.batch.padding() if each.padded_rows else each.pad_mask for each in sources]

    def hidden_states(self) -> list[Tensor]:  # [B, S, H] each
        return [self.batch.cells(self.batch.unpack(x, self.O)) for x in self.hidden or ()]

    def probabilities(self, attention: Attention | None) -> tuple[Tensor, ...]:
        return tuple(map(self.batch.unpack_probabilities, probabilities_of(attention)))
