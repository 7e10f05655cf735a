"""One call of a compat class on a torch class: on the kernels, or on the graph under an arbitrary mask."""

import copy
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from bertfast import ops
from bertfast.batch.attention import Attention, MaskedAttention
from bertfast.batch.layout import make_batch
from bertfast.batch.masks import integer_range
from bertfast.batch.packed import OutputNeeds, PackedBatch
from bertfast.compat.dense import Dropout, DroppingOps
from bertfast.engine.call import ForwardCall
from bertfast.engine.forward import cached_layout_or_graph, run_graph
from bertfast.engine.model_state import current_state
from bertfast.graph.encoder import encode
from bertfast.graph.heads import HEADS, HeadInputs
from bertfast.ops import Ops
from bertfast.runtime.threads import follow_torch

if TYPE_CHECKING:
    from transformers import BertModel, PreTrainedModel


@dataclass(slots=True)
class EngineOutput:
    """The outputs of one call, as torch tensors of the padded shape."""

    outputs: dict[str, Tensor]  # by the names of the torch class's output
    hidden_states: tuple[Tensor, ...] | None = None  # [B, S, H], after the embeddings and after each layer
    attentions: tuple[Tensor, ...] | None = None  # [B, N, S, Sk] a layer
    cross_attentions: tuple[Tensor, ...] | None = None


class Engine:
    """A torch model of bertfast in eval mode, without gradients."""

    def __init__(self, module: nn.Module) -> None:
        self.module: PreTrainedModel = module.eval().requires_grad_(False)
        self.bert: BertModel = getattr(module, "bert", module)
        self.head = HEADS[type(module).__name__]
        self.device = self.bert.embeddings.word_embeddings.weight.device
        self.dtype = self.bert.embeddings.word_embeddings.weight.dtype

    def plain(self, arguments: dict[str, Tensor], keep_padding: bool, hidden_states: bool) -> EngineOutput:
        """A call that has the same meaning on the torch class. keep_padding: compute padded positions too."""
        if keep_padding:
            pooled = self.head.pooled and self.bert.pooler is not None
            return self.encoded(make_batch(arguments, self.bert, OutputNeeds(True, pooled)), hidden_states)
        # The module's own forward, without the checks for hooks, autocast and transforms: only a caller of the module can set those.
        # The guard is asked, since a plan depends on the weights' addresses.
        follow_torch()
        state = current_state(self.module)
        if state.guard.why_reference(self.module) is not None:
            outputs = self.module(**arguments, output_hidden_states=hidden_states, use_cache=False, return_dict=True)
            return EngineOutput({name: value for name, value in outputs.items() if isinstance(value, Tensor)}, outputs.get("hidden_states"))
        if not hidden_states:
            return EngineOutput(cached_layout_or_graph(self.module, state, self.head, arguments)[0])
        call = ForwardCall(self.module, self.head, arguments, hidden=True, state=state)
        return EngineOutput(run_graph(call), tuple(call.hidden_states()))

    def encoded(self, batch: PackedBatch, hidden_states: bool, dropout: Dropout | None = None, head_dropout: float = 0.0) -> EngineOutput:
        """The graph over a batch. head_dropout: the rate before the head's last layer."""
        O: Ops = ops if dropout is None else DroppingOps(dropout)
        collected: list[Tensor] | None = [] if hidden_states else None
        rows = encode(self.bert, batch.rows, O, collected)
        seen = rows if dropout is None else dropout(rows, head_dropout)
        logits = self.head.compute(self.module, HeadInputs(seen, batch, {}, O, first_rows_only=False))
        outputs = {name: batch.cells(each.value) if each.padded_rows else each.value for name, each in logits.items()}
        if self.head.finish is not None:
            outputs = self.head.finish(outputs, {})
        states = None
        if collected is not None:
            states = tuple(batch.cells(batch.unpack(x, O)) for x in collected)
        return EngineOutput(outputs, states, probabilities(batch.rows.attention), probabilities(batch.rows.cross_attention))

    def converted(self, dtype: torch.dtype) -> "Engine":
        """An engine on the weights in another dtype; itself for the same one."""
        return self if dtype == self.dtype else Engine(copy.deepcopy(self.module).to(dtype))


def probabilities(attention: Attention | None) -> tuple[Tensor, ...] | None:
    return tuple(attention.probabilities) if isinstance(attention, MaskedAttention) and attention.keep_probabilities else None


class MaskKind(Enum):
    """The kind of a 2-D mask."""

    ONES = "nothing is padded"
    PLAIN = "0 or 1 everywhere, with a 1 in each row: the same meaning in every library"
    OTHER = "anything else"


def kind_of_mask(mask: Tensor, shape: tuple[int, int]) -> MaskKind:
    if mask.shape != shape or mask.numel() == 0:
        return MaskKind.OTHER
    low, high = (end.item() for end in torch.aminmax(mask)) if mask.is_floating_point() else integer_range(mask)
    if low == high == 1:
        return MaskKind.ONES
    if low != 0 or high != 1:
        return MaskKind.OTHER
    real = mask.to(torch.bool)
    binary = not mask.is_floating_point() or torch.equal(real.to(mask.dtype), mask)
    return MaskKind.PLAIN if binary and bool(real.any(dim=1).all()) else MaskKind.OTHER


def seeded(seed: int, device: torch.device) -> torch.Generator:
    return torch.Generator(device).manual_seed(seed & (2**63 - 1))
