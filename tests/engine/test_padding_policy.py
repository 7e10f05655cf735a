"""What stands at padded positions: transformers' values, but for the hidden states of an encoder, on both paths alike."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import bertfast
import builders
from bertfast.cache.objects import CACHE_FIELD
from bertfast.engine import cpu_plans
from bertfast.engine.model_state import state_of
from bertfast.engine.plan_builder import RecordedPlan
from compare import assert_agree, distance

pytestmark = pytest.mark.usefixtures("one_thread")

TOKEN_HEADS = ("BertForPreTraining", "BertLMHeadModel", "BertForMaskedLM", "BertForTokenClassification", "BertForQuestionAnswering")
PADDED = ("right", "left", "unequal", "holes")


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("decoder", [False, True], ids=["encoder", "decoder"])
@pytest.mark.parametrize("kind", PADDED)
@pytest.mark.parametrize("head", TOKEN_HEADS)
def test_token_logits_are_transformers_at_every_position(head: str, kind: str, decoder: bool, attention: str) -> None:
    original, fast = builders.pair(head, is_decoder=decoder, attn_implementation=attention)
    arguments = builders.batch(head, fast, 3, 11, kind)
    with torch.no_grad():
        for extra in ({}, {"output_hidden_states": True}):  # the second: with the states that the logits come from
            assert_agree(fast(**arguments, **extra), original(**arguments, **extra))


@pytest.mark.parametrize("kind", PADDED)
def test_a_decoders_hidden_states_are_transformers_at_every_position(kind: str) -> None:
    original, fast = builders.pair("BertModel", is_decoder=True)
    arguments = builders.batch("BertModel", fast, 3, 11, kind)
    with torch.no_grad():
        for extra in ({}, {"output_hidden_states": True}, {"use_cache": True}):
            actual, expected = fast(**arguments, **extra), original(**arguments, **extra)
            assert distance(actual.last_hidden_state, expected.last_hidden_state) <= 2e-5


@pytest.mark.parametrize("keep", [1, 3, torch.tensor([0, 10]), torch.tensor([4])], ids=["1", "3", "indices", "index"])
@pytest.mark.parametrize("kind", PADDED)
@pytest.mark.parametrize("keep_padding", [None, False], ids=["default", "False"])
def test_selected_logits_are_transformers(kind: str, keep: Any, keep_padding: bool | None) -> None:
    original, fast = builders.pair("BertLMHeadModel", is_decoder=True)
    fast.keep_padding = keep_padding
    arguments = {**builders.batch("BertLMHeadModel", fast, 3, 11, kind), "logits_to_keep": keep}
    with torch.no_grad():
        assert_agree(fast(**arguments), original(**arguments))


REFERENCE: dict[str, Callable[[Any], object]] = {
    "a hook": lambda model: model.base_model.encoder.layer[0].register_forward_hook(lambda *_: None),
    "train()": lambda model: model.train(),
    "a subclass of Linear": lambda model: setattr(model.base_model.encoder.layer[0].output, "dense", Doubled(model)),
}


class Doubled(nn.Linear):
    def __init__(self, model: Any) -> None:
        dense = model.base_model.encoder.layer[0].output.dense
        super().__init__(dense.in_features, dense.out_features)
        self.load_state_dict(dense.state_dict())


@pytest.mark.parametrize("return_dict", [True, False])
@pytest.mark.parametrize("kind", [*PADDED, "whole row", "full"])
@pytest.mark.parametrize("reason", REFERENCE)
@pytest.mark.parametrize("keep_padding", [None, True, False])
@pytest.mark.parametrize("head", ["BertModel", "BertForTokenClassification", "BertForQuestionAnswering", "BertForSequenceClassification"])
def test_both_paths_agree_at_padding(head: str, keep_padding: bool | None, reason: str, kind: str, return_dict: bool) -> None:
    _, fast = builders.pair(head)
    fast.keep_padding = keep_padding
    arguments = builders.batch(head, fast, 3, 11, kind)
    with torch.no_grad():
        expected = fast(**arguments, output_hidden_states=True, return_dict=return_dict)
        REFERENCE[reason](fast)
        assert_agree(fast(**arguments, output_hidden_states=True, return_dict=return_dict), expected)


@pytest.mark.parametrize("reason", [None, *REFERENCE])
def test_an_encoder_behind_a_cached_prefix(reason: str | None) -> None:
    """As PEFT's prefix tuning calls it: the mask has the prefix's columns, the output has not."""
    original, fast = builders.pair("BertModel")
    heads, width = fast.config.num_attention_heads, fast.config.hidden_size // fast.config.num_attention_heads
    if reason is not None:
        REFERENCE[reason](fast)
    prefix = torch.randn(fast.config.num_hidden_layers, 2, 2, heads, 4, width)
    ids, mask = torch.randint(0, 100, (2, 6)), torch.ones(2, 10, dtype=torch.long)
    mask[0, 8:] = 0
    outputs = []
    for model in (fast, original):
        cache = transformers.DynamicCache()
        for layer, (k, v) in enumerate(prefix):
            cache.update(k, v, layer)
        with torch.no_grad():
            outputs.append(model(ids, attention_mask=mask, past_key_values=cache).last_hidden_state)
    assert distance(outputs[0][mask[:, 4:].bool()], outputs[1][mask[:, 4:].bool()]) < 2e-5
    assert not outputs[0][0, 4:].any()


@pytest.mark.parametrize("reason", REFERENCE)
def test_returned_states_have_gradients_at_padding(reason: str) -> None:
    """A state that is filled would be a copy beside the graph of the output."""
    _, fast = builders.pair("BertModel", attn_implementation="eager")
    REFERENCE[reason](fast)
    arguments = builders.batch("BertModel", fast, 3, 7, "left")
    out = fast(**arguments, output_hidden_states=True, output_attentions=True)
    shown = [out.hidden_states[0], out.attentions[0]]
    for x in shown:
        x.retain_grad()
    out.last_hidden_state.pow(3).sum().backward()
    assert all(x.grad is not None and x.grad.any() for x in shown)


def test_autocast_changes_no_padded_position() -> None:
    _, fast = builders.pair("BertModel")
    arguments = builders.batch("BertModel", fast, 3, 11, "right")
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        out = fast(**arguments)
    assert out.last_hidden_state[arguments["attention_mask"].eq(0)].eq(0).all()
    assert out.last_hidden_state[arguments["attention_mask"].eq(1)].ne(0).all()


def test_a_head_on_the_reference_path_reads_its_encoder_whole() -> None:
    original, fast = builders.pair("BertForTokenClassification")
    arguments = builders.batch("BertForTokenClassification", fast, 3, 11, "right")
    fast.train(), original.train()
    assert_agree(fast(**arguments), original(**arguments))


def encoder_decoder() -> tuple[Any, Any]:
    config = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(
        builders.bert_config(), builders.bert_config(is_decoder=True, add_cross_attention=True)
    )
    config.decoder_start_token_id, config.pad_token_id = 1, 0
    models = [transformers.EncoderDecoderModel(config).eval() for _ in range(2)]
    builders.realistic_(models[0], 0)
    models[1].load_state_dict(models[0].state_dict())
    return models[0], bertfast.optimize(models[1])


def test_a_loss_outside_the_model_reads_padding() -> None:
    """EncoderDecoderModel takes it from the decoder's logits, labels of padding included."""
    original, fast = encoder_decoder()
    arguments = {
        "input_ids": torch.randint(1, 100, (3, 9)), "attention_mask": builders.mask("right", 3, 9),
        "labels": torch.randint(1, 100, (3, 7)), "decoder_attention_mask": builders.mask("right", 3, 7),
    }  # fmt: skip
    with torch.no_grad():
        actual, expected = fast(**arguments), original(**arguments)
    assert distance(actual.logits, expected.logits) <= 2e-5
    assert distance(actual.loss, expected.loss) <= 2e-5


