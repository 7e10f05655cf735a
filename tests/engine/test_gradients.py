"""Gradients: a forward in eval mode is the fast one under grad mode too, and a backward through it is right."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

import builders
from compare import assert_agree, attended, distance

pytestmark = pytest.mark.usefixtures("one_thread")

B, S = 3, 11
RELATIVE = 1e-4  # of the largest entry of each gradient


def gradients(model: Any) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() >= expected.keys()
    assert all(actual[name].eq(0).all() for name in actual.keys() - expected.keys()), "None and zero mean the same"
    largest = max(g.abs().max().item() for g in expected.values())
    for name, g in expected.items():
        # Some gradients are 0 but for rounding (a bias that shifts every score of a softmax alike): ten units in the last place of
        # the largest one are allowed to all.
        scale = max(g.abs().max().item(), 1e-2 * largest)
        off = (actual[name] - g).abs().max().item() / scale
        assert off <= RELATIVE, f"{name}: gradient off by {off:.1e} of its largest entry"


@pytest.mark.parametrize("kind", ["none", "right", "left"])
@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("head", builders.HEADS)
def test_one_step_of_fine_tuning(head: str, mode: str, kind: str) -> None:
    """Loss, gradients, and the parameters after AdamW; dropout is 0, so both modes compute the same."""
    both = builders.pair(head)
    arguments = builders.batch(head, both[0], B, S, kind)
    arguments.update(builders.labels(head, both[0], arguments))
    outputs = []
    for model in both:
        model.train(mode == "train")
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, eps=1e-4)  # with 1e-8 a step follows the sign of rounding
        out = model(**arguments)
        loss = out.loss if "labels" in arguments or "start_positions" in arguments else out.pooler_output.square().mean()
        loss.backward()
        outputs.append(loss.detach())
        optimizer.step()
    assert distance(outputs[1], outputs[0]) <= 1e-5
    assert_same_gradients(gradients(both[1]), gradients(both[0]))
    with torch.no_grad():
        after = [m.eval()(**arguments) for m in both]
    assert_agree(after[1], after[0], arguments.get("attention_mask"), limit=1e-4)


@pytest.mark.parametrize("wanted", ["hidden_states", "attentions", "head_mask"])
@pytest.mark.parametrize("head", ["BertModel", "BertForMaskedLM", "BertForSequenceClassification"])
def test_through_hidden_states_and_attentions(head: str, wanted: str) -> None:
    """Hidden states and attentions are differentiable as well; so is a head mask."""
    expected_of, fast = builders.pair(head, attn_implementation="eager")
    arguments = builders.batch(head, fast, B, S, "right")
    real = arguments["attention_mask"]
    if wanted == "head_mask":
        mask = torch.ones(builders.TINY["num_attention_heads"], requires_grad=True)
        out = fast(**arguments, head_mask=mask)
        attended(out[0], real).square().sum().backward()
        assert mask.grad is not None
        assert mask.grad.ne(0).all()
        attended(expected_of(**arguments)[0], real).square().sum().backward()
    else:
        for model in (expected_of, fast):
            states = model(**arguments, **{f"output_{wanted}": True})[wanted]
            torch.stack([attended(t, real).square().sum() for t in states]).sum().backward()
    assert_same_gradients(gradients(fast), gradients(expected_of))


@pytest.mark.parametrize("name", ["inputs_embeds", "encoder_hidden_states"])
def test_of_embeddings_and_states_that_the_caller_passes(name: str) -> None:
    both = builders.pair("BertLMHeadModel", is_decoder=True, add_cross_attention=True)
    arguments = builders.batch("BertLMHeadModel", both[0], B, S, "right")
    arguments["encoder_hidden_states"] = torch.randn(B, 7, builders.TINY["hidden_size"])
    arguments["encoder_attention_mask"] = builders.mask("right", B, 7)
    if name == "inputs_embeds":
        arguments["inputs_embeds"] = torch.randn(*arguments.pop("input_ids").shape, builders.TINY["hidden_size"])
    found = []
    for model in both:
        model.requires_grad_(False)
        given = arguments[name].clone().requires_grad_()
        out = model(**{**arguments, name: given}).logits
        found.append(torch.autograd.grad(attended(out, arguments["attention_mask"]).square().sum(), given)[0])
    assert distance(found[1], found[0]) <= RELATIVE


def test_some_parameters_frozen() -> None:
    both = builders.pair("BertForTokenClassification")
    arguments = builders.batch("BertForTokenClassification", both[0], B, S, "right")
    arguments.update(builders.labels("BertForTokenClassification", both[0], arguments))
    for model in both:
        model.bert.requires_grad_(False)
        model.bert.encoder.layer[2].requires_grad_(True)
        model(**arguments).loss.backward()
    assert_same_gradients(gradients(both[1]), gradients(both[0]))


def test_nothing_to_differentiate_needs_no_graph() -> None:
    _, fast = builders.pair("BertModel")
    fast.requires_grad_(False)
    assert not fast(**builders.batch("BertModel", fast, B, S)).last_hidden_state.requires_grad
    fast.requires_grad_(True)
    assert fast(**builders.batch("BertModel", fast, B, S)).last_hidden_state.requires_grad
    with torch.no_grad():
        assert not fast(**builders.batch("BertModel", fast, B, S)).last_hidden_state.requires_grad


def test_padding_passes_no_gradient() -> None:
    """Left out, padding comes back as constants; a loss that sums over all differentiates the real positions."""
    expected_of, fast = builders.pair("BertForTokenClassification")
    fast.keep_padding = False
    arguments = builders.batch("BertForTokenClassification", fast, B, S, "right")
    fast(**arguments).logits.square().sum().backward()
    attended(expected_of(**arguments).logits, arguments["attention_mask"]).square().sum().backward()
    assert_same_gradients(gradients(fast), gradients(expected_of))


def test_twice_and_twice_over() -> None:
    """A graph that is kept can be used again; a gradient can be differentiated."""
    both = builders.pair("BertModel", attn_implementation="eager", num_hidden_layers=1)
    arguments = builders.batch("BertModel", both[0], B, S, "right")
    for model in both:
        out = model(**arguments).pooler_output.square().sum()
        out.backward(retain_graph=True)
        out.backward()
    assert_same_gradients(gradients(both[1]), gradients(both[0]))
    for model in both:
        model.zero_grad()
        weight = model.encoder.layer[0].output.dense.weight
        first = torch.autograd.grad(model(**arguments).pooler_output.square().sum(), weight, create_graph=True)[0]
        first.square().sum().backward()
    assert_same_gradients(gradients(both[1]), gradients(both[0]))


def test_several_outputs_of_one_call() -> None:
    both = builders.pair("BertForPreTraining")
    arguments = builders.batch("BertForPreTraining", both[0], B, S, "right")
    for model in both:
        out = model(**arguments)
        (attended(out.prediction_logits, arguments["attention_mask"]).mean() + out.seq_relationship_logits.square().sum()).backward()
    assert_same_gradients(gradients(both[1]), gradients(both[0]))


def test_a_weight_changed_in_between_is_noticed() -> None:
    _, fast = builders.pair("BertModel")
    out = fast(**builders.batch("BertModel", fast, B, S)).pooler_output
    with torch.no_grad():
        fast.pooler.dense.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(reentrant: bool) -> None:
    both = builders.pair("BertForMaskedLM")
    arguments = builders.batch("BertForMaskedLM", both[0], B, S, "right")
    arguments.update(builders.labels("BertForMaskedLM", both[0], arguments))
    for model in both:
        model.train()
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        model.enable_input_require_grads()
        model(**arguments).loss.backward()
    assert_same_gradients(gradients(both[1]), gradients(both[0]))


def test_dropout_is_transformers_own() -> None:
    """In training mode the same seed drops the same values."""
    both = builders.pair("BertForSequenceClassification", hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.2)
    arguments = builders.batch("BertForSequenceClassification", both[0], B, S, "right")
    arguments.update(builders.labels("BertForSequenceClassification", both[0], arguments))
    for model in both:
        model.train()
        torch.manual_seed(3)
        model(**arguments).loss.backward()
    for name, g in gradients(both[0]).items():
        assert torch.equal(gradients(both[1])[name], g), name


def test_trainer_trains_and_predicts(tmp_path: Any) -> None:
    from transformers import Trainer, TrainingArguments

    both = builders.pair("BertForSequenceClassification")
    arguments = builders.batch("BertForSequenceClassification", both[0], 12, S, "right")
    arguments["labels"] = torch.randint(0, 2, (12,))
    rows = [{name: t[i] for name, t in arguments.items()} for i in range(12)]
    results = []
    for i, model in enumerate(both):
        settings = TrainingArguments(
            tmp_path / str(i), max_steps=3, per_device_train_batch_size=4, learning_rate=1e-3, report_to=[], use_cpu=True, seed=3,
            save_strategy="no", logging_steps=1, disable_tqdm=True,
        )  # fmt: skip
        trainer = Trainer(copy.deepcopy(model), settings, train_dataset=rows, eval_dataset=rows)
        losses = [entry["loss"] for entry in (trainer.train(), trainer.state.log_history)[1] if "loss" in entry]
        results.append((torch.tensor(losses), torch.tensor(trainer.predict(rows).predictions)))
    assert distance(results[1][0], results[0][0]) <= 1e-4
    assert distance(results[1][1], results[0][1]) <= 1e-3


@pytest.mark.parametrize(
    "options", [{}, {"output_hidden_states": True}, {"output_attentions": True}], ids=["plain", "states", "attentions"]
)
@pytest.mark.parametrize("head", ["BertModel", "BertForMaskedLM"])
def test_the_padding_token_gets_no_gradient_of_its_embedding(head: str, options: dict[str, bool]) -> None:
    """nn.Embedding(padding_idx=0) gives that row none; a tied decoder does."""
    both = builders.pair(head, attn_implementation="eager")
    ids = torch.tensor([[5, 0, 7, 0], [1, 2, 3, 4]])
    for model in both:
        model(ids, **options)[0].square().mean().backward()
    expected, actual = (model.base_model.embeddings.word_embeddings.weight.grad for model in both)
    assert distance(actual, expected) <= RELATIVE
    assert distance(actual[0], expected[0]) <= RELATIVE
