"""Every head with every argument that transformers' BERT documents, against transformers, on tiny models of realistic scale."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask
from transformers.utils import output_capturing

import builders
from accuracy import assert_as_accurate
from compare import assert_agree, attended, tensors

pytestmark = pytest.mark.usefixtures("one_thread")

B, S = 4, 13


def agree(head: str, arguments: dict[str, Any], real: Tensor | None, **config: Any) -> Any:
    """One call of both models; returns what ours gave."""
    expected_of, fast = builders.pair(head, **{**builders.TINY, **config})
    fast.keep_padding = real is None
    with torch.no_grad():
        actual = fast(**arguments)
        assert_agree(actual, expected_of(**arguments), real)
    return actual


@pytest.mark.parametrize("head", builders.HEADS)
class TestMasks:
    @pytest.mark.parametrize("keep_padding", [False, True], ids=["packed", "keep_padding"])
    @pytest.mark.parametrize("kind", builders.MASKS)
    @pytest.mark.parametrize("attention", ["sdpa", "eager"])
    def test_two_dimensions(self, head: str, attention: str, kind: str, keep_padding: bool) -> None:
        expected_of, fast = builders.pair(head, attn_implementation=attention)
        fast.keep_padding = keep_padding
        arguments = builders.batch(head, fast, B, S, kind)
        with torch.no_grad():
            actual, expected = fast(**arguments, output_hidden_states=True), expected_of(**arguments, output_hidden_states=True)
        # A row without any token has no attended position: it is computed as transformers does, and compared whole.
        assert_agree(actual, expected, None if keep_padding or kind == "whole row" else arguments.get("attention_mask"))

    @pytest.mark.parametrize("kind", builders.MASKS)
    @pytest.mark.parametrize("attention", ["sdpa", "eager"])
    def test_causal(self, head: str, attention: str, kind: str) -> None:
        expected_of, fast = builders.pair(head, attn_implementation=attention, is_decoder=True)
        arguments = builders.batch(head, fast, B, S, kind)
        for keep_padding in (False, True):
            fast.keep_padding = keep_padding
            with torch.no_grad():
                real = None if keep_padding or kind == "whole row" else arguments.get("attention_mask")
                assert_agree(fast(**arguments), expected_of(**arguments), real)

    @pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int32, torch.float32, torch.float64, torch.bfloat16])
    def test_any_dtype(self, head: str, dtype: torch.dtype) -> None:
        arguments = builders.batch(head, builders.pair(head)[1], B, S, "holes")
        arguments["attention_mask"] = arguments["attention_mask"].to(dtype)
        agree(head, arguments, arguments["attention_mask"])

    @pytest.mark.parametrize("attention", ["sdpa", "eager"])
    def test_four_dimensions_added(self, head: str, attention: str) -> None:
        arguments = builders.batch(head, builders.pair(head)[1], B, S, "none")
        arguments["attention_mask"] = torch.randn(arguments["input_ids"].shape[:-1].numel(), 1, S, S)
        if head != "BertForMultipleChoice":  # which folds a mask to two dimensions
            agree(head, arguments, None, attn_implementation=attention)
            agree(head, arguments, None, attn_implementation=attention, is_decoder=True)

    @pytest.mark.parametrize("decoder", [False, True], ids=["encoder", "decoder"])
    @pytest.mark.parametrize("seen", ["random", "causal"])
    def test_four_and_three_dimensions_true_sees(self, head: str, seen: str, decoder: bool) -> None:
        if head == "BertForMultipleChoice":
            pytest.skip("folds a mask to two dimensions, in transformers too")
        visible = torch.ones(S, S).tril().bool().expand(B, 1, S, S) if seen == "causal" else torch.rand(B, 1, S, S) < 0.7
        arguments = builders.batch(head, builders.pair(head)[1], B, S, "none")
        agree(head, {**arguments, "attention_mask": visible}, None, is_decoder=decoder)
        expected_of, fast = builders.pair(head, is_decoder=decoder)
        with torch.no_grad():  # transformers 5 takes no mask of three dimensions: it means what the one of four does
            expected = expected_of(**arguments, attention_mask=visible)
            assert_agree(fast(**arguments, attention_mask=visible[:, 0].long()), expected)


@pytest.mark.parametrize("head", builders.HEADS)
class TestInputs:
    def test_embeddings(self, head: str) -> None:
        arguments = builders.batch(head, builders.pair(head)[1], B, S, "right")
        arguments["inputs_embeds"] = torch.randn(*arguments.pop("input_ids").shape, builders.TINY["hidden_size"])
        agree(head, arguments, arguments["attention_mask"])
        agree(head, arguments, None)

    @pytest.mark.parametrize("shape", ["each", "shared"])
    def test_positions(self, head: str, shape: str) -> None:
        arguments = builders.batch(head, builders.pair(head)[1], B, S, "left")
        positions = torch.randint(0, builders.TINY["max_position_embeddings"], arguments["input_ids"].shape)
        arguments["position_ids"] = positions if shape == "each" else positions.view(-1, S)[:1]
        if head == "BertForMultipleChoice" and shape == "shared":
            arguments["position_ids"] = positions.view(-1, S)[:1][None]
        agree(head, arguments, arguments["attention_mask"])
        agree(head, arguments, None)

    def test_ids_alone_and_by_position(self, head: str) -> None:
        expected_of, fast = builders.pair(head)
        arguments = builders.batch(head, fast, B, S, "right")
        with torch.no_grad():
            assert_agree(fast(arguments["input_ids"]), expected_of(arguments["input_ids"]))
            given = arguments["input_ids"], arguments["attention_mask"], arguments["token_type_ids"]
            assert_agree(fast(*given), expected_of(*given), given[1])

    def test_int32_ids_and_strided_ones(self, head: str) -> None:
        arguments = builders.batch(head, builders.pair(head)[1], B, S, "right")
        for name in ("input_ids", "token_type_ids"):
            wide = arguments[name].repeat_interleave(2, dim=-1).int()
            arguments[name] = wide[..., ::2]
        agree(head, arguments, arguments["attention_mask"])


@pytest.mark.parametrize("head", builders.HEADS)
class TestOutputs:
    @pytest.mark.parametrize("given", ["no labels", "labels"])
    def test_tuples(self, head: str, given: str) -> None:
        expected_of, fast = builders.pair(head)
        arguments = builders.batch(head, fast, B, S, "right")
        arguments.update(builders.labels(head, fast, arguments) if given == "labels" else {})
        real = None if given == "labels" else arguments["attention_mask"]
        fast.keep_padding = given == "labels"
        with torch.no_grad():
            for extra in ({}, {"output_hidden_states": True}):
                assert_agree(fast(**arguments, **extra, return_dict=False), expected_of(**arguments, **extra, return_dict=False), real)
            expected_of.config.return_dict = fast.config.return_dict = False
            assert_agree(fast(**arguments), expected_of(**arguments), real)

    @pytest.mark.parametrize("wanted", [True, False, [0, -1], [1], (0, 2), -1, 1, [7], []])
    def test_hidden_states(self, head: str, wanted: Any) -> None:
        if not isinstance(wanted, bool) and not hasattr(output_capturing, "selected_hidden_states"):
            pytest.skip("this transformers returns all hidden states whatever the list says")
        arguments = builders.batch(head, builders.pair(head)[1], B, S, "right")
        agree(head, {**arguments, "output_hidden_states": wanted}, arguments["attention_mask"])
        agree(head, {**arguments, "output_hidden_states": wanted}, None)

    def test_asked_for_by_the_config(self, head: str) -> None:
        arguments = builders.batch(head, builders.pair(head)[1], B, S, "right")
        asked = {"output_hidden_states": True, "output_attentions": True, "attn_implementation": "eager"}
        agree(head, arguments, arguments["attention_mask"], **asked)

    # Not left and causal: its padded rows see nothing, and there the two implementations differ.
    @pytest.mark.parametrize(("kind", "decoder"), [*((k, False) for k in builders.MASKS[:-1]), ("none", True), ("right", True)])
    def test_attentions_are_real_whatever_the_config_names(self, head: str, kind: str, decoder: bool) -> None:
        expected_of, _ = builders.pair(head, attn_implementation="eager", is_decoder=decoder)
        _, fast = builders.pair(head, attn_implementation="sdpa", is_decoder=decoder)
        arguments = builders.batch(head, fast, B, S, kind)
        with torch.no_grad():
            expected = expected_of(**arguments, output_attentions=True)
            actual = fast(**arguments, output_attentions=True)
            assert_agree(actual, expected, arguments.get("attention_mask"))
            assert len(actual.attentions) == builders.TINY["num_hidden_layers"]
            fast.keep_padding = True
            assert_agree(fast(**arguments, output_attentions=True), expected)

    @pytest.mark.parametrize("kind", builders.MASKS)
    def test_losses_over_padding(self, head: str, kind: str) -> None:
        """Labels at padded positions count in transformers, so they do here: the loss is the same."""
        expected_of, fast = builders.pair(head)
        arguments = builders.batch(head, fast, B, S, kind)
        arguments.update(builders.labels(head, fast, arguments))
        with torch.no_grad():
            actual, expected = fast(**arguments), expected_of(**arguments)
        assert_agree(actual, expected, None if kind == "whole row" else arguments.get("attention_mask"))

    def test_padding_comes_back_blank(self, head: str) -> None:
        """With keep_padding=False: zeros, and -1e4 where an argmax over the row follows; only where nothing asks for those positions."""
        _, fast = builders.pair(head)
        fast.keep_padding = False
        arguments = builders.batch(head, fast, B, S, "right")
        padded = arguments["attention_mask"].view(-1, S).eq(0)
        with torch.no_grad():
            out = fast(**arguments, output_hidden_states=True, output_attentions=True)
        for name, x in tensors(out).items():
            if x.shape[:2] == padded.shape and "hidden_states.0" not in name:
                blank = -1e4 if name in ("start_logits", "end_logits") else 0.0
                assert x[padded].eq(blank).all(), name
                assert x[~padded].ne(blank).any(), name
            if name.startswith("attentions.") and x.dim() == 4:
                assert x.transpose(1, 2)[padded].eq(0).all(), name


@pytest.mark.parametrize("labels", [-100, 5])
@pytest.mark.parametrize("head", ["BertForMaskedLM", "BertLMHeadModel", "BertForTokenClassification", "BertForPreTraining"])
def test_labels_of_padding_decide_whether_it_is_computed(head: str, labels: int) -> None:
    expected_of, fast = builders.pair(head, num_labels=7)
    fast.keep_padding = False
    arguments = builders.batch(head, fast, B, S, "right")
    arguments.update(builders.labels(head, fast, arguments))
    padded = arguments["attention_mask"].eq(0)
    arguments["labels"] = arguments["labels"].masked_fill(padded, labels)
    with torch.no_grad():
        actual, expected = fast(**arguments), expected_of(**arguments)
    assert_agree(actual, expected, arguments["attention_mask"])
    logits = actual["prediction_logits" if head == "BertForPreTraining" else "logits"]
    assert logits[padded].eq(0).all() == (labels == -100)


PROBLEMS = ["regression", "single_label_classification", "multi_label_classification"]


@pytest.mark.parametrize(("num_labels", "problem"), [(1, None), (1, "regression"), (3, None), *((3, problem) for problem in PROBLEMS)])
@pytest.mark.parametrize("floating", [False, True], ids=["int", "float"])
def test_problem_types(num_labels: int, problem: str | None, floating: bool) -> None:
    expected_of, fast = builders.pair("BertForSequenceClassification", num_labels=num_labels, problem_type=problem)
    arguments = builders.batch("BertForSequenceClassification", fast, B, S, "right")
    wide = num_labels > 1 and (problem in ("regression", "multi_label_classification") or (problem is None and floating))
    labels = torch.rand(B, num_labels) if wide else torch.randint(0, num_labels, (B,))
    arguments["labels"] = labels.float() if floating else labels.long()
    results = []
    for model in (fast, expected_of):
        try:
            with torch.no_grad():
                results.append(model(**arguments))
        except (RuntimeError, ValueError) as error:  # a label dtype that torch's loss does not take
            results.append(str(error))
        results.append(model.config.problem_type)  # transformers notes what it concluded
    assert results[1] == results[3]
    if isinstance(results[2], str):
        assert results[0] == results[2], "not the same error"
    else:
        assert_agree(results[0], results[2])


@pytest.mark.parametrize("head", builders.DECODERS)
class TestCrossAttention:
    @pytest.mark.parametrize("attention", ["sdpa", "eager"])
    @pytest.mark.parametrize("encoder_kind", builders.MASKS)
    @pytest.mark.parametrize("kind", ["none", "right", "left"])
    def test_agrees(self, head: str, kind: str, encoder_kind: str, attention: str) -> None:
        arguments = self.arguments(head, kind, encoder_kind)
        made = {"is_decoder": True, "add_cross_attention": True, "attn_implementation": attention}
        agree(head, arguments, arguments.get("attention_mask"), **made)
        agree(head, arguments, None, **made)

    def test_masks_of_four_dimensions(self, head: str) -> None:
        arguments = self.arguments(head, "right", "none")
        for visible in (torch.rand(B, 1, S, 7) < 0.8, torch.randn(B, 1, S, 7)):
            arguments["encoder_attention_mask"] = visible
            agree(head, arguments, arguments["attention_mask"], is_decoder=True, add_cross_attention=True)

    def test_attentions(self, head: str) -> None:
        arguments = self.arguments(head, "right", "right")
        made = {"is_decoder": True, "add_cross_attention": True}
        expected_of, _ = builders.pair(head, attn_implementation="eager", **made)
        _, fast = builders.pair(head, **made)
        with torch.no_grad():
            actual, expected = (m(**arguments, output_attentions=True) for m in (fast, expected_of))
        assert_agree(actual, expected, arguments["attention_mask"])

    def test_an_encoder_ignores_the_states(self, head: str) -> None:
        arguments = self.arguments(head, "right", "right")
        agree(head, arguments, arguments["attention_mask"])

    def arguments(self, head: str, kind: str, encoder_kind: str) -> dict[str, Any]:
        arguments = builders.batch(head, builders.pair(head)[1], B, S, kind)
        arguments["encoder_hidden_states"] = torch.randn(B, 7, builders.TINY["hidden_size"])
        if encoder_kind != "none":
            arguments["encoder_attention_mask"] = builders.mask(encoder_kind, B, 7)
        return arguments


@pytest.mark.parametrize("kind", ["none", "right", "left"])
@pytest.mark.parametrize(
    "keep",
    [0, 1, 3, S, S + 4, torch.tensor([0, 3, -1]), torch.tensor([2])],
    ids=["all", "1", "3", "S", "more", "three columns", "one column"],
)
def test_logits_to_keep(keep: Any, kind: str) -> None:
    expected_of, fast = builders.pair("BertLMHeadModel", is_decoder=True)
    arguments = builders.batch("BertLMHeadModel", fast, B, S, kind)
    whole = torch.ones(B, S) if kind == "none" else arguments["attention_mask"]
    real = (whole[:, -keep:] if keep else whole) if isinstance(keep, int) else whole[:, keep]
    with torch.no_grad():
        expected = expected_of(**arguments, logits_to_keep=keep)
        assert_agree(fast(**arguments, logits_to_keep=keep), expected, real)
        fast.keep_padding = True
        assert_agree(fast(**arguments, logits_to_keep=keep), expected)


@pytest.mark.parametrize("head", builders.HEADS)
@pytest.mark.parametrize("shape", ["heads", "layers and heads"])
def test_head_mask(head: str, shape: str, request: pytest.FixtureRequest) -> None:
    """Against its definition: transformers' own eager attention with the probabilities of each head multiplied."""
    L, N = builders.TINY["num_hidden_layers"], builders.TINY["num_attention_heads"]
    scale = torch.rand(L, N) if shape == "layers and heads" else torch.rand(N).expand(L, N)

    def attention(module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any) -> Any:
        scores = query @ key.transpose(2, 3) * query.shape[-1] ** -0.5
        scores = scores if attention_mask is None else scores + attention_mask
        probabilities = scores.softmax(dim=-1) * scale[module.layer_idx][:, None, None]
        return (probabilities @ value).transpose(1, 2).contiguous(), probabilities

    AttentionInterface.register("with_head_mask", attention)
    AttentionMaskInterface.register("with_head_mask", eager_mask)
    expected_of, _ = builders.pair(head, attn_implementation="with_head_mask")
    _, fast = builders.pair(head)
    arguments = builders.batch(head, fast, B, S, "right")
    given = scale if shape == "layers and heads" else scale[0]
    with torch.no_grad():
        actual = fast(**arguments, head_mask=given, output_attentions=True)
        assert_agree(actual, expected_of(**arguments, output_attentions=True), arguments["attention_mask"])
    assert not torch.equal(actual[0], fast(**arguments)[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("kind", ["none", "right", "left"])
@pytest.mark.parametrize("head", builders.HEADS)
def test_half_precision(head: str, kind: str, dtype: torch.dtype) -> None:
    """As close to float64 as transformers in the same dtype, by the rule that the kernels are held to."""
    expected_of, fast = (m.to(dtype) for m in builders.pair(head))
    exact = copy.deepcopy(expected_of).double()
    arguments = builders.batch(head, fast, B, S, kind)
    real = arguments.get("attention_mask")
    with torch.no_grad():
        actual, yardstick, truth = (tensors(m(**arguments)) for m in (fast, expected_of, exact))
    for name, x in actual.items():
        assert_as_accurate(attended(x, real), yardstick=attended(yardstick[name], real), truth=attended(truth[name], real))


@pytest.mark.parametrize("head", ["BertModel", "BertForTokenClassification"])
@pytest.mark.parametrize("keep_padding", [None, True, False])
def test_a_mask_of_ones_of_another_shape_masks_nothing(head: str, keep_padding: bool | None) -> None:
    """transformers' encoders overlook it. One with a 0, and any of a decoder, is refused by both."""
    original, fast = builders.pair(head)
    fast.keep_padding = keep_padding
    arguments = builders.batch(head, fast, 3, 7, "none")
    with torch.no_grad():
        for mask in (torch.ones(3, 9), torch.ones(3, 4, dtype=torch.long), torch.ones(1, 7, dtype=torch.bool)):
            assert_agree(fast(**arguments, attention_mask=mask), original(**arguments, attention_mask=mask))
            assert_agree(fast.train()(**arguments, attention_mask=mask), original(**arguments, attention_mask=mask))
            fast.eval()
        mask = builders.mask("right", 3, 9)
        for model in (original, fast):
            with pytest.raises((ValueError, RuntimeError)):
                model(**arguments, attention_mask=mask)
        decoder = builders.pair(head, is_decoder=True)[1]
        with pytest.raises(ValueError, match="attention_mask"):
            decoder(**arguments, attention_mask=torch.ones(3, 9))
