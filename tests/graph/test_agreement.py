"""Every head against transformers in float32: the same numbers at attended positions, and everywhere with keep_padding.

And against float64: no further from it than transformers' float32.
"""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.bert import modeling_bert as theirs

import bertfast
import builders
from compare import assert_agree, attended, tensors

BATCHES = [  # B, S, mask: each kind of batch once
    (1, 1, "none"),
    (1, 9, "full"),
    (5, 1, "full"),
    (4, 23, "right"),
    (4, 23, "left"),
    (3, 40, "none"),
    (4, 37, "unequal"),
    (4, 24, "holes"),
]


@pytest.mark.parametrize(("B", "S", "kind"), BATCHES)
@pytest.mark.parametrize("head", builders.HEADS)
def test_heads_at_the_width_of_bert_base(head: str, B: int, S: int, kind: str, base_pairs: Any) -> None:
    agree(*base_pairs(head), builders.batch(head, base_pairs(head)[0], B, S, kind, choices=2))


@pytest.mark.parametrize(("B", "S", "kind"), [(2, 512, "right"), (1, 512, "none")])
@pytest.mark.parametrize("head", ["BertModel", "BertForQuestionAnswering"])
def test_the_longest_input(head: str, B: int, S: int, kind: str, base_pairs: Any) -> None:
    agree(*base_pairs(head), builders.batch(head, base_pairs(head)[0], B, S, kind))


def agree(expected_of: Any, fast: Any, arguments: dict[str, Any]) -> None:
    """At attended positions; with keep_padding, everywhere."""
    with torch.no_grad():
        expected = expected_of(**arguments)
        for keep_padding in (False, True):
            fast.keep_padding = keep_padding
            assert_agree(fast(**arguments), expected, None if keep_padding else arguments.get("attention_mask"))


@pytest.fixture(scope="module")
def base_pairs() -> Any:
    """Both models of a head, built once. Only the last head's stay in memory: the tests run head by head."""
    last: dict[str, Any] = {}

    def get(head: str) -> Any:
        if head not in last:
            last.clear()
            last[head] = builders.pair(head, **builders.BASE)
        return last[head]

    return get


def test_bert_base_at_its_full_depth() -> None:
    """Rounding errors of twelve layers add up, and stay within the limit."""
    expected_of, fast = builders.pair("BertModel", **{**builders.BASE, "num_hidden_layers": 12})
    agree(expected_of, fast, builders.batch("BertModel", fast, 3, 40, "right"))


SENTENCES = [
    "A man is eating pasta.",
    "Someone in a gorilla costume is playing a set of drums, and nobody in the audience seems to mind it at all.",
    "No.",
    "The length of a batch is that of its longest sentence; everything else in it is padding, which nobody reads.",
]


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("texts", [SENTENCES, SENTENCES[:1], SENTENCES * 3, [" ".join(SENTENCES * 9)]], ids=["4", "1", "12", "long"])
def test_minilm(minilm_dir: Any, texts: list[str], side: str) -> None:
    expected_of = theirs.BertModel.from_pretrained(minilm_dir).eval()
    fast = bertfast.BertModel.from_pretrained(minilm_dir).eval()
    tokenizer = bertfast.BertTokenizerFast.from_pretrained(minilm_dir, padding_side=side)
    arguments = dict(tokenizer(texts, padding=True, truncation=True, max_length=512, return_tensors="pt"))
    agree(expected_of, fast, {**arguments, "output_hidden_states": True})


@pytest.mark.parametrize("head", builders.HEADS[1:])
def test_heads_on_minilm(minilm_dir: Any, head: str) -> None:
    """A head of realistic random weights on a trained encoder."""
    expected_of = getattr(theirs, head).from_pretrained(minilm_dir).eval()
    builders.realistic_(torch.nn.ModuleList(m for name, m in expected_of.named_children() if name != "bert"), seed=1)
    expected_of.tie_weights()
    fast = bertfast.optimize(copy.deepcopy(expected_of))
    tokenizer = bertfast.BertTokenizerFast.from_pretrained(minilm_dir)
    arguments = dict(tokenizer(SENTENCES, padding=True, return_tensors="pt"))
    if head == "BertForMultipleChoice":
        arguments = {name: t.view(2, 2, -1) for name, t in arguments.items()}
    agree(expected_of, fast, arguments)


INPUTS = 20  # errors of one input scatter: transformers' two attention functions differ by half
SLACK = 1.1


@pytest.mark.parametrize("head", builders.HEADS)
def test_no_further_from_float64_than_transformers(head: str) -> None:
    """Root mean square of the error over 20 inputs, for each output of the head."""
    theirs32, ours32 = builders.pair(head, **{**builders.BASE, "vocab_size": 501})
    truth = copy.deepcopy(theirs32).double()
    kinds = ("none", "right", "left", "holes")
    squares: dict[str, list[Tensor]] = {}
    for i in range(INPUTS):
        arguments = builders.batch(head, ours32, 1 + i % 3, 3 + 2 * i, kinds[i % 4], choices=2)
        with torch.no_grad():
            outputs = [tensors(m(**arguments)) for m in (ours32, theirs32, truth)]
        for name, exact in outputs[2].items():
            errors = (attended(out[name].double() - exact, arguments.get("attention_mask")) for out in outputs[:2])
            squares.setdefault(name, []).append(torch.stack([e.square().mean() for e in errors]))
    for name, pairs in squares.items():
        actual, allowed = torch.stack(pairs).mean(dim=0).sqrt().tolist()
        assert 0 < actual <= SLACK * allowed, f"{name}: RMS error {actual:.2e}, transformers' {allowed:.2e}"