GENERATION: dict[str, dict[str, Any]] = {
    "greedy": {}, "beams": {"num_beams": 3}, "without a cache": {"use_cache": False}, "sampling": {"do_sample": True},
}  # fmt: skip


@pytest.mark.parametrize("side", ["right", "left", "holes"])
@pytest.mark.parametrize("options", GENERATION.values(), ids=GENERATION)
def test_generate_from_padded_prompts(options: dict[str, Any], side: str) -> None:
    """transformers goes on from the last column, also where it is padding."""
    original, fast = builders.pair("BertLMHeadModel", is_decoder=True)
    arguments = {"input_ids": torch.randint(1, 100, (3, 9)), "attention_mask": builders.mask(side, 3, 9)}
    tokens = []
    for model in (original, fast):
        torch.manual_seed(3)
        tokens.append(model.generate(**arguments, **{"do_sample": False, "max_new_tokens": 8, "pad_token_id": 0, **options}))
    assert torch.equal(*tokens)


def test_generates_hidden_states_are_transformers_at_padding() -> None:
    original, fast = builders.pair("BertLMHeadModel", is_decoder=True)
    arguments = {"input_ids": torch.randint(1, 100, (3, 9)), "attention_mask": builders.mask("left", 3, 9)}
    options = {"do_sample": False, "max_new_tokens": 4, "pad_token_id": 0, "return_dict_in_generate": True, "output_hidden_states": True}
    actual, expected = (model.generate(**arguments, **options) for model in (fast, original))
    for step, states in enumerate(expected.hidden_states):
        for layer, want in enumerate(states):
            assert distance(actual.hidden_states[step][layer], want) <= 2e-5, (step, layer)


