"""Seeded BERTs of realistic scale, ours and transformers' with the same weights, and batches to run them on.

A model as transformers initialises it tests little: LayerNorm weights of 1, biases of 0 and logits near 0 forgive a swapped
operand. So every parameter is drawn anew, on the scale that trained checkpoints have.

Shape letters: B batch, S padded length.
"""

import copy
import math
from typing import Any

import torch
from torch import Tensor
from transformers import BertConfig
from transformers.models.bert import modeling_bert as theirs

from bertfast import modeling as ours

HEADS = (
    "BertModel",
    "BertForPreTraining",
    "BertLMHeadModel",
    "BertForMaskedLM",
    "BertForNextSentencePrediction",
    "BertForSequenceClassification",
    "BertForMultipleChoice",
    "BertForTokenClassification",
    "BertForQuestionAnswering",
)
DECODERS = ("BertModel", "BertLMHeadModel", "BertForMaskedLM")  # the heads that take encoder_hidden_states

# No power of two anywhere, so that no kernel is only ever given whole tiles.
TINY = {
    "vocab_size": 101, "hidden_size": 36, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 61,
    "max_position_embeddings": 40, "type_vocab_size": 3,
}  # fmt: skip
# The widths and the positions of bert-base. Two layers: an error of a kernel shows in the first, and a test run has minutes.
BASE = {
    "vocab_size": 3001, "hidden_size": 768, "num_hidden_layers": 2, "num_attention_heads": 12, "intermediate_size": 3072,
    "max_position_embeddings": 512, "type_vocab_size": 2,
}  # fmt: skip


def bert_config(geometry: dict[str, Any] = TINY, **changes: Any) -> BertConfig:
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    num_labels = {} if "problem_type" in changes or "num_labels" in changes else {"num_labels": 2}
    return BertConfig(**{**geometry, **dropout, **num_labels, "use_cache": False, **changes})


def realistic_(model: torch.nn.Module, seed: int) -> None:
    """Draws every parameter: matrices of variance 1 / inputs, LayerNorm weights around 1, biases that are not 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # a tied parameter comes once
            noise = torch.randn(parameter.shape, generator=generator)
            if "LayerNorm.weight" in name:
                parameter.copy_(1 + 0.2 * noise)
            elif parameter.dim() == 1:
                parameter.copy_(0.1 * noise)
            elif "embeddings" in name:
                parameter.copy_(noise / 4 / parameter.shape[1] ** 0.25)  # as far as trained ones: 0.05 at H=768
            else:
                parameter.copy_(noise / parameter.shape[1] ** 0.5)


def pair(head: str, seed: int = 0, **changes: Any) -> tuple[Any, Any]:
    """transformers' model and ours, in eval mode, with equal weights in storage of their own."""
    settings = bert_config(**changes)
    original = getattr(theirs, head)(copy.deepcopy(settings)).eval()
    realistic_(original, seed)
    fast = getattr(ours, head)(settings).eval()
    fast.load_state_dict(original.state_dict())
    return original, fast


MASKS = ("none", "full", "right", "left", "unequal", "holes", "whole row")


def mask(kind: str, B: int, S: int) -> Tensor | None:
    """[B, S] int64, 1 real. right / left: the side that is padded; unequal: rows of length S, 1, S, 1 ...;
    holes: padding in between; whole row: the last row has no token at all."""
    if kind == "none":
        return None
    lengths = torch.full((B,), S)
    if kind in ("right", "left"):
        lengths = 1 + torch.arange(B) * 7 % S
        lengths[0] = S
    elif kind == "unequal":
        lengths[1::2] = 1
    elif kind == "whole row":
        lengths[-1] = 0
    out = (torch.arange(S) < lengths[:, None]).long()
    if kind == "left":
        out = out.flip(1)
    if kind == "holes":
        out[:, 2::3] = 0
        out[-1, S // 2 :] = 0
    return out


def batch(head: str, model: Any, B: int, S: int, kind: str = "right", choices: int = 3) -> dict[str, Any]:
    """Arguments of a call: ids, token types and a mask; three choices a row for BertForMultipleChoice. Draws from torch's seed."""
    shape = (B, choices, S) if head == "BertForMultipleChoice" else (B, S)
    real = mask(kind, math.prod(shape[:-1]), S)
    arguments = {
        "input_ids": torch.randint(0, model.config.vocab_size, shape),
        "token_type_ids": torch.randint(0, model.config.type_vocab_size, shape),
    }
    if real is not None:
        arguments["attention_mask"] = real.view(shape)
    return arguments


def labels(head: str, model: Any, arguments: dict[str, Any]) -> dict[str, Tensor]:
    """What makes a head return a loss: for every position, padded ones included, as a careless collator leaves them."""
    ids = arguments["input_ids"] if "input_ids" in arguments else arguments["inputs_embeds"][..., 0]
    B, S = ids.shape[0], ids.shape[-1]
    tokens = torch.randint(0, model.config.vocab_size, (B, S))
    if head == "BertModel":
        return {}
    if head == "BertForPreTraining":
        return {"labels": tokens, "next_sentence_label": torch.randint(0, 2, (B,))}
    if head in ("BertLMHeadModel", "BertForMaskedLM"):
        return {"labels": tokens}
    if head == "BertForTokenClassification":
        return {"labels": torch.randint(0, model.config.num_labels, (B, S))}
    if head == "BertForQuestionAnswering":
        return {"start_positions": torch.randint(0, S, (B,)), "end_positions": torch.randint(0, S + 3, (B,))}
    return {"labels": torch.randint(0, ids.shape[1] if head == "BertForMultipleChoice" else 2, (B,))}
