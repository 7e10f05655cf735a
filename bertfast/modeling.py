"""The public classes: subclasses of transformers' BERT classes that override forward.

Each inherits the module tree, the parameters and their names, loading, saving, tying, resizing and generate() from the class of the same
name in transformers.models.bert. A call that the fast path does not cover runs the inherited forward: see
bertfast.engine.eligibility.

Padding: the hidden states of an encoder are zeros there unless keep_padding is set; everything else is transformers'. See
bertfast.engine.padding_policy.
"""

import functools
import inspect
from collections.abc import Callable
from os import PathLike
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.models.bert import modeling_bert as theirs
from transformers.utils import ModelOutput, output_capturing

from bertfast.engine.forward import forward as run_forward
from bertfast.engine.model_state import STATE, forget_moved_weights
from bertfast.generation import beam_search, loop
from bertfast.generation.eligibility import check_length
from bertfast.graph.family import BERT, Family
from bertfast.quantization import loading, schemes
from bertfast.quantization.int8_layers import Int8Table
from bertfast.runtime.model_types import Model

C = TypeVar("C", bound="type[FastBertMixin]")

NOTE = """
In bertfast: forward runs on fused kernels in eval mode and is transformers' own otherwise (the log says why, once). from_pretrained also
takes keep_padding, batch_invariant and quantization ("int8" or "fp8").
"""


def overrides_forward(cls: C) -> C:
    """Gives the class a forward with its base's signature and docstring, and the base's class docstring followed by NOTE and its own."""
    base: type[PreTrainedModel] = next(c for c in cls.__mro__[1:] if c.__module__ == cls.family.modeling.__name__)
    own = "" if cls.__doc__ is None else f"{inspect.cleandoc(cls.__doc__)}\n"
    cls.__doc__ = f"{inspect.cleandoc(base.__doc__ or '')}\n{NOTE}{own}"
    head = cls.family.heads[base.__name__]
    names = tuple(inspect.signature(base.forward).parameters)[1:]
    names = names[: next(i for i, name in enumerate((*names, "kwargs")) if name == "kwargs")]

    @functools.wraps(base.forward)
    def forward(self: Model, *args: object, **kwargs: object) -> ModelOutput | tuple[object, ...]:
        if torch.compiler.is_compiling():  # before anything that a compiler cannot trace
            return base.forward(self, *args, **kwargs)
        if not args:
            return run_forward(self, base, head, kwargs)
        if len(args) > len(names):
            raise TypeError(f"{cls.__name__}.forward takes at most {len(names)} positional arguments, got {len(args)}")
        for name in names[: len(args)]:
            if name in kwargs:
                raise TypeError(f"{cls.__name__}.forward got two values for argument '{name}'")
        return run_forward(self, base, head, {**dict(zip(names, args, strict=False)), **kwargs})

    cls.forward = forward
    return cls