@pytest.mark.parametrize("head", ["BertForTokenClassification", "BertModel"])
def test_a_call_with_padded_queries_has_a_plan(head: str) -> None:
    """Rows of padding are queries and never keys: recorded as any other call."""
    original, fast = builders.pair(head)
    arguments = builders.batch(head, fast, 3, 11, "left")
    with torch.no_grad():
        for _ in range(2):
            out = fast(**arguments)
        expected = original(**arguments)
    plans = state_of(fast).plans.entries
    assert [type(plan) for key, plan in plans.items() if key.padding_computed] == [RecordedPlan], plans
    assert_agree(out, expected)


def test_a_replayed_plan_serves_other_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    original, fast = builders.pair("BertForMaskedLM")
    with torch.no_grad():
        fast(**builders.batch("BertForMaskedLM", fast, 3, 11, "right"))
        monkeypatch.setattr(cpu_plans, "record", None)  # any further recording fails
        for B, S, kind in ((3, 11, "right"), (2, 17, "holes"), (5, 6, "left"), (1, 9, "right")):
            arguments = builders.batch("BertForMaskedLM", fast, B, S, kind)
            if arguments["attention_mask"].eq(0).any():
                assert_agree(fast(**arguments), original(**arguments))


@pytest.mark.parametrize("task", ["feature-extraction", "token-classification", "fill-mask", "text-classification"])
def test_a_pipeline_gets_what_its_task_reads(task: str, small_dir: Any) -> None:
    auto = {
        "feature-extraction": transformers.AutoModel, "token-classification": transformers.AutoModelForTokenClassification,
        "fill-mask": transformers.AutoModelForMaskedLM, "text-classification": transformers.AutoModelForSequenceClassification,
    }[task]  # fmt: skip
    texts = ["A [MASK] is eating.", "Someone has [MASK] at home with all of their friends tonight."]
    model = auto.from_pretrained(small_dir)
    run = transformers.pipeline(task, model=model, tokenizer=transformers.AutoTokenizer.from_pretrained(small_dir), batch_size=2)
    expected = run(texts)
    bertfast.optimize(run)
    assert close(run(texts), expected)
    assert close(run(texts), expected)  # replayed


def close(actual: Any, expected: Any) -> bool:
    if isinstance(expected, dict):
        return actual.keys() == expected.keys() and all(close(actual[name], value) for name, value in expected.items())
    if isinstance(expected, (list, tuple)):
        return len(actual) == len(expected) and all(map(close, actual, expected))
    if isinstance(expected, (float, Tensor)) or hasattr(expected, "dtype"):
        return bool(torch.allclose(torch.as_tensor(actual), torch.as_tensor(expected), atol=2e-5, rtol=1e-4))
    return bool(actual == expected)


@pytest.mark.parametrize("columns", [4, 7], ids=["so far", "of the whole generation"])
def test_a_cached_step_on_the_reference_path_fills_its_own_columns(columns: int) -> None:
    """The mask also covers what is cached."""
    _, fast = builders.pair("BertModel", is_decoder=True, use_cache=True)
    fast.keep_padding = False
    ids, mask = torch.randint(0, 100, (2, 4)), torch.tensor([[1, 1, 1, 1, 1, 1, 1], [1, 0, 1, 0, 1, 1, 1]])
    results = []
    for reason in (None, "a hook"):
        if reason is not None:
            REFERENCE[reason](fast)
        with torch.no_grad():
            first = fast(ids[:, :2], attention_mask=mask[:, :2])
            given = {"attention_mask": mask[:, :columns], CACHE_FIELD: first[CACHE_FIELD]}
            results.append(fast(ids[:, 2:], **given).last_hidden_state)
    assert distance(*results) <= 2e-5
    assert results[1][1, 1].eq(0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_padded_row_that_sees_nothing_attends_to_all_keys_alike(dtype: torch.dtype) -> None:
    """Under eager attention. float16's lowest number does not swallow a score in float32."""
    original, fast = builders.pair("BertLMHeadModel", is_decoder=True, attn_implementation="eager", dtype=dtype)
    arguments = builders.batch("BertLMHeadModel", fast, 3, 11, "left")
    with torch.no_grad():
        assert distance(fast(**arguments).logits, original(**arguments).logits) <= max(16 * torch.finfo(dtype).eps, 2e-5)
