"""quantization="int8": accuracy, memory, errors, and saving and loading bit for bit."""

import copy
import json
import logging
import os
import pickle
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers.models.bert import modeling_bert as theirs

import bertfast
import builders
from accuracy import assert_as_accurate
from bertfast import _C
from bertfast.engine import decode_plan, eligibility
from bertfast.engine.model_state import state_of
from bertfast.engine.plan_inputs import PlanInputs
from bertfast.ops import int8, reference
from bertfast.quantization import int8_layers, schemes
from bertfast.tasks import Embedder

pytestmark = pytest.mark.usefixtures("one_thread")

HERE = [name for name, built, here in _C.isas() if built and here]


def bytes_of(model: nn.Module) -> int:
    """The bytes of a model's parameters and buffers, each storage once."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in (*model.parameters(), *model.buffers())}
    return sum(storages.values())


def quantized_pair(head: str = "BertModel", **changes: Any) -> tuple[Any, Any]:
    """transformers' model and ours in int8, from equal weights, in eval mode."""
    original, _ = builders.pair(head, **changes)
    return original, bertfast.optimize(copy.deepcopy(original), quantization="int8")


def plain(model: Any, monkeypatch: pytest.MonkeyPatch, **arguments: Any) -> Any:
    """transformers' forward on a quantized model, each int8 layer by the reference op with the kernels' 7 or 8 bits for inputs."""
    with monkeypatch.context() as patch, eligibility.force_reference(), torch.no_grad():
        patch.setattr(reference, "int8_linear", partial(reference.int8_linear, qmax=_C.int8_levels()))
        patch.setattr(int8_layers, "kernels_can_run", lambda: False)
        return model(**arguments)


def tensors_of(output: Any) -> dict[str, Tensor]:
    return {name: value for name, value in output.items() if isinstance(value, Tensor) and value.is_floating_point()}


@pytest.fixture
def fast_path_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(kind: str, message: str) -> None:
        raise AssertionError(f"{kind} left the fast path: {message}")

    monkeypatch.setattr(eligibility, "warn_once", refuse)


# Accuracy


COSINES = """
import json, sys
import torch
from bertfast import BertModel, BertTokenizer, _C
from bertfast.cli.demo import demo_sentences

torch.set_num_threads(1)
folder = sys.argv[1]
exact = BertModel.from_pretrained(folder).eval()
model = BertModel.from_pretrained(folder, quantization="int8").eval()
texts = BertTokenizer.from_pretrained(folder)(demo_sentences()[:64], padding=True, return_tensors="pt")
ids = torch.randint(999, 30000, (8, 64), generator=torch.Generator().manual_seed(5))
found = {"qmax": _C.int8_levels()}
for name, inputs in (("text", dict(texts)), ("random", {"input_ids": ids, "attention_mask": torch.ones_like(ids)})):
    mask = inputs["attention_mask"].bool()
    with torch.no_grad():
        a, b = (m(**inputs).last_hidden_state.double() for m in (exact, model))
    found[name] = torch.cosine_similarity(a[mask], b[mask], dim=-1).min().item()
    pooled = [(t * mask[..., None]).sum(1) / mask.sum(1, keepdim=True) for t in (a, b)]
    found[name + " sentences"] = torch.cosine_similarity(*pooled, dim=-1).min().item()
print(json.dumps(found))
"""


