"""BERT under transformers' names, on fused CPU and GPU kernels.

Importing this module imports neither torch nor transformers: each name is looked up on first use, as transformers
itself does it. So `import bertfast` costs nothing where only the command line's --help is wanted.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import BertConfig as BertConfig
    from transformers import BertTokenizer as BertTokenizer
    from transformers import BertTokenizerFast as BertTokenizerFast
    from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions as BaseModelOutputWithPastAndCrossAttentions
    from transformers.modeling_outputs import (
        BaseModelOutputWithPoolingAndCrossAttentions as BaseModelOutputWithPoolingAndCrossAttentions,
    )
    from transformers.modeling_outputs import CausalLMOutputWithCrossAttentions as CausalLMOutputWithCrossAttentions
    from transformers.modeling_outputs import MaskedLMOutput as MaskedLMOutput
    from transformers.modeling_outputs import MultipleChoiceModelOutput as MultipleChoiceModelOutput
    from transformers.modeling_outputs import NextSentencePredictorOutput as NextSentencePredictorOutput
    from transformers.modeling_outputs import QuestionAnsweringModelOutput as QuestionAnsweringModelOutput
    from transformers.modeling_outputs import SequenceClassifierOutput as SequenceClassifierOutput
    from transformers.modeling_outputs import TokenClassifierOutput as TokenClassifierOutput
    from transformers.models.bert.modeling_bert import BertForPreTrainingOutput as BertForPreTrainingOutput

    from bertfast.modeling import BertForMaskedLM as BertForMaskedLM
    from bertfast.modeling import BertForMultipleChoice as BertForMultipleChoice
    from bertfast.modeling import BertForNextSentencePrediction as BertForNextSentencePrediction
    from bertfast.modeling import BertForPreTraining as BertForPreTraining
    from bertfast.modeling import BertForQuestionAnswering as BertForQuestionAnswering
    from bertfast.modeling import BertForSequenceClassification as BertForSequenceClassification
    from bertfast.modeling import BertForTokenClassification as BertForTokenClassification
    from bertfast.modeling import BertLMHeadModel as BertLMHeadModel
    from bertfast.modeling import BertModel as BertModel
    from bertfast.modeling import BertPreTrainedModel as BertPreTrainedModel
    from bertfast.optimize import optimize as optimize
    from bertfast.optimize import register as register
    from bertfast.optimize import restore as restore
    from bertfast.runtime.huge_pages import huge_pages as huge_pages
    from bertfast.runtime.threads import get_num_threads as get_num_threads
    from bertfast.runtime.threads import set_num_threads as set_num_threads

    BertForCausalLM = BertLMHeadModel
    __version__: str

_NAMES_OF = {
    "transformers": ["BertConfig", "BertTokenizer", "BertTokenizerFast"],
    "transformers.modeling_outputs": [
        "BaseModelOutputWithPastAndCrossAttentions",
        "BaseModelOutputWithPoolingAndCrossAttentions",
        "CausalLMOutputWithCrossAttentions",
        "MaskedLMOutput",
        "MultipleChoiceModelOutput",
        "NextSentencePredictorOutput",
        "QuestionAnsweringModelOutput",
        "SequenceClassifierOutput",
        "TokenClassifierOutput",
    ],
    "transformers.models.bert.modeling_bert": ["BertForPreTrainingOutput"],
    "bertfast.modeling": [
        "BertForMaskedLM",
        "BertForMultipleChoice",
        "BertForNextSentencePrediction",
        "BertForPreTraining",
        "BertForQuestionAnswering",
        "BertForSequenceClassification",
        "BertForTokenClassification",
        "BertLMHeadModel",
        "BertModel",
        "BertPreTrainedModel",
    ],
    "bertfast.optimize": ["optimize", "register", "restore"],
    "bertfast.runtime.huge_pages": ["huge_pages"],
    "bertfast.runtime.threads": ["get_num_threads", "set_num_threads"],
}
_HOME = {name: (module, name) for module, names in _NAMES_OF.items() for name in names}
_HOME["BertForCausalLM"] = ("bertfast.modeling", "BertLMHeadModel")  # one class under two names

__all__ = sorted([*_HOME, "__version__"])


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        value: object = version("bertfast")
    elif name in _HOME:
        module, attribute = _HOME[name]
        value = getattr(import_module(module), attribute)
    else:
        raise AttributeError(f"module 'bertfast' has no attribute {name!r}")
    globals()[name] = value  # the next look-up does not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """Keeps `bertfast.optimize` the function: Python would bind the submodule of that name here whenever it is imported."""

    def __setattr__(self, name: str, value: object) -> None:
        if name != "optimize" or not isinstance(value, ModuleType):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
