"""The public classes: transformers' own, with another forward.

Each is a subclass of the class of the same name in transformers.models.bert: it inherits the module tree, the parameters and
their names, loading, saving, tying, resizing and generate(), and overrides forward alone. What the fast road does not cover is
the inherited forward (bertfast.engine.eligibility says when).

Padding: logits and hidden states of padded positions come back as zeros (start and end logits as -1e4) unless keep_padding is
set or padded positions count in the call; see bertfast.batch.layout. At every other position the outputs are transformers'.
"""

import functools
import inspect
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import GenerationMixin
from transformers.models.bert import modeling_bert as theirs
from transformers.utils import output_capturing

from bertfast.engine.forward import forward as run_forward
from bertfast.generation import beam_search, loop
from bertfast.generation.eligibility import check_length
from bertfast.graph.family import BERT, Family
from bertfast.quantization import loading, schemes
from bertfast.quantization.int8_layers import Int8Table


def overrides_forward(cls: Any) -> Any:
    """Gives the class a forward with its base's signature and documentation."""
    base: Any = next(c for c in cls.__mro__[1:] if c.__module__ == theirs.__name__)
    head = BERT.heads[base.__name__]
    names = tuple(inspect.signature(base.forward).parameters)[1:]
    names = names[: next(i for i, name in enumerate((*names, "kwargs")) if name == "kwargs")]

    @functools.wraps(base.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():  # before anything a compiler could not trace
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
    """What the public classes have in common.

    keep_padding: compute padded positions as transformers does, in every call.
    batch_invariant: on CUDA, give a sequence the same bits alone and in any batch, at a cost in speed (attention under a mask, which
        runs on the plain definitions, excepted). On the CPU kernels that holds anyway.
    """

    family: ClassVar[Family] = BERT
    keep_padding: bool = False
    batch_invariant: bool = False
    config: Any

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        kind = getattr(config, "position_embedding_type", None)
        if kind not in (None, "absolute"):  # transformers 5 takes them and computes absolute ones
            raise ValueError(
                f"config.position_embedding_type: got {kind!r}, expected 'absolute': relative positions were removed from transformers 5, "
                "and a model trained with them would compute something else"
            )
        super().__init__(config, *args, **kwargs)  # type: ignore[call-arg]  # the transformers class
        for module in self.modules():  # type: ignore[attr-defined]  # nn.Module's
            convert_class(module)
        loading.prepare(self)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        schemes.check_conversion(self, fn)
        return super()._apply(fn, recurse)  # type: ignore[misc]  # nn.Module's

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, Int8Table):
            loading.initialize(module, self.config.initializer_range)
        else:
            super()._init_weights(module)  # type: ignore[misc]  # the transformers class's

    def tie_weights(self, missing_keys: set[str] | None = None, **kwargs: Any) -> None:
        super().tie_weights(missing_keys=missing_keys, **kwargs)  # type: ignore[misc]  # as above
        if missing_keys:
            loading.tie(self, missing_keys)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: Any, *args: Any,
        keep_padding: bool = False, batch_invariant: bool = False, quantization: str | None = None, **kwargs: Any,
    ) -> Any:  # fmt: skip
        """transformers' from_pretrained, for folders written by TF's and Flax's BERTs and for quantized ones too; keep_padding and
        batch_invariant are set on the model.

        quantization: "int8" (on CPUs) or "fp8" (on GPUs) quantizes the model once it is loaded: see bertfast.quantization.
            A folder that holds a quantized model needs no word of it. Raises ValueError for any other name, and for a dtype or a
            device that does not go with it.
        """
        load = super().from_pretrained  # type: ignore[misc]  # the transformers class's
        loaded = loading.from_pretrained(load, cls.family.config, pretrained_model_name_or_path, *args, quantization=quantization, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.keep_padding, model.batch_invariant = keep_padding, batch_invariant
        return loaded


BertPreTrainedModel = theirs.BertPreTrainedModel  # no forward of its own: transformers' class, so that isinstance holds


@overrides_forward
class BertModel(FastBertMixin, theirs.BertModel):
    pass


@overrides_forward
class BertForPreTraining(FastBertMixin, theirs.BertForPreTraining):
    pass


# transformers looks for GenerationMixin among the direct bases.
@overrides_forward
class BertLMHeadModel(FastBertMixin, theirs.BertLMHeadModel, GenerationMixin):
    """generate() is GenerationMixin's; greedy decoding and sampling run in a loop of ours, beam search
    over its steps (bertfast.generation says when)."""

    def _sample(self, *args: Any, **kwargs: Any) -> Any:
        return loop.sample_or_reference(self, BertLMHeadModel, GenerationMixin._sample, *args, **kwargs)

    def _beam_search(self, *args: Any, **kwargs: Any) -> Any:
        return beam_search.beam_search_or_reference(self, BertLMHeadModel, GenerationMixin._beam_search, *args, **kwargs)

    def _prepare_cache_for_generation(self, generation_config: Any, model_kwargs: Any, *args: Any, **kwargs: Any) -> Any:
        check_length(self, generation_config, model_kwargs)
        return super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)


BertForCausalLM = BertLMHeadModel


@overrides_forward
class BertForMaskedLM(FastBertMixin, theirs.BertForMaskedLM):
    pass


@overrides_forward
class BertForNextSentencePrediction(FastBertMixin, theirs.BertForNextSentencePrediction):
    pass


@overrides_forward
class BertForSequenceClassification(FastBertMixin, theirs.BertForSequenceClassification):
    pass


@overrides_forward
class BertForMultipleChoice(FastBertMixin, theirs.BertForMultipleChoice):
    pass


@overrides_forward
class BertForTokenClassification(FastBertMixin, theirs.BertForTokenClassification):
    pass


@overrides_forward
class BertForQuestionAnswering(FastBertMixin, theirs.BertForQuestionAnswering):
    pass


FAST_CLASS: dict[type, type] = {
    getattr(theirs, cls.__name__): cls
    for cls in (
        BertModel, BertForPreTraining, BertLMHeadModel, BertForMaskedLM, BertForNextSentencePrediction,
        BertForSequenceClassification, BertForMultipleChoice, BertForTokenClassification, BertForQuestionAnswering,
    )
}  # fmt: skip
REFERENCE_CLASS: dict[type, type] = {ours: original for original, ours in FAST_CLASS.items()}


def convert_class(module: nn.Module) -> bool:
    """Makes a transformers BERT one of ours, in place: same object, same parameters. False where it is none (or a subclass)."""
    ours = FAST_CLASS.get(type(module))
    if ours is None:
        return False
    set_class(module, ours)
    return True


def set_class(module: nn.Module, cls: type) -> None:
    module.__class__ = cls
    # Found by class: what hidden states and attentions are recorded from, when transformers' forward runs.
    registry = output_capturing._CAN_RECORD_REGISTRY
    registry[module if hasattr(registry, "get") and type(registry) is not dict else str(cls)] = module._can_record_outputs
