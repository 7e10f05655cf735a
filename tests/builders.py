"""Seeded BERTs, ours and transformers' with the same weights, and batches to run them on.

A model as transformers initialises it tests little: LayerNorm weights of 1, biases of 0 and logits near 0 hide a swapped operand.
So every parameter is drawn anew: on the scale of trained checkpoints, or from one normal distribution.

Shape letters: B batch, S padded length.
"""

import copy
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, BertConfig
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
# For tests of what happens around the numbers.
SMALL = {
    "vocab_size": 50, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40,
    "max_position_embeddings": 32, "type_vocab_size": 2,
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


def normal_(model: torch.nn.Module, std: float, seed: int) -> None:
    """Draws every parameter from one normal distribution, around 0: large logits that differ, for tests of tokens and of bits."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(std * torch.randn(parameter.shape, generator=generator))


def pair(
    head: str,
    seed: int = 0,
    *,
    std: float | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    **changes: Any,
) -> tuple[Any, Any]:
    """transformers' model and ours, in eval mode, with equal weights in storage of their own: realistic ones, or normal ones of `std`."""
    settings = bert_config(**changes)
    original = getattr(theirs, head)(copy.deepcopy(settings)).eval()
    if std is None:
        realistic_(original, seed)
    else:
        normal_(original, std, seed)
    fast = getattr(ours, head)(settings).eval()
    fast.load_state_dict(original.state_dict())
    return original.to(device, dtype), fast.to(device, dtype)


def small_model(head: str, **changes: Any) -> Any:
    """Our model alone, with the geometry SMALL and normal weights."""
    return pair(head, std=0.3, **{**SMALL, **changes})[1]


def save_with_tokenizer(cls: Any, tokenizer_folder: Path, folder: Path, model_arguments: dict[str, Any], **changes: Any) -> Path:
    """A small seeded model and that tokenizer, as save_pretrained writes them: for tests of what is around a model."""
    config = BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, max_position_embeddings=64, initializer_range=0.3,
        **changes,
    )  # fmt: skip
    torch.manual_seed(0)
    cls(config, **model_arguments).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer_folder).save_pretrained(folder)
    return folder


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


def batch_of(mask: list[list[int]], device: torch.device, vocab_size: int) -> dict[str, Tensor]:
    """Arguments of a call under that mask, [B, S]: ids, token types 0 and 1, the mask. Draws from torch's seed."""
    attention_mask = torch.tensor(mask, device=device)
    ids = torch.randint(vocab_size, attention_mask.shape, device=device)
    return {"input_ids": ids, "attention_mask": attention_mask, "token_type_ids": torch.randint(2, ids.shape, device=device)}


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
