"""What becomes of padding: the decision for every combination of facts, and the facts of calls."""

import itertools

import pytest
import torch

import builders
from bertfast.batch.inputs import read_inputs
from bertfast.batch.packed import OutputNeeds
from bertfast.batch.padding import Padding, PaddingFacts, choose_padding, padding_facts

# One pattern for each line, in the order of PaddingFacts' fields (- matches both); the decision; whether padded cells are computed. The
# last is not said where nothing is padded.
TABLE = """
needs_mask padded padded_keys keep_padding empty_row padded_first_column causal eager
1          0      -           -            -         -                   -      -      MASKED
1          1      -           0            0         0                   -      -      MASKED  filled
1          1      -           1            -         -                   -      -      MASKED  computed
1          1      -           0            1         -                   -      -      MASKED  computed
1          1      -           0            0         1                   -      -      MASKED  computed
0          1      -           0            0         0                   -      -      DROPPED filled
0          1      -           1            -         -                   1      -      MASKED  computed
0          1      -           0            1         -                   1      -      MASKED  computed
0          1      -           0            0         1                   1      -      MASKED  computed
0          1      -           -            1         -                   0      1      MASKED  computed
0          1      -           -            1         -                   0      0      KEPT    computed
0          1      -           1            0         -                   0      -      KEPT    computed
0          1      -           0            0         1                   0      -      KEPT    computed
0          0      1           1            -         -                   1      -      MASKED
0          0      1           1            -         -                   0      -      KEPT
0          0      1           0            -         -                   -      -      KEPT
0          0      0           -            -         -                   -      -      KEPT
"""
NAMES, *LINES = [line.split() for line in TABLE.strip().splitlines()]


def test_the_table_names_the_facts_in_their_order():
    assert tuple(NAMES) == PaddingFacts._fields


@pytest.mark.parametrize("values", list(itertools.product((False, True), repeat=len(NAMES))), ids=lambda v: "".join(map(str, map(int, v))))
def test_every_combination_of_facts(values: tuple[bool, ...]) -> None:
    matching = [line for line in LINES if all(p == "-" or bool(int(p)) == v for p, v in zip(line, values, strict=False))]
    assert len(matching) == 1, "one line of the table for each combination"
    decision, *computed = matching[0][len(NAMES) :]
    facts = PaddingFacts(*values)
    assert choose_padding(facts) is Padding[decision]
    if facts.padded:
        assert [("computed" if facts.computed else "filled")] == computed


def facts_of(needs: OutputNeeds | None = None, past: int = 0, mask: list[list[int]] | None = None, **changes: object) -> set[str]:
    """The facts that are true of a call on two sequences of three new tokens."""
    config = {name: changes.pop(name) for name in ("is_decoder", "add_cross_attention", "attn_implementation") if name in changes}
    model = builders.pair("BertModel", **config)[1]
    arguments = {"input_ids": torch.ones(2, 3, dtype=torch.int64), **changes}
    if mask is not None:
        arguments["attention_mask"] = torch.tensor(mask)
    facts = padding_facts(read_inputs(arguments, model, past), needs or OutputNeeds())
    return {name for name in NAMES if getattr(facts, name)}


HEADS, HIDDEN = builders.TINY["num_attention_heads"], builders.TINY["hidden_size"]
FULL, RIGHT, LEFT, EMPTY = ([[1, 1, 1], row] for row in ([1, 1, 1], [1, 1, 0], [0, 1, 1], [0, 0, 0]))
PADDED = {"padded", "padded_keys"}
CROSS = {"is_decoder": True, "add_cross_attention": True, "encoder_hidden_states": torch.zeros(2, 4, HIDDEN)}
UNSEEN = torch.tensor([[1, 1, 1, 1], [0, 0, 0, 0]])


@pytest.mark.parametrize(
    ("expected", "call"),
    [
        (set(), {}),
        (set(), {"mask": FULL}),
        (PADDED, {"mask": RIGHT}),
        (PADDED, {"mask": LEFT}),
        (PADDED | {"padded_first_column"}, {"mask": LEFT, "needs": OutputNeeds(pooled=True)}),
        (PADDED, {"mask": RIGHT, "needs": OutputNeeds(pooled=True)}),
        (PADDED | {"empty_row"}, {"mask": EMPTY}),
        ({"keep_padding"}, {"needs": OutputNeeds(keep_padding=True)}),
        ({"causal"}, {"is_decoder": True}),
        ({"eager"}, {"attn_implementation": "eager"}),
        ({"needs_mask"}, {"needs": OutputNeeds(probabilities=True)}),
        ({"needs_mask"}, {"needs": OutputNeeds(differentiable=True)}),
        ({"needs_mask"}, {"head_mask": torch.ones(HEADS)}),
        ({"needs_mask"}, {"attention_mask": torch.ones(2, 3, 3)}),
        ({"needs_mask"}, {"attention_mask": torch.zeros(2, 1, 3, 3)}),
        ({"causal"}, {"is_decoder": True, "past": 2, "needs": OutputNeeds(differentiable=True)}),
        ({"causal", "padded_keys"}, {"is_decoder": True, "past": 2, "mask": [[1] * 5, [0, 1, 1, 1, 1]]}),
        ({"causal"} | PADDED, {"is_decoder": True, "past": 2, "mask": [[1] * 5, [1, 1, 1, 1, 0]]}),
        ({"causal", "empty_row"} | PADDED, {"is_decoder": True, "past": 2, "mask": [[1] * 5, [1, 1, 0, 0, 0]]}),
        ({"causal"}, CROSS),
        ({"causal"}, {**CROSS, "encoder_attention_mask": UNSEEN}),
        ({"causal", "eager", "needs_mask"}, {**CROSS, "encoder_attention_mask": UNSEEN, "attn_implementation": "eager"}),
        ({"causal", "needs_mask"}, {**CROSS, "encoder_attention_mask": torch.zeros(2, 1, 3, 4)}),
    ],
)
def test_the_facts_of_a_call(expected: set[str], call: dict[str, object]) -> None:
    assert facts_of(**call) == expected  # type: ignore[arg-type]  # by name
