"""TFBertForTokenClassification and TFBertForQuestionAnswering.

Source of the behaviour: the classes of these names in transformers 4.37, of their documentation where their code raised
NotImplementedError (head_mask).
"""

import inspect
from collections.abc import Mapping
from os import PathLike
from typing import Any, ClassVar, NoReturn

import numpy as np
import torch
from torch import Tensor

from bertfast import checkpoints
from bertfast.batch.attention import MaskedAttention
from bertfast.checkpoints.names import to_tf
from bertfast.compat import arrays
from bertfast.compat.config import engine_config, flag, read_config
from bertfast.compat.dense import Dropout, padded_batch
from bertfast.compat.engine import Engine, EngineOutput, MaskKind, kind_of_mask, seeded
from bertfast.compat.outputs import Output, output
from bertfast.compat.tf import arguments, losses
from bertfast.runtime.config_access import setting

ACTIVATIONS = frozenset(
    ["gelu", "gelu_10", "gelu_fast", "gelu_new", "glu", "mish", "quick_gelu", "relu", "sigmoid", "silu", "swish", "tanh"]
)


@output
class TFTokenClassifierOutput(Output):
    """loss [1] (or [active], with config.tf_legacy_loss), logits [B, S, num_labels], hidden_states, attentions."""

    loss: Any = None
    logits: Any = None
    hidden_states: Any = None
    attentions: Any = None


@output
class TFQuestionAnsweringModelOutput(Output):
    """loss [B], start_logits and end_logits [B, S], hidden_states, attentions."""

    loss: Any = None
    start_logits: Any = None
    end_logits: Any = None
    hidden_states: Any = None
    attentions: Any = None