@pytest.mark.parametrize("isa", HERE)
def test_real_weights(isa: str, minilm_dir: Path) -> None:
    """The worst cosine of a MiniLM token and sentence (mean pooling) to the float32 model."""
    done = subprocess.run(
        [sys.executable, "-c", COSINES, str(minilm_dir)],
        capture_output=True,
        text=True,
        env={**os.environ, "BERTFAST_ISA": isa},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    token, sentence = (0.9985, 0.9985) if found["qmax"] == 127 else (0.996, 0.997)  # 8 or 7 bits for the inputs
    assert found["qmax"] == (63 if isa in ("avx512", "avx2") else 127)
    for inputs in ("text", "random"):
        assert found[inputs] >= token, found
        assert found[f"{inputs} sentences"] >= sentence, found


@pytest.mark.parametrize("kind", ["right", "left", "holes"])
@pytest.mark.parametrize("head", builders.HEADS)
@pytest.mark.usefixtures("fast_path_only")
def test_every_head(head: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No further from the float model than transformers' forward with the same roundings."""
    original, fast = quantized_pair(head)
    arguments = builders.batch(head, original, 8, 11, kind)
    fast.keep_padding = True
    with torch.no_grad():
        got = tensors_of(fast(**arguments))
        truth = tensors_of(copy.deepcopy(original).double()(**arguments))
    yardstick = tensors_of(plain(fast, monkeypatch, **arguments))
    assert got.keys() == truth.keys() == yardstick.keys()
    for name in got:
        assert_as_accurate(got[name], yardstick=yardstick[name], truth=truth[name])


@pytest.mark.parametrize(
    "changes", [{"hidden_size": 312, "num_attention_heads": 12, "intermediate_size": 1200}, {"hidden_act": "relu"}, {}]
)
@pytest.mark.usefixtures("fast_path_only")
def test_widths_that_64_does_not_divide_and_other_activations(changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    original, fast = quantized_pair(num_hidden_layers=2, **changes)
    arguments = builders.batch("BertModel", original, 3, 17, "none")
    with torch.no_grad():
        got = fast(**arguments).last_hidden_state
        truth = copy.deepcopy(original).double()(**arguments).last_hidden_state
    assert_as_accurate(got, yardstick=plain(fast, monkeypatch, **arguments).last_hidden_state, truth=truth)


@pytest.mark.usefixtures("fast_path_only")
def test_cross_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    original, fast = quantized_pair("BertLMHeadModel", is_decoder=True, add_cross_attention=True)
    arguments = builders.batch("BertLMHeadModel", original, 4, 9, "right")
    states = torch.randn(4, 6, original.config.hidden_size)
    fast.keep_padding = True
    with torch.no_grad():
        got = fast(**arguments, encoder_hidden_states=states).logits
        truth = copy.deepcopy(original).double()(**arguments, encoder_hidden_states=states.double()).logits
    assert_as_accurate(got, yardstick=plain(fast, monkeypatch, **arguments, encoder_hidden_states=states).logits, truth=truth)
    assert all(isinstance(layer.crossattention.self.key, int8_layers.Int8Linear) for layer in fast.bert.encoder.layer)


@pytest.mark.usefixtures("fast_path_only")
def test_inputs_embeds() -> None:
    """inputs_embeds looked up by the caller give the same outputs as their input_ids."""
    _, fast = quantized_pair()
    arguments = builders.batch("BertModel", fast, 3, 8, "right")
    embeds = fast.get_input_embeddings()(arguments.pop("input_ids"))
    ids = arguments | builders.batch("BertModel", fast, 3, 8, "right")
    with torch.no_grad():
        assert fast(inputs_embeds=embeds, **arguments).last_hidden_state.shape == fast(**ids).last_hidden_state.shape
        table = fast.get_input_embeddings().dequantized()
        assert torch.equal(embeds[0, 0], table[(table == embeds[0, 0]).all(dim=1)][0])


@pytest.mark.usefixtures("fast_path_only")
def test_a_row_has_the_same_bits_alone_and_in_any_batch() -> None:
    _, fast = quantized_pair("BertForTokenClassification", **builders.BASE | {"num_hidden_layers": 1})
    ids = torch.randint(0, fast.config.vocab_size, (9, 13))
    mask = builders.mask("right", 9, 13)
    assert mask is not None
    with torch.no_grad():
        together = fast(input_ids=ids, attention_mask=mask).logits
        for row, length in enumerate(mask.sum(dim=1).tolist()):
            assert torch.equal(fast(input_ids=ids[row : row + 1, :length]).logits[0], together[row, :length])


@pytest.mark.usefixtures("fast_path_only")
def test_a_replayed_forward_gives_the_same_bits() -> None:
    _, fast = quantized_pair()
    arguments = builders.batch("BertModel", fast, 4, 10, "right")
    with torch.no_grad():
        first, second = (fast(**arguments).last_hidden_state for _ in range(2))
        longer = builders.batch("BertModel", fast, 7, 23, "right")
        replayed = fast(**longer).last_hidden_state
    plans = state_of(fast).plans
    assert plans.entries
    assert not list(plans.reasons())
    assert torch.equal(first, second)
    with torch.no_grad():
        fast.load_state_dict(fast.state_dict())  # into the buffers that the plan reads
        assert torch.equal(fast(**longer).last_hidden_state, replayed)
    assert state_of(fast).plans is plans


# What is quantized, and its memory


def test_what_is_quantized() -> None:
    _, fast = quantized_pair("BertForPreTraining")
    kinds = {name: type(m) for name, m in fast.named_modules() if isinstance(m, (nn.Linear, nn.Embedding, int8_layers.QuantizedLayer))}
    floats = {name for name, kind in kinds.items() if not issubclass(kind, int8_layers.QuantizedLayer)}
    assert floats == {
        "bert.embeddings.position_embeddings", "bert.embeddings.token_type_embeddings", "bert.pooler.dense",
        "cls.predictions.transform.dense", "cls.seq_relationship",
    }  # fmt: skip
    layer = (
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
        "attention.output.dense",
        "intermediate.dense",
        "output.dense",
    )
    assert kinds.keys() - floats == {
        "bert.embeddings.word_embeddings", "cls.predictions.decoder",
        *(f"bert.encoder.layer.{i}.{name}" for i in range(3) for name in layer),
    }  # fmt: skip
    assert fast.cls.predictions.decoder.bias is fast.cls.predictions.bias


@pytest.mark.parametrize("head", ["BertModel", "BertForMaskedLM", "BertForPreTraining"])
def test_memory_of_bert_base(head: str) -> None:
    """Bytes of int8 weights, scales and what stays float32, against the float32 model. One layer is measured, and counted twelve times."""
    original, fast = quantized_pair(head, **builders.BASE | {"vocab_size": 30522, "num_hidden_layers": 1})
    sizes = [bytes_of(m) + 11 * bytes_of(m.base_model.encoder.layer[0]) for m in (original, fast)]
    assert sizes[1] < 0.28 * sizes[0]


@pytest.mark.parametrize("head", ["BertForMaskedLM", "BertForPreTraining", "BertLMHeadModel"])
def test_a_tied_decoder_and_the_word_embeddings_are_one_matrix(head: str, tmp_path: Path) -> None:
    fast = quantized_pair(head)[1]
    untied = quantized_pair(head, seed=1, tie_word_embeddings=False)[1]
    loaded = getattr(bertfast, head).from_pretrained(saved(fast, tmp_path / "tied"))
    for model, tied in ((fast, True), (loaded, True), (copy.deepcopy(loaded), True), (untied, False)):
        words, decoder = model.get_input_embeddings(), model.cls.predictions.decoder
        assert (words.panels.data_ptr() == decoder.panels.data_ptr()) is tied
        assert ("cls.predictions.decoder.weight_int8" in model.state_dict()) is not tied
    back = getattr(bertfast, head).from_pretrained(saved(untied, tmp_path / "untied"))
    arguments = builders.batch(head, fast, 3, 9)
    with torch.no_grad():
        assert all(map(torch.equal, tensors_of(loaded(**arguments)).values(), tensors_of(fast(**arguments)).values()))
    assert all(torch.equal(back.state_dict()[name], t) for name, t in untied.state_dict().items())
    words = {name: t for name, t in quantized_pair(head, seed=2)[1].state_dict().items() if "word_embeddings" in name}
    loaded.load_state_dict(words, strict=False)  # reaches both
    assert torch.equal(loaded.cls.predictions.decoder.rows()[0], words["bert.embeddings.word_embeddings.weight_int8"])


def test_nothing_is_kept_twice() -> None:
    _, fast = quantized_pair("BertForMaskedLM", **builders.BASE)
    stored = sum(t.numel() * t.element_size() for t in fast.state_dict().values())
    tied = fast.cls.predictions.bias.numel() * 4
    ids = sum(b.numel() * b.element_size() for name, b in fast.named_buffers() if name.endswith(("position_ids", "token_type_ids")))
    most = stored - tied + ids
    panels = [m for m in fast.modules() if isinstance(m, int8_layers.Int8Linear) and not m.tied]
    panels.append(fast.cls.predictions.decoder)
    padding = sum((-m.out_features % 64) * (m.in_features + m.in_features // 16) for m in panels)  # up to whole panels
    assert bytes_of(fast) <= most + padding


# Other paths


def test_transformers_forward_runs_on_a_quantized_model(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    original, fast = quantized_pair()
    arguments = builders.batch("BertModel", original, 4, 10, "none")
    truth = copy.deepcopy(original).double()(**arguments).last_hidden_state.detach()
    yardstick = plain(fast, monkeypatch, **arguments).last_hidden_state
    seen = []
    handle = fast.encoder.layer[0].register_forward_hook(lambda *_: seen.append(1))
    eligibility._said.clear()
    with caplog.at_level(logging.WARNING, "bertfast"):
        out = fast(**arguments).last_hidden_state.detach()
    handle.remove()
    assert seen
    assert "a hook on the BertLayer" in caplog.text
    assert_as_accurate(out, yardstick=yardstick, truth=truth)


@pytest.mark.usefixtures("fast_path_only")
def test_attentions_and_hidden_states() -> None:
    _, fast = quantized_pair()
    arguments = builders.batch("BertModel", fast, 4, 10, "right")
    with torch.no_grad():
        out = fast(**arguments, output_attentions=True, output_hidden_states=True)
    assert len(out.attentions) == 3
    assert torch.equal(out.hidden_states[-1], out.last_hidden_state)
    real = arguments["attention_mask"].bool()
    assert torch.allclose(out.attentions[0].sum(-1).transpose(1, 2)[real], torch.ones(1))


@pytest.mark.parametrize("inspected", [{}, {"output_hidden_states": True}, {"output_attentions": True}])
def test_backward_raises(inspected: dict[str, bool]) -> None:
    _, fast = quantized_pair("BertForSequenceClassification")
    arguments = builders.batch("BertForSequenceClassification", fast, 2, 6)
    loss = fast(**arguments, **inspected, labels=torch.tensor([0, 1])).loss
    with pytest.raises(RuntimeError, match=r"backward through an int8 layer.*load the float model again"):
        loss.backward()


def test_backward_raises_in_training_mode() -> None:
    _, fast = quantized_pair("BertForMaskedLM")
    arguments = builders.batch("BertForMaskedLM", fast, 2, 6, "none")
    with pytest.raises(RuntimeError, match="backward through an int8 layer"):
        fast.train()(**arguments, labels=arguments["input_ids"]).loss.backward()


def test_a_classifier_on_top_can_be_trained() -> None:
    """With everything below frozen, only the classifier is differentiated. (The backward recomputes its inputs by transformers' forward,
    where some are rounded the other way.)"""
    _, fast = quantized_pair("BertForSequenceClassification")
    fast.bert.requires_grad_(False)
    arguments = builders.batch("BertForSequenceClassification", fast, 4, 6, "none")
    fast(**arguments, labels=torch.tensor([0, 1, 1, 0])).loss.backward()
    grad = fast.classifier.weight.grad
    with torch.no_grad():
        pooled = fast.bert(**arguments).pooler_output
    by_hand = nn.Linear(fast.config.hidden_size, 2)
    by_hand.load_state_dict(fast.classifier.state_dict())
    nn.functional.cross_entropy(by_hand(pooled), torch.tensor([0, 1, 1, 0])).backward()
    assert torch.cosine_similarity(grad.flatten(), by_hand.weight.grad.flatten(), dim=0) > 0.999


def test_compiled_and_traced() -> None:
    _, fast = quantized_pair(num_hidden_layers=1)
    ids = torch.randint(0, fast.config.vocab_size, (2, 6))
    with torch.no_grad():
        out = fast(ids).last_hidden_state
        traced = torch.jit.trace(fast, ids, strict=False)
        other = torch.randint(0, fast.config.vocab_size, (2, 6))
        again = traced(other)["last_hidden_state"]
        assert torch.cosine_similarity(again, fast(other).last_hidden_state, dim=-1).min() > 0.999
        compiled = torch.compile(fast, backend="eager")
        assert torch.cosine_similarity(compiled(ids).last_hidden_state, out, dim=-1).min() > 0.999
        exported = torch.export.export(fast, (ids,), strict=False).module()
        assert torch.cosine_similarity(exported(ids).last_hidden_state, out, dim=-1).min() > 0.999


# Generation


@pytest.mark.usefixtures("fast_path_only")
def test_generation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Greedy tokens are those of whole forwards without a cache, and every step after the first is replayed."""
    recorded: list[decode_plan.DecodeStepPlan] = []
    call = decode_plan.DecodeStepPlan.__call__

    def noted(self: decode_plan.DecodeStepPlan, inputs: PlanInputs) -> Tensor:
        out = call(self, inputs)
        recorded.append(self)
        return out

    monkeypatch.setattr(decode_plan.DecodeStepPlan, "__call__", noted)
    _, fast = quantized_pair("BertLMHeadModel", is_decoder=True, use_cache=True)
    ids = torch.randint(1, fast.config.vocab_size, (3, 7))
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    options = {"attention_mask": mask, "max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    out = fast.generate(ids, **options)
    again = fast.generate(ids, **options)
    beams = fast.generate(ids, num_beams=3, **options)
    assert all(plan.why_eager is None and plan.recorded is not None for plan in recorded)
    alone = fast.generate(ids[:1], **{**options, "attention_mask": mask[:1]})
    assert torch.equal(out, again)
    assert torch.equal(out[:1], alone)
    assert beams.shape == out.shape
    steps = ids
    for _ in range(12):  # without a cache
        position = steps.ne(-1).long().cumsum(-1) - 1
        real = torch.cat([mask, torch.ones(3, steps.shape[1] - 7, dtype=torch.long)], dim=1)
        position = (real.cumsum(-1) - 1).clamp_min(0)
        with torch.no_grad():
            logits = fast(steps, attention_mask=real, position_ids=position, use_cache=False).logits[:, -1]
        steps = torch.cat([steps, logits.argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(out, steps)


# Folders


@pytest.mark.parametrize("head", ["BertModel", "BertForMaskedLM", "BertForSequenceClassification"])
def test_saved_and_loaded(head: str, tmp_path: Path) -> None:
    _, fast = quantized_pair(head)
    fast.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert json.loads((tmp_path / "config.json").read_text())["quantization_config"] == schemes.config_entry("int8")
    for options in ({}, {"quantization": "int8"}, {"config": bertfast.BertConfig.from_pretrained(tmp_path)}, {"dtype": "auto"}):
        loaded, info = getattr(bertfast, head).from_pretrained(tmp_path, output_loading_info=True, **options)
        assert not any(info.values())
        for (name, a), (same, b) in zip(fast.state_dict().items(), loaded.state_dict().items(), strict=True):
            assert name == same
            assert torch.equal(a, b)
        arguments = builders.batch(head, fast, 3, 9)
        with torch.no_grad():
            for a, b in zip(tensors_of(fast(**arguments)).values(), tensors_of(loaded(**arguments)).values(), strict=True):
                assert torch.equal(a, b)
        loaded.save_pretrained(tmp_path / "again")
        assert (tmp_path / "again" / "config.json").read_text() == (tmp_path / "config.json").read_text()


def test_loading_quantizes_as_optimize_does(tmp_path: Path) -> None:
    original, fast = quantized_pair("BertForTokenClassification")
    original.save_pretrained(tmp_path)
    loaded = bertfast.BertForTokenClassification.from_pretrained(tmp_path, quantization="int8")
    assert loaded.state_dict().keys() == fast.state_dict().keys()
    assert all(torch.equal(a, b) for a, b in zip(fast.state_dict().values(), loaded.state_dict().values(), strict=True))


def test_a_half_precision_checkpoint_is_widened(tmp_path: Path) -> None:
    original, _ = builders.pair("BertModel")
    original.to(torch.bfloat16).save_pretrained(tmp_path)
    loaded = bertfast.BertModel.from_pretrained(tmp_path, quantization="int8")
    assert loaded.dtype == torch.float32
    assert torch.equal(loaded.embeddings.LayerNorm.weight, original.embeddings.LayerNorm.weight.float())


@pytest.mark.parametrize("auto", [transformers.AutoModel, transformers.BertModel])
def test_transformers_does_not_load_it_as_random_weights(auto: Any, tmp_path: Path) -> None:
    _, fast = quantized_pair()
    fast.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="quantization"):
        auto.from_pretrained(tmp_path)


def test_another_head_on_a_saved_encoder(tmp_path: Path) -> None:
    """As for float weights: what the folder lacks is new and reported, the decoder is tied to the word embeddings."""
    _, fast = quantized_pair()
    fast.save_pretrained(tmp_path)
    loaded, info = bertfast.BertForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not {key for key in info["missing_keys"] if "decoder.weight" in key or key.startswith("bert.")}
    assert {"cls.predictions.transform.dense.weight"} <= set(info["missing_keys"])
    words, decoder = fast.embeddings.word_embeddings, loaded.cls.predictions.decoder
    assert all(torch.equal(a, b) for a, b in zip(decoder.rows(), words.rows(), strict=True))
    untied = bertfast.BertForMaskedLM.from_pretrained(tmp_path, tie_word_embeddings=False, output_loading_info=True)
    assert "cls.predictions.decoder.weight_int8" in untied[1]["missing_keys"]
    assert untied[0].cls.predictions.decoder.dequantized().std() > 0
    back, info = bertfast.BertModel.from_pretrained(saved(loaded, tmp_path / "head"), output_loading_info=True, add_pooling_layer=False)
    assert not info["missing_keys"]
    assert torch.equal(back.embeddings.word_embeddings.rows()[0], words.rows()[0])


def saved(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    _, fast = quantized_pair()
    fast.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    name = "encoder.layer.1.output.dense.weight_scales"
    save_file({**weights, name: weights[name] * torch.nan}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"encoder\.layer\.1\.output\.dense.*damaged"):
        bertfast.BertModel.from_pretrained(tmp_path)
    save_file({k: v for k, v in weights.items() if k != name}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        bertfast.BertModel.from_pretrained(tmp_path)
    save_file({**weights, name: weights[name][:5]}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="do not go together"):
        bertfast.BertModel.from_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"]["version"] = 1
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"version 1; this version reads 'int8', version 3"):
        bertfast.BertModel.from_pretrained(tmp_path)


def test_copies(tmp_path: Path) -> None:
    _, fast = quantized_pair("BertForMaskedLM")
    arguments = builders.batch("BertForMaskedLM", fast, 2, 7)
    other = quantized_pair("BertForMaskedLM", seed=3)[1]
    other.load_state_dict(fast.state_dict())
    with torch.no_grad():
        want = fast(**arguments).logits
        for copied in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast)), other):
            assert torch.equal(copied(**arguments).logits, want)
            assert copied.cls.predictions.decoder.bias is copied.cls.predictions.bias
    again = fast.to("cpu").float().cpu()
    assert again is fast


def test_a_state_dict_read_into_a_model_in_use_counts() -> None:
    _, fast = quantized_pair()
    _, other = quantized_pair(seed=1)
    arguments = builders.batch("BertModel", fast, 2, 7)
    with torch.no_grad():
        fast(**arguments)
        fast.load_state_dict(other.state_dict())
        assert torch.equal(fast(**arguments).last_hidden_state, other(**arguments).last_hidden_state)
        fast.encoder.layer[0].output.dense.panel_scales.mul_(2)
        assert not torch.equal(fast(**arguments).last_hidden_state, other(**arguments).last_hidden_state)


# Errors


def test_unknown_names() -> None:
    original, _ = builders.pair("BertModel")
    for name in ("int4", "INT8", 8):
        with pytest.raises(ValueError, match=r"quantization: got .*'int8'"):
            bertfast.optimize(original, quantization=name)
        with pytest.raises(ValueError, match=r"quantization: got .*'int8'"):
            bertfast.BertModel.from_pretrained("nowhere", quantization=name)
    assert type(original) is theirs.BertModel


def test_dtypes_and_devices_that_do_not_go_together(tmp_path: Path) -> None:
    original, fast = quantized_pair()
    original.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"dtype=torch\.bfloat16.*int8 and float32"):
        bertfast.BertModel.from_pretrained(tmp_path, quantization="int8", dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="device_map"):
        bertfast.BertModel.from_pretrained(tmp_path, quantization="int8", device_map="auto")
    with pytest.raises(ValueError, match=r"torch\.bfloat16.*\.float\(\)"):
        bertfast.optimize(copy.deepcopy(original).bfloat16(), quantization="int8")
    before = {name: t.clone() for name, t in fast.state_dict().items()}
    for change in (nn.Module.half, nn.Module.bfloat16, nn.Module.double):
        with pytest.raises(RuntimeError, match=r"a model in int8 cannot become torch\.\w+: .*load the float model again"):
            change(fast)
    with pytest.raises(RuntimeError, match=r"a model in int8 cannot become torch\.float16"):
        fast.to(torch.float16)
    assert all(torch.equal(before[name], t) for name, t in fast.state_dict().items())


def test_restore_raises() -> None:
    _, fast = quantized_pair()
    with pytest.raises(ValueError, match=r"restore: this model is in int8.*load the float model again"):
        bertfast.restore(nn.Sequential(fast))
    assert type(fast) is bertfast.BertModel


def test_quantized_twice_is_quantized_once() -> None:
    _, fast = quantized_pair()
    before = fast.state_dict()
    assert bertfast.optimize(fast, quantization="int8") is fast
    assert all(torch.equal(before[name], t) for name, t in fast.state_dict().items())


def test_float_weights_are_gone_and_say_so() -> None:
    _, fast = quantized_pair("BertForMaskedLM")
    assert not hasattr(fast.get_input_embeddings(), "weight")
    with pytest.raises(AttributeError, match=r"no float weight: it is int8.*dequantized\(\)"):
        _ = fast.bert.encoder.layer[0].output.dense.weight
    with pytest.raises(AttributeError, match="no float weight"):
        fast.resize_token_embeddings(300)
    fast.tie_weights()
    with pytest.raises(ValueError, match=r"config\.quantization_config.*from_pretrained"):
        bertfast.BertForMaskedLM(fast.config)


def test_values_that_int8_cannot_hold_are_named() -> None:
    original, _ = builders.pair("BertModel")
    with torch.no_grad():
        original.encoder.layer[1].intermediate.dense.weight[3, 4] = torch.inf
    with pytest.raises(ValueError, match=r"encoder\.layer\.1\.intermediate\.dense.*inf"):
        bertfast.optimize(original, quantization="int8")


def test_dequantized_values() -> None:
    original, fast = quantized_pair(**builders.BASE | {"num_hidden_layers": 1})
    for name in ("embeddings.word_embeddings", "encoder.layer.0.output.dense", "encoder.layer.0.attention.self.key"):
        weight, layer = original.get_submodule(name).weight, fast.get_submodule(name)
        # Half a step of the coarsest scale, in every direction of a group at once.
        assert (layer.dequantized() - weight).abs().max() <= int8.rotate(weight).abs().max() / 127 / 2 * 8
        assert torch.cosine_similarity(layer.dequantized(), weight, dim=1).min() > 0.9999


# Inside other models


def test_inside_of_other_models(minilm_dir: Path) -> None:
    from sentence_transformers import SentenceTransformer

    encoder = SentenceTransformer(str(minilm_dir), device="cpu")
    texts = ["A man is eating.", "Someone has dinner at home."]
    exact = torch.from_numpy(encoder.encode(texts))
    bertfast.optimize(encoder, quantization="int8")
    vectors = torch.from_numpy(encoder.encode(texts))
    assert (exact * vectors).sum(dim=1).min() > 0.9985
    embedder = Embedder.from_pretrained(minilm_dir, quantization="int8")
    assert torch.allclose(torch.from_numpy(embedder.encode(texts)), vectors, atol=1e-6)


def test_an_encoder_decoder(tmp_path: Path) -> None:
    encoder = builders.pair("BertModel")[0]
    decoder = builders.pair("BertLMHeadModel", is_decoder=True, add_cross_attention=True)[0]
    both = transformers.EncoderDecoderModel(encoder=encoder, decoder=decoder).eval()
    bertfast.optimize(both, quantization="int8")
    ids = torch.randint(0, 100, (2, 5))
    with torch.no_grad():
        assert both(input_ids=ids, decoder_input_ids=ids).logits.isfinite().all()
    both.tie_weights()
    both.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="quantization"):
        transformers.EncoderDecoderModel.from_pretrained(tmp_path)
