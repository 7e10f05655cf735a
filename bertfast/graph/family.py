"""One entry for each family of models: all that the rest of the package asks about it.

Engine, batch, cache, generation and quantization know families by these entries alone; `model.family` is that of a model.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING

from torch import Tensor, nn
from transformers import BertConfig
from transformers.models.bert import modeling_bert

from bertfast.batch.packed import GraphInputs
from bertfast.batch.positions import PositionRule, column_positions
from bertfast.graph import bert
from bertfast.graph.heads import HEADS, Head
from bertfast.graph.layers import LayerModules
from bertfast.ops import Ops
from bertfast.runtime.model_types import BaseModel, Model

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


@dataclass(frozen=True, slots=True)
class Family:
    """Shape letters: R rows, H hidden, V vocabulary. `base`: the model without a head (model.base_model)."""

    model_type: str  # of its config
    config: type["PreTrainedConfig"]
    modeling: ModuleType  # of transformers: where the classes of `heads` are
    pretrained: type["PreTrainedModel"]  # their base class there
    heads: Mapping[str, Head]  # by class name
    modules: Mapping[str, tuple[type, ...]]  # attribute name -> classes that the graph computes in place of
    why_changed: Callable[[str, nn.Module], str | None]  # attribute name, module -> what else its forward reads and the graph does not
    positions: PositionRule  # default position_ids
    positions_from_shape: bool  # whether they depend on the input's shape alone, so that a cached layout holds them
    embed: Callable[[BaseModel, GraphInputs, Ops], Tensor]  # base -> [R, H]
    layers: Callable[[BaseModel], list[LayerModules]]  # of base
    lm_logits: Callable[[Model, Tensor, Ops], Tensor]  # a model with a language-model head: [R, H] -> [R, V]
    quantizable: Callable[[str], bool]  # module name -> whether int8 replaces it
    checkpoint_aliases: Mapping[str, str]  # parameter -> its second name, which TensorFlow and Flax files lack and transformers needs


BERT = Family(
    model_type="bert",
    config=BertConfig,
    modeling=modeling_bert,
    pretrained=modeling_bert.BertPreTrainedModel,
    heads=HEADS,
    modules=bert.MODULES,
    why_changed=bert.why_changed,
    positions=column_positions,
    positions_from_shape=True,
    embed=bert.embed,
    layers=bert.layers,
    lm_logits=bert.lm_logits,
    quantizable=bert.is_quantizable,
    checkpoint_aliases={"cls.predictions.bias": "cls.predictions.decoder.bias"},
)

FAMILIES: dict[str, Family] = {family.model_type: family for family in (BERT,)}


def family_of(config: "PreTrainedConfig") -> Family:
    """The family of a config, by its model_type. ValueError where it is none that bertfast has."""
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise ValueError(f"config.model_type: got {config.model_type!r}, expected {' or '.join(map(repr, FAMILIES))}")
    return family