class TFBertPreTrainedModel:
    """What the two classes have in common.

    keep_padding: compute padded positions as 4.37 did in every call. Without it a call whose mask says only real or padding may
    return zeros there (-1e4 for start and end logits), as bertfast's torch classes do.
    """

    base_model_prefix = "bert"
    torch_class: ClassVar[str]
    output_class: ClassVar[type[Output]]
    keep_padding: bool = False

    def __init__(self, config: Any, *inputs: Any, **kwargs: Any) -> None:
        self._build(config, None)

    def _build(self, config: Any, engine: Engine | None) -> None:
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
        *model_args: Any,
        config: Any = None,
        from_pt: bool = False,
        output_loading_info: bool = False,
        keep_padding: bool = False,
        **kwargs: Any,
    ) -> Any:
        """The model in a local folder: tf_model.h5, safetensors in any layout, pytorch_model.bin or flax_model.msgpack.

        Of several, safetensors come first, then TF's own; from_pt=True prefers PyTorch's. Other keywords override attributes of the
        config. Raises OSError where the folder has no weights, ValueError for a damaged file.
        """
        folder = checkpoints.folder_of(pretrained_model_name_or_path, kwargs)
        checkpoint = checkpoints.detect(folder, "pt" if from_pt else None)
        if checkpoint is not None and checkpoint.format == "pytorch" and not from_pt:
            checkpoint = checkpoints.detect(folder, "tf")
        if checkpoint is None:
            raise OSError(f"{folder}: no tf_model.h5, model.safetensors, pytorch_model.bin or flax_model.msgpack there")
        config = read_config(config, folder, kwargs)
        model: Any = cls.__new__(cls)
        module, info = checkpoints.load_foreign(
            _torch_class(model).from_pretrained, type(config), folder, checkpoint,
            config=engine_config(config, _activation(config)), dtype=torch.float32, output_loading_info=True, **kwargs,
        )  # fmt: skip
        config.name_or_path = str(folder)
        model._build(config, Engine(module))
        model.keep_padding = keep_padding
        return (model, info) if output_loading_info else model

    def save_pretrained(self, save_directory: str | PathLike[str], **kwargs: Any) -> None:
        """Writes config.json and model.safetensors, which this class, 4.37's and every PyTorch class read."""
        self._engine.module.save_pretrained(save_directory, **kwargs)
        self.config.architectures = [self.torch_class]
        self.config.save_pretrained(save_directory)

    @property
    def num_labels(self) -> int:
        return int(self.config.num_labels)

    def to(self, device: Any) -> Any:
        """Moves the weights to a torch device; outputs still come back as the arrays that went in."""
        self._engine = Engine(self._engine.module.to(device))
        return self

    # Calling

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not args and "input_ids" not in kwargs:
            raise ValueError("input_ids: the first argument of the call must always be passed; with inputs_embeds, pass input_ids=None")
        return self.call(*args, **kwargs)

    def call(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError  # the classes below, each with its documented signature

    def _run(self, given: dict[str, Any]) -> Any:
        with torch.no_grad():
            return self._result(given)

    def _result(self, given: dict[str, Any]) -> Any:
        values = arguments.merged(self._names, given)
        arrays.refuse_tracing(type(self).__name__, values.values())
        kind = arrays.kind_of(values.values())
        config = self.config
        if setting(config, "hidden_act") == "glu":
            raise ValueError("config.hidden_act: 'glu' halves the width of the intermediate layer, which does not fit BERT's next one")
        inputs = arguments.read_inputs(values, config, self._engine.device)
        attentions = flag(values["output_attentions"], config, "output_attentions")
        hidden = flag(values["output_hidden_states"], config, "output_hidden_states")
        head_masks = arguments.read_head_mask(values["head_mask"], config, self._engine.device)
        dropout = self._dropout(values["training"])
        mask = inputs.attention_mask
        kind_of_this = MaskKind.ONES if mask is None else kind_of_mask(mask, inputs.shape)
        if kind_of_this is MaskKind.ONES:
            inputs.attention_mask = None
        keep = kind_of_this is MaskKind.PLAIN and (self.keep_padding or self._wants_loss(values))
        simple = kind_of_this is not MaskKind.OTHER and dropout is None and head_masks is None and not attentions and 0 not in inputs.shape
        if simple and not (keep and setting(config, "is_decoder")):
            result = self._engine.plain(_engine_arguments(inputs), keep, hidden)
        else:
            result = self._dense(inputs, attentions, hidden, head_masks, dropout)
        return self._output(result, values, kind)

    def _dense(
        self, inputs: arguments.Inputs, attentions: bool, hidden: bool, head_masks: list[Tensor] | None, dropout: Dropout | None
    ) -> EngineOutput:
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

    def _dropout(self, training: Any) -> Dropout | None:
        if not training:
            return None
        rates = float(self.config.hidden_dropout_prob), float(self.config.attention_probs_dropout_prob)
        if not any((*rates, self._head_dropout())):
            return None
        return Dropout(*rates, seeded(int(torch.randint(2**62, ())), self._engine.device))

    def _head_dropout(self) -> float:
        return 0.0

    def _wants_loss(self, values: Mapping[str, Any]) -> bool:
        raise NotImplementedError

    def _loss(self, result: EngineOutput, values: Mapping[str, Any]) -> Tensor | None:
        raise NotImplementedError

    def _output(self, result: EngineOutput, values: Mapping[str, Any], kind: arrays.Kind) -> Any:
        loss = self._loss(result, values) if self._wants_loss(values) else None
        tensors = {"loss": loss, **result.outputs, "hidden_states": result.hidden_states, "attentions": result.attentions}
        filled = self.output_class.of({name: arrays.tree_from_torch(value, kind) for name, value in tensors.items()})
        return filled if flag(values["return_dict"], self.config, "return_dict", True) else filled.to_tuple()

    # Keras

    def predict(self, x: Any, batch_size: int | None = None, verbose: Any = None, **kwargs: Any) -> Any:
        """The outputs for all rows of x (an array, a list in order, or a dict), batch_size rows (32) at a time, as NumPy arrays."""
        if kwargs:
            raise TypeError(f"predict: got an unexpected argument {next(iter(kwargs))!r}; expected x, batch_size and verbose")
        given = dict.fromkeys(self._names)
        values = {k: v for k, v in arguments.merged(self._names, {**given, "input_ids": x}).items() if v is not None}
        values = {k: _as_numpy(v) if arrays.is_array(v) else v for k, v in values.items()}
        rows = next((len(v) for v in values.values() if isinstance(v, np.ndarray) and v.ndim), 0)
        size = batch_size or 32
        parts = [
            self.call({k: v[at : at + size] if isinstance(v, np.ndarray) and v.ndim and len(v) == rows else v for k, v in values.items()})
            for at in range(0, max(rows, 1), size)
        ]
        if isinstance(parts[0], tuple):
            return tuple(_concatenated([part[i] for part in parts]) for i in range(len(parts[0])))
        return type(parts[0])(**{name: _concatenated([part[name] for part in parts]) for name in parts[0]})

    def get_weights(self) -> list["np.ndarray[Any, Any]"]:
        """The weights in Keras's order and layout (kernels [in, out]), as copies."""
        return [arrays.to_numpy(p.t() if transposed else p).copy() for p, transposed in self._keras_parameters()]

    def set_weights(self, weights: list[Any]) -> None:
        """Replaces the weights by arrays in the order and layout of get_weights."""
        parameters = self._keras_parameters()
        if len(weights) != len(parameters):
            raise ValueError(f"weights: got {len(weights)} arrays, expected {len(parameters)}")
        for i, (value, (parameter, transposed)) in enumerate(zip(weights, parameters, strict=True)):
            tensor = arrays.to_torch(value, f"weights[{i}]")
            target = parameter.data.t() if transposed else parameter.data
            if tensor.shape != target.shape:
                raise ValueError(f"weights[{i}]: got shape {tuple(tensor.shape)}, expected {tuple(target.shape)}")
            target.copy_(tensor)

    def count_params(self) -> int:
        return sum(p.numel() for p, _ in self._keras_parameters())

    def _keras_parameters(self) -> list[tuple[Tensor, bool]]:
        named = dict(self._engine.module.named_parameters())
        names = list(named)
        # Keras builds the token types before the positions, PyTorch after.
        i, j = (names.index(f"bert.embeddings.{kind}_embeddings.weight") for kind in ("position", "token_type"))
        names[i], names[j] = names[j], names[i]
        return [(named[name], to_tf(name)[1]) for name in names]

    def compile(self, *args: Any, **kwargs: Any) -> NoReturn:
        self._no_training("compile")

    def fit(self, *args: Any, **kwargs: Any) -> NoReturn:
        self._no_training("fit")

    def evaluate(self, *args: Any, **kwargs: Any) -> NoReturn:
        self._no_training("evaluate")

    def train_on_batch(self, *args: Any, **kwargs: Any) -> NoReturn:
        self._no_training("train_on_batch")

    def _no_training(self, method: str) -> NoReturn:
        raise NotImplementedError(
            f"{type(self).__name__}.{method}: this class runs inference. Train with bertfast.{self.torch_class}, a torch module that reads "
            "the same folders (transformers.Trainer, or a loop of your own); for a loss of this model, pass labels to the call"
        )


class TFBertForTokenClassification(TFBertPreTrainedModel):
    """A class for each token: logits [B, S, num_labels]."""

    torch_class = "BertForTokenClassification"
    output_class = TFTokenClassifierOutput

    def call(
        self,
        input_ids: Any = None,  # [B, S] integers; or the inputs as a list in this order, or as a dict
        attention_mask: Any = None,  # [B, S] (or 1 in place of either): adds (1 - mask) * -10000 to the scores
        token_type_ids: Any = None,  # [B, S]
        position_ids: Any = None,  # [B, S]
        head_mask: Any = None,  # [N] or [L, N], multiplies the attention probabilities
        inputs_embeds: Any = None,  # [B, S, H] in place of input_ids
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        labels: Any = None,  # [B, S]; negative ones are ignored
        training: bool | None = False,
    ) -> Any:
        """Raises ValueError or TypeError for an argument that 4.37 refused; the message names it."""
        return self._run(
            {
                "input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids, "position_ids": position_ids,
                "head_mask": head_mask, "inputs_embeds": inputs_embeds, "output_attentions": output_attentions,
                "output_hidden_states": output_hidden_states, "return_dict": return_dict, "labels": labels, "training": training,
            }
        )  # fmt: skip

    def _head_dropout(self) -> float:
        rate = getattr(self.config, "classifier_dropout", None)
        return float(self.config.hidden_dropout_prob if rate is None else rate)

    def _wants_loss(self, values: Mapping[str, Any]) -> bool:
        return values["labels"] is not None

    def _loss(self, result: EngineOutput, values: Mapping[str, Any]) -> Tensor | None:
        return losses.token_classification(result.outputs["logits"], values["labels"], bool(getattr(self.config, "tf_legacy_loss", False)))


class TFBertForQuestionAnswering(TFBertPreTrainedModel):
    """Where an answer starts and ends: start_logits and end_logits [B, S]."""

    torch_class = "BertForQuestionAnswering"
    output_class = TFQuestionAnsweringModelOutput

    def call(
        self,
        input_ids: Any = None,  # [B, S] integers; or the inputs as a list in this order, or as a dict
        attention_mask: Any = None,  # [B, S] (or 1 in place of either): adds (1 - mask) * -10000 to the scores
        token_type_ids: Any = None,  # [B, S]
        position_ids: Any = None,  # [B, S]
        head_mask: Any = None,  # [N] or [L, N], multiplies the attention probabilities
        inputs_embeds: Any = None,  # [B, S, H] in place of input_ids
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        start_positions: Any = None,  # [B] or [B, 1]
        end_positions: Any = None,  # [B] or [B, 1]
        training: bool | None = False,
    ) -> Any:
        """Raises ValueError or TypeError for an argument that 4.37 refused; the message names it."""
        return self._run(
            {
                "input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids, "position_ids": position_ids,
                "head_mask": head_mask, "inputs_embeds": inputs_embeds, "output_attentions": output_attentions,
                "output_hidden_states": output_hidden_states, "return_dict": return_dict,
                "start_positions": start_positions, "end_positions": end_positions, "training": training,
            }
        )  # fmt: skip

    def _wants_loss(self, values: Mapping[str, Any]) -> bool:
        return values["start_positions"] is not None and values["end_positions"] is not None

    def _loss(self, result: EngineOutput, values: Mapping[str, Any]) -> Tensor | None:
        outputs = result.outputs
        return losses.question_answering(outputs["start_logits"], outputs["end_logits"], values["start_positions"], values["end_positions"])


def _torch_class(model: TFBertPreTrainedModel) -> Any:
    import bertfast

    return getattr(bertfast, model.torch_class)


def _activation(config: Any) -> str:
    name = config.hidden_act
    if name not in ACTIVATIONS:
        raise KeyError(f"config.hidden_act: {name!r} is none of TF's activations: {', '.join(sorted(ACTIVATIONS))}")
    return "gelu" if name == "glu" else str(name)  # glu: the call raises


def _engine_arguments(inputs: arguments.Inputs) -> dict[str, Tensor]:
    given = {
        "input_ids": inputs.input_ids, "inputs_embeds": inputs.inputs_embeds, "attention_mask": inputs.attention_mask,
        "token_type_ids": inputs.token_type_ids, "position_ids": inputs.position_ids,
    }  # fmt: skip
    return {name: tensor for name, tensor in given.items() if tensor is not None}


def _as_numpy(value: Any) -> "np.ndarray[Any, Any]":
    return value if isinstance(value, np.ndarray) else arrays.to_numpy(arrays.to_torch(value, "x"))


def _concatenated(parts: list[Any]) -> Any:
    if len(parts) == 1:
        return parts[0]
    if isinstance(parts[0], tuple):
        return tuple(np.concatenate(layer) for layer in zip(*parts, strict=True))
    return np.concatenate(parts)
