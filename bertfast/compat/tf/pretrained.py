"""TFBertPreTrainedModel: construction, from_pretrained and the call.

Source of the behaviour: the class of this name in transformers 4.37; its documentation where its code raised NotImplementedError
(head_mask).
"""

import inspect
from collections.abc import Mapping
from os import PathLike
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch
from torch import Tensor

from bertfast import checkpoints
from bertfast.batch.attention import MaskedAttention
from bertfast.compat import arrays
from bertfast.compat.config import engine_config, flag, read_config
from bertfast.compat.dense import Dropout, padded_batch
from bertfast.compat.engine import Engine, EngineOutput, MaskKind, kind_of_mask, seeded
from bertfast.compat.outputs import ModelOutput
from bertfast.compat.tf import arguments
from bertfast.compat.tf.keras import KerasMixin
from bertfast.compat.tracing import refuse_tracing
from bertfast.graph.family import BERT
from bertfast.runtime.config_access import setting

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

Model = TypeVar("Model", bound="TFBertPreTrainedModel")

# 4.37's, for TensorFlow
ACTIVATIONS = frozenset(
    ["gelu", "gelu_10", "gelu_fast", "gelu_new", "glu", "mish", "quick_gelu", "relu", "sigmoid", "silu", "swish", "tanh"]
)


