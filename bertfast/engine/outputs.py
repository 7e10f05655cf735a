"""The ModelOutput that transformers' class would return: fields, order, tuple form."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from torch import Tensor

from bertfast.batch.inputs import CheckedArguments
from bertfast.cache import objects as kv_cache
from bertfast.engine.call import ForwardCall
from bertfast.graph.heads import HEADS, Head
from bertfast.runtime.config_access import setting
from bertfast.runtime.model_types import Model

if TYPE_CHECKING:
    from transformers import PreTrainedConfig
    from transformers.utils import ModelOutput

FIELDS = {head.output: tuple(field.name for field in fields(head.output)) for head in HEADS.values()}  # in order


@dataclass(slots=True)  # frozen would cost half a microsecond a call
class OutputOptions:
    """What a call returns beyond its tensors; the config's values where the caller says nothing."""

    hidden_states: bool | int | Sequence[int]  # with transformers 5.23 and later also an index or a list of indices
    attentions: bool
    return_dict: bool


def output_options(arguments: CheckedArguments, config: "PreTrainedConfig") -> OutputOptions:
    hidden = arguments["output_hidden_states"] if "output_hidden_states" in arguments else setting(config, "output_hidden_states", False)
    attentions = arguments["output_attentions"] if "output_attentions" in arguments else setting(config, "output_attentions", False)
    asked = arguments.get("return_dict")
    return OutputOptions(hidden, bool(attentions), bool(setting(config, "return_dict", True) if asked is None else asked))


def make_output(
    model: Model, head: Head, call: ForwardCall | None, tensors: Mapping[str, Tensor], loss: Tensor | None, options: OutputOptions
) -> "ModelOutput | tuple[object, ...]":
    """The head's ModelOutput, or its tuple. call: given where hidden states, attentions or a cache are returned."""
    cache: dict[str, object] = {} if call is None or call.cache is None else {kv_cache.CACHE_FIELD: call.cache.output()}
    collected: dict[str, tuple[Tensor | None, ...]] = {}
    if options.hidden_states and call is not None:
        collected["hidden_states"] = select_hidden(call.hidden_states(), options.hidden_states)
    if options.attentions and call is not None:
        rows = call.batch.rows
        collected["attentions"] = call.probabilities(rows.attention)
        collected["cross_attentions"] = call.probabilities(rows.cross_attention)
    if model.base_model is model:
        if collected.get("hidden_states") and collected["hidden_states"][-1] is not None:
            collected["hidden_states"] = (*collected["hidden_states"][:-1], tensors["last_hidden_state"])
        out = fast_model_output(head.output, {**tensors, **cache})
        for name, value in collected.items():  # transformers adds these to the finished output: last in its tuple
            out[name] = value
    else:
        known = {name: value for name, value in collected.items() if name in FIELDS[head.output]}
        out = fast_model_output(head.output, {"loss": loss, **tensors, **cache, **known})
    return out if options.return_dict else out.to_tuple()


def fast_model_output(cls: type[OrderedDict[str, object]], values: Mapping[str, object]) -> "ModelOutput":
    """cls(**values), a ModelOutput, without its __setattr__, which goes through all fields for each of them."""
    names = FIELDS[cls]
    out = cls.__new__(cls)
    out.__dict__.update(dict.fromkeys(names))
    out.__dict__.update(values)
    for name in names:
        value = values.get(name)
        if value is not None:
            OrderedDict.__setitem__(out, name, value)
    return out


def select_hidden(states: list[Tensor], wanted: bool | int | Sequence[int]) -> tuple[Tensor | None, ...]:
    """All states; for an index or a list of indices, None in the place of every other, as transformers 5.23 and later do."""
    if isinstance(wanted, bool):
        return tuple(states)
    indices = {i % len(states) for i in ([wanted] if isinstance(wanted, int) else wanted) if -len(states) <= i < len(states)}
    return tuple(state if i in indices else None for i, state in enumerate(states))