class FastBertMixin:
    """The base of the public classes.

    keep_padding: True computes padded positions as transformers does, in every call. None, the default, does so for everything but the
        hidden states of an encoder, which are zeros there. False leaves padding out of token logits as well (zeros; start and end logits
        -1e4), except where the call itself reads them: a loss, logits_to_keep, a row without a token.
    batch_invariant: on CUDA, a sequence gets the same bits alone and in any batch, at a cost in speed; attention under a mask, which runs
        on the reference ops, is excepted. The CPU kernels are batch-invariant as they are.
    """

    family: ClassVar[Family] = BERT
    keep_padding: bool | None = None
    batch_invariant: bool = False
    config: PreTrainedConfig
    forward: ClassVar[Callable[..., ModelOutput | tuple[object, ...]]]
    base_model_prefix: str

    @property
    def base_model(self) -> Any:
        """The model without its head. As transformers', without the AttributeError that a model without a head costs."""
        return self._modules.get(self.base_model_prefix, self)  # type: ignore[attr-defined]  # nn.Module's

    def __init__(self, config: PreTrainedConfig, *args: object, **kwargs: object) -> None:
        kind = getattr(config, "position_embedding_type", None)
        if kind not in (None, "absolute"):  # transformers 5 accepts others and computes absolute ones
            raise ValueError(
                f"config.position_embedding_type: got {kind!r}, expected 'absolute': transformers 5 dropped relative positions, "
                "so a model trained with them would give other outputs; use transformers 4 for it"
            )
        super().__init__(config, *args, **kwargs)  # type: ignore[call-arg]  # the transformers class
        for module in self.modules():  # type: ignore[attr-defined]  # nn.Module's
            convert_class(module)
        loading.prepare(self)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "FastBertMixin":
        schemes.check_conversion(self, fn)
        super()._apply(fn, recurse)  # type: ignore[misc]  # nn.Module's
        forget_moved_weights(self)  # type: ignore[arg-type]  # a module
        return self

    def __getstate__(self) -> dict[str, object]:
        """For copies and pickles: without what calls remember."""
        return {name: value for name, value in self.__dict__.items() if name != STATE}

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, Int8Table):
            loading.initialize(module, self.config.initializer_range)
        else:
            super()._init_weights(module)  # type: ignore[misc]  # the transformers class's

    def tie_weights(self, missing_keys: set[str] | None = None, **kwargs: object) -> None:
        super().tie_weights(missing_keys=missing_keys, **kwargs)  # type: ignore[misc]  # as above
        if missing_keys:
            loading.tie(self, missing_keys)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | PathLike[str] | None, *args: object,
        keep_padding: bool | None = None, batch_invariant: bool = False, quantization: str | None = None, **kwargs: object,
    ) -> Any:  # fmt: skip
        """transformers' from_pretrained; also reads folders written by TensorFlow's and Flax's BERTs, and quantized ones.

        keep_padding, batch_invariant: set on the model; see the class.
        quantization: "int8" (float32 on a CPU) or "fp8" (float16 or bfloat16 on a GPU) quantizes the model once it is loaded: see
            bertfast.quantization. Not needed for a folder that holds a quantized model. Raises ValueError for another name, and for a
            dtype or a device that the scheme does not support.
        """
        load = super().from_pretrained  # type: ignore[misc]  # the transformers class's
        loaded = loading.from_pretrained(load, cls.family, pretrained_model_name_or_path, *args, quantization=quantization, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.keep_padding, model.batch_invariant = keep_padding, batch_invariant
        return loaded


BertPreTrainedModel = theirs.BertPreTrainedModel  # has no forward; transformers' own, so that isinstance holds


@overrides_forward
class BertModel(FastBertMixin, theirs.BertModel):
    """An encoder's last_hidden_state and hidden_states are zeros at padding, a decoder's are transformers'."""


@overrides_forward
class BertForPreTraining(FastBertMixin, theirs.BertForPreTraining):
    """With keep_padding=False prediction_logits are zeros at padding, unless labels there are not -100."""


# transformers looks for GenerationMixin among the direct bases.
@overrides_forward
class BertLMHeadModel(FastBertMixin, theirs.BertLMHeadModel, GenerationMixin):
    """generate() is GenerationMixin's: greedy decoding and sampling run in bertfast's loop, beam search over its steps, where
    bertfast.generation.eligibility allows; otherwise transformers' loops call this forward."""

    def _sample(self, *args: Any, **kwargs: Any) -> ModelOutput | Tensor:
        return loop.sample_or_reference(self, BertLMHeadModel, GenerationMixin._sample, *args, **kwargs)

    def _beam_search(self, *args: Any, **kwargs: Any) -> ModelOutput | Tensor:
        return beam_search.beam_search_or_reference(self, BertLMHeadModel, GenerationMixin._beam_search, *args, **kwargs)

    def _prepare_cache_for_generation(
        self, generation_config: GenerationConfig, model_kwargs: dict[str, object], *args: object, **kwargs: object
    ) -> bool:
        check_length(self, generation_config, model_kwargs)
        return super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)


BertForCausalLM = BertLMHeadModel


@overrides_forward
class BertForMaskedLM(FastBertMixin, theirs.BertForMaskedLM):
    """With keep_padding=False logits are zeros at padding, unless labels there are not -100."""


@overrides_forward
class BertForNextSentencePrediction(FastBertMixin, theirs.BertForNextSentencePrediction):
    """The last layer computes the first token of each sequence alone, unless hidden states are returned."""


@overrides_forward
class BertForSequenceClassification(FastBertMixin, theirs.BertForSequenceClassification):
    """The last layer computes the first token of each sequence alone, unless hidden states are returned."""


@overrides_forward
class BertForMultipleChoice(FastBertMixin, theirs.BertForMultipleChoice):
    """Choices of all questions are one batch; its last layer computes the first token of each alone, unless hidden states are returned."""


@overrides_forward
class BertForTokenClassification(FastBertMixin, theirs.BertForTokenClassification):
    """With keep_padding=False logits are zeros at padding, unless labels there are not -100."""


@overrides_forward
class BertForQuestionAnswering(FastBertMixin, theirs.BertForQuestionAnswering):
    """start_logits and end_logits are -1e4 at padding, unless start_positions and end_positions are given."""


FAST_CLASS: dict[type, type[FastBertMixin]] = {
    getattr(cls.family.modeling, cls.__name__): cls
    for cls in (
        BertModel, BertForPreTraining, BertLMHeadModel, BertForMaskedLM, BertForNextSentencePrediction,
        BertForSequenceClassification, BertForMultipleChoice, BertForTokenClassification, BertForQuestionAnswering,
    )
}  # fmt: skip
REFERENCE_CLASS: dict[type, type] = {ours: original for original, ours in FAST_CLASS.items()}


def convert_class(module: nn.Module) -> bool:
    """Changes the class of a transformers BERT to ours, in place: same object, same parameters. False for any other class, subclasses
    included."""
    ours = FAST_CLASS.get(type(module))
    if ours is None:
        return False
    set_class(module, ours)
    return True


def set_class(module: nn.Module, cls: type) -> None:
    module.__class__ = cls
    # transformers' forward looks up here, by class, which modules it collects hidden states and attentions from.
    registry = output_capturing._CAN_RECORD_REGISTRY
    registry[module if hasattr(registry, "get") and type(registry) is not dict else str(cls)] = module._can_record_outputs