class TFBertPreTrainedModel(KerasMixin):
    """Base of the two TF classes.

    Attributes: keep_padding: compute outputs at padded positions, as 4.37 did. By default hidden states are zeros
    where the mask is 0 or 1 everywhere, as in bertfast's torch classes.
    """

    base_model_prefix = "bert"
    output_class: ClassVar[type[ModelOutput]]
    keep_padding: bool = False

    def __init__(self, config: "PreTrainedConfig", *inputs: object, **kwargs: object) -> None:
        """A model with random weights (torch's generator). Raises KeyError for an activation that 4.37's TF classes did not have."""
        self._build(config, None)

    def _build(self, config: "PreTrainedConfig", engine: Engine | None) -> None:
        self.config = config
        self.name_or_path = getattr(config, "name_or_path", "")
        if engine is None:
            engine = Engine(_torch_class(self)(engine_config(config, _activation(config))))
        self._engine = engine
        self._names = tuple(inspect.signature(self.call).parameters)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | PathLike[str],
        *model_args: object,
        config: "PreTrainedConfig | str | PathLike[str] | None" = None,
        from_pt: bool = False,
        output_loading_info: bool = False,
        keep_padding: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Load a local folder: tf_model.h5, safetensors in any layout, pytorch_model.bin or flax_model.msgpack, in float32.

        Of several files safetensors come first, then TF's; from_pt=True prefers PyTorch's. output_loading_info=True returns (model,
        report of missing and unexpected keys). Other keywords override config attributes. Raises OSError where the folder has no
        weights, ValueError for a damaged file.
        """
        folder = checkpoints.folder_of(pretrained_model_name_or_path, kwargs)
        checkpoint = checkpoints.detect(folder, "pt" if from_pt else None)
        if checkpoint is not None and checkpoint.format == "pytorch" and not from_pt:
            checkpoint = checkpoints.detect(folder, "tf")
        if checkpoint is None:
            raise OSError(f"{folder}: no tf_model.h5, model.safetensors, pytorch_model.bin or flax_model.msgpack in it")
        own_config = read_config(config, folder, kwargs)
        model = cls.__new__(cls)
        module, info = checkpoints.load_foreign(
            _torch_class(model).from_pretrained, BERT, folder, checkpoint,
            config=engine_config(own_config, _activation(own_config)), dtype=torch.float32, output_loading_info=True, **kwargs,
        )  # fmt: skip
        own_config.name_or_path = str(folder)
        model._build(own_config, Engine(module))
        model.keep_padding = keep_padding
        return (model, info) if output_loading_info else model

    def save_pretrained(self, save_directory: str | PathLike[str], **kwargs: object) -> None:
        """Write config.json and model.safetensors, which this class, 4.37's classes and the PyTorch classes read."""
        self._engine.module.save_pretrained(save_directory, **kwargs)
        self.config.architectures = [self.torch_class]
        self.config.save_pretrained(save_directory)

    @property
    def num_labels(self) -> int:
        """config.num_labels."""
        return int(self.config.num_labels)

    def to(self: Model, device: str | torch.device) -> Model:
        """Move the weights to a torch device. Outputs still have the array type of the inputs."""
        self._engine = Engine(self._engine.module.to(device))
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """See call."""
        if not args and "input_ids" not in kwargs:
            raise ValueError("input_ids: missing; with inputs_embeds, pass input_ids=None")
        return self.call(*args, **kwargs)

    def _run(self, given: Mapping[str, object]) -> Any:  # the subclass's output_class
        with torch.no_grad():
            return self._result(given)

    def _result(self, given: Mapping[str, object]) -> ModelOutput | tuple[object, ...]:
        values = arguments.merge_arguments(self._names, given)
        refuse_tracing(type(self).__name__, values.values())
        array_type = arrays.array_type_of(values.values())
        config = self.config
        if setting(config, "hidden_act") == "glu":
            raise ValueError("config.hidden_act: 'glu' halves the width of the intermediate layer, which the output layer does not accept")
        inputs = arguments.read_inputs(values, config, self._engine.device)
        attentions = flag(values["output_attentions"], config, "output_attentions")
        hidden = flag(values["output_hidden_states"], config, "output_hidden_states")
        head_masks = arguments.read_head_mask(values["head_mask"], config, self._engine.device)
        dropout = self._dropout(values["training"])
        mask = inputs.attention_mask
        mask_kind = MaskKind.ONES if mask is None else kind_of_mask(mask, inputs.shape)
        if mask_kind is MaskKind.ONES:
            inputs.attention_mask = None
        keep = mask_kind is MaskKind.PLAIN and (self.keep_padding or self._wants_loss(values))
        torch_call = mask_kind is not MaskKind.OTHER and dropout is None and head_masks is None and not attentions and 0 not in inputs.shape
        if torch_call and not (keep and setting(config, "is_decoder")):
            result = self._engine.plain(_engine_arguments(inputs), keep, hidden)
        else:
            result = self._run_under_mask(inputs, attentions, hidden, head_masks, dropout)
        return self._output(result, values, array_type)

    def _run_under_mask(
        self, inputs: arguments.TFInputs, attentions: bool, hidden: bool, head_masks: list[Tensor] | None, dropout: Dropout | None
    ) -> EngineOutput:
        """On the graph, with the mask that TF adds to the scores."""
        (B, S), embeddings = inputs.shape, self._engine.bert.embeddings
        positions = inputs.position_ids
        if positions is None:
            positions = torch.arange(S, device=self._engine.device).expand(B, S)
        words = None if inputs.inputs_embeds is None else inputs.inputs_embeds.reshape(B * S, -1)
        mask = arguments.additive_mask(inputs.attention_mask, bool(self.config.is_decoder), S)
        drop = None if dropout is None else dropout.of_probabilities()
        attention = MaskedAttention(B, mask, head_masks, attentions, drop)
        batch = padded_batch((B, S), embeddings, inputs.input_ids, words, inputs.token_type_ids, positions, attention)
        return self._engine.encoded(batch, hidden, dropout, self._head_dropout())

    def _dropout(self, training: object) -> Dropout | None:
        if not training:
            return None
        rates = float(self.config.hidden_dropout_prob), float(self.config.attention_probs_dropout_prob)
        if not any((*rates, self._head_dropout())):
            return None
        return Dropout(*rates, seeded(int(torch.randint(2**62, ())), self._engine.device))

    def _head_dropout(self) -> float:
        return 0.0

    def _wants_loss(self, values: Mapping[str, object]) -> bool:
        raise NotImplementedError

    def _loss(self, result: EngineOutput, values: Mapping[str, object]) -> Tensor | None:
        raise NotImplementedError

    def _output(self, result: EngineOutput, values: Mapping[str, Any], array_type: arrays.ArrayType) -> ModelOutput | tuple[object, ...]:
        loss = self._loss(result, values) if self._wants_loss(values) else None
        tensors = {"loss": loss, **result.outputs, "hidden_states": result.hidden_states, "attentions": result.attentions}
        filled = self.output_class.of({name: arrays.tree_from_torch(value, array_type) for name, value in tensors.items()})
        return filled if flag(values["return_dict"], self.config, "return_dict", True) else filled.to_tuple()


def _torch_class(model: TFBertPreTrainedModel) -> "type[PreTrainedModel]":
    import bertfast

    return getattr(bertfast, model.torch_class)


def _activation(config: "PreTrainedConfig") -> str:
    name = config.hidden_act
    if name not in ACTIVATIONS:
        raise KeyError(f"config.hidden_act: {name!r} is not one of TF's activations: {', '.join(sorted(ACTIVATIONS))}")
    return "gelu" if name == "glu" else str(name)  # for glu the call raises


def _engine_arguments(inputs: arguments.TFInputs) -> dict[str, Tensor]:
    given = {
        "input_ids": inputs.input_ids, "inputs_embeds": inputs.inputs_embeds, "attention_mask": inputs.attention_mask,
        "token_type_ids": inputs.token_type_ids, "position_ids": inputs.position_ids,
    }  # fmt: skip
    return {name: tensor for name, tensor in given.items() if tensor is not None}
