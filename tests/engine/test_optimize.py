"""optimize and restore: every transformers BERT inside anything, in place, and back again bit for bit."""

import copy
import itertools
import logging
import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import BertTokenizerFast, pipeline
from transformers.models.bert import modeling_bert as theirs

import bertfast
import builders
from compare import FLOAT32, assert_agree, distance

pytestmark = pytest.mark.usefixtures("one_thread")

SENTENCES = [
    f"{'The quick brown fox jumps over the lazy dog. ' * (i % 4)}Sentence number {i} is about {'cats' if i % 2 else 'the sea'}."
    for i in range(200)
]


@pytest.fixture
def original() -> Any:
    return builders.pair("BertForSequenceClassification")[0]


class TestInPlace:
    def test_the_same_object_of_another_class(self, original: Any) -> None:
        inner, parameters = original.bert, [(name, p, p.data_ptr()) for name, p in original.named_parameters()]
        assert bertfast.optimize(original) is original
        assert type(original) is bertfast.BertForSequenceClassification
        assert isinstance(original, theirs.BertForSequenceClassification)
        assert original.bert is inner
        assert type(inner) is bertfast.BertModel
        assert parameters == [(name, p, p.data_ptr()) for name, p in original.named_parameters()]

    def test_restored_bit_for_bit(self, original: Any) -> None:
        arguments = builders.batch("BertForSequenceClassification", original, 3, 11, "right")
        state, vocabulary = copy.deepcopy(original.state_dict()), dict(original.__dict__)
        with torch.no_grad():
            before = original(**arguments, output_hidden_states=True)
            bertfast.optimize(original, keep_padding=True)(**arguments, output_hidden_states=True)
            assert bertfast.restore(original) is original
            after = original(**arguments, output_hidden_states=True)
        assert type(original) is theirs.BertForSequenceClassification
        assert type(original.bert) is theirs.BertModel
        assert_agree(after, before, limit=0.0)
        assert all(torch.equal(t, state[name]) for name, t in original.state_dict().items())
        assert original.__dict__.keys() == vocabulary.keys()

    def test_twice_is_once(self, original: Any) -> None:
        bertfast.optimize(bertfast.optimize(original))
        assert type(bertfast.restore(original)) is theirs.BertForSequenceClassification

    def test_keep_padding(self, original: Any) -> None:
        arguments = builders.batch("BertForSequenceClassification", original, 3, 11, "right")
        with torch.no_grad():
            expected = original(**arguments, output_hidden_states=True)
            assert_agree(bertfast.optimize(original, keep_padding=True)(**arguments, output_hidden_states=True), expected)
            packed = bertfast.optimize(original)(**arguments, output_hidden_states=True)
        assert packed.hidden_states[1][arguments["attention_mask"].eq(0)].eq(0).all()

    def test_hidden_states_after_a_change_of_class(self, original: Any) -> None:
        """transformers finds what to record by class: also when its own forward runs, in training mode."""
        arguments = builders.batch("BertForSequenceClassification", original, 3, 11, "right")
        expected = original(**arguments, output_hidden_states=True)
        bertfast.optimize(original, keep_padding=True).train()
        assert_agree(original(**arguments, output_hidden_states=True), expected, limit=0.0)
        bertfast.restore(original)
        assert_agree(original(**arguments, output_hidden_states=True), expected, limit=0.0)

    def test_many_inside_one_module(self) -> None:
        shared = builders.pair("BertModel")[0]
        both = nn.ModuleDict({"query": shared, "passage": nn.Sequential(builders.pair("BertForMaskedLM")[0]), "again": shared})
        assert bertfast.optimize(both) is both
        assert type(both["query"]) is bertfast.BertModel
        assert type(both["passage"][0]) is bertfast.BertForMaskedLM
        assert both["query"] is both["again"]
        assert len(report_of(both).replaced) == 2


def report_of(module: Any) -> Any:
    from bertfast.optimize import report

    return report(module)


class Own(theirs.BertModel):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return super().forward(*args, **kwargs)


class TestLeftAlone:
    """Never silently: what was left is logged, and reported with the reason."""

    def refused(self, module: Any, inner: Any, why: str, caplog: pytest.LogCaptureFixture) -> None:
        kind = type(inner)
        with caplog.at_level(logging.WARNING, logger="bertfast"):
            assert bertfast.optimize(module) is module
        assert type(inner) is kind
        [(name, reason)] = report_of(module).left.items()
        assert why in reason, reason
        with pytest.raises(ValueError, match=f"quantization='int8'.*{re.escape(why)}"):  # never a float model in its place
            bertfast.optimize(module, quantization="int8")
        assert type(inner) is kind
        assert any(why in r.getMessage() and name in r.getMessage() for r in caplog.records)
        assert why in str(report_of(module))

    def test_a_subclass_with_its_own_forward(self, caplog: pytest.LogCaptureFixture) -> None:
        own = Own(builders.bert_config())
        self.refused(nn.Sequential(own), own, "subclass", caplog)

    def test_relative_positions(self, caplog: pytest.LogCaptureFixture) -> None:
        model = theirs.BertModel(builders.bert_config(position_embedding_type="relative_key"))
        self.refused(model, model, "relative_key", caplog)

    def test_hooks_inside(self, original: Any, caplog: pytest.LogCaptureFixture) -> None:
        original.bert.encoder.layer[0].register_forward_hook(lambda *_: None)
        self.refused(original, original, "a hook on", caplog)

    def test_accelerate(self, original: Any, caplog: pytest.LogCaptureFixture) -> None:
        from accelerate import cpu_offload

        arguments = builders.batch("BertForSequenceClassification", original, 3, 11, "right")
        with torch.no_grad():
            expected = original(**arguments)
            cpu_offload(original, execution_device=torch.device("cpu"))
            self.refused(original, original, "accelerate", caplog)
            assert_agree(original(**arguments), expected, limit=0.0)

    def test_no_bert_at_all(self, caplog: pytest.LogCaptureFixture) -> None:
        module = nn.Linear(2, 2)
        self.refused(module, module, "no transformers BERT found", caplog)

    def test_no_module_at_all(self) -> None:
        with pytest.raises(ValueError, match=r"module: got int.*nn.Module"):
            bertfast.optimize(3)  # type: ignore[type-var]  # what is tested

    def test_a_report_needs_an_optimize(self, original: Any) -> None:
        with pytest.raises(ValueError, match="never passed to optimize"):
            report_of(original)


class TestSentenceTransformers:
    def test_encode(self, minilm_dir: Any) -> None:
        from sentence_transformers import SentenceTransformer

        model = SentenceTransformer(str(minilm_dir), device="cpu")
        before = model.encode(SENTENCES, convert_to_tensor=True)
        assert bertfast.optimize(model) is model
        assert report_of(model).replaced
        during = model.encode(SENTENCES, convert_to_tensor=True)
        assert torch.cosine_similarity(before, during).min() >= 0.99999
        assert distance(during, before) <= FLOAT32
        bertfast.restore(model)
        assert torch.equal(model.encode(SENTENCES, convert_to_tensor=True), before)
        assert not any(type(m).__module__.startswith("bertfast") for m in model.modules())

    def test_token_embeddings(self, minilm_dir: Any) -> None:
        from sentence_transformers import SentenceTransformer

        model = SentenceTransformer(str(minilm_dir), device="cpu")
        before = model.encode(SENTENCES[:5], output_value="token_embeddings")
        after = bertfast.optimize(model).encode(SENTENCES[:5], output_value="token_embeddings")
        for a, b in zip(after, before, strict=True):
            assert distance(a, b) <= FLOAT32

    def test_cross_encoder(self, minilm_dir: Any, tmp_path: Any) -> None:
        from sentence_transformers import CrossEncoder

        classifier = theirs.BertForSequenceClassification.from_pretrained(minilm_dir, num_labels=1)
        builders.realistic_(classifier.classifier, seed=1)
        classifier.save_pretrained(tmp_path)
        BertTokenizerFast.from_pretrained(minilm_dir).save_pretrained(tmp_path)
        model = CrossEncoder(str(tmp_path), device="cpu")
        pairs = [list(pair) for pair in itertools.pairwise(SENTENCES[:20])]
        before = model.predict(pairs, convert_to_tensor=True)
        assert bertfast.optimize(model) is model
        assert report_of(model).replaced
        assert distance(model.predict(pairs, convert_to_tensor=True), before) <= FLOAT32
        bertfast.restore(model)
        assert torch.equal(model.predict(pairs, convert_to_tensor=True), before)


PIPELINES = {
    "feature-extraction": ("BertModel", SENTENCES[:3], {}),
    "fill-mask": ("BertForMaskedLM", ["The [MASK] is blue.", "A man is [MASK] pasta in the kitchen."], {}),
    "token-classification": ("BertForTokenClassification", SENTENCES[:3], {"aggregation_strategy": "simple"}),
    "text-classification": ("BertForSequenceClassification", SENTENCES[:3], {}),
    "zero-shot-classification": ("BertForSequenceClassification", SENTENCES[:3], {"candidate_labels": ["animals", "water"]}),
}


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("task", PIPELINES)
def test_pipelines(task: str, batch_size: int, minilm_dir: Any) -> None:
    head, texts, options = PIPELINES[task]
    labels = {"num_labels": 2, "label2id": {"entailment": 1, "contradiction": 0}, "id2label": {0: "contradiction", 1: "entailment"}}
    model = getattr(theirs, head).from_pretrained(minilm_dir, **({} if head in ("BertModel", "BertForMaskedLM") else labels)).eval()
    builders.realistic_(nn.ModuleList(m for name, m in model.named_children() if name in ("classifier", "cls")), seed=1)
    model.tie_weights()
    run = pipeline(task, model=model, tokenizer=BertTokenizerFast.from_pretrained(minilm_dir), device="cpu")
    expected = run(texts, batch_size=batch_size, **options)
    # The features of a padded batch include its padding: who reads those asks to keep it.
    assert bertfast.optimize(run, keep_padding=task == "feature-extraction") is run
    assert type(run.model) is getattr(bertfast, head)
    same(run(texts, batch_size=batch_size, **options), expected)
    bertfast.restore(run)
    assert run(texts, batch_size=batch_size, **options) == expected


def same(actual: Any, expected: Any) -> None:
    """Alike but for rounding, however they are nested."""
    if isinstance(expected, dict):
        assert actual.keys() == expected.keys()
        for key, value in expected.items():
            same(actual[key], value)
    elif isinstance(expected, list) and expected and isinstance(expected[0], float):
        assert distance(torch.tensor(actual), torch.tensor(expected)) <= FLOAT32
    elif isinstance(expected, (list, tuple)):
        assert len(actual) == len(expected)
        for a, b in zip(actual, expected, strict=True):
            same(a, b)
    elif isinstance(expected, (float, np.floating)):
        assert abs(actual - expected) <= FLOAT32
    else:
        assert actual == expected


def test_encoder_decoder() -> None:
    from transformers import EncoderDecoderModel

    torch.manual_seed(1)
    encoder = builders.pair("BertModel")[0]
    decoder = builders.pair("BertLMHeadModel", is_decoder=True, add_cross_attention=True)[0]
    model = EncoderDecoderModel(encoder=encoder, decoder=decoder).eval()
    model.config.decoder_start_token_id = model.generation_config.decoder_start_token_id = 1
    model.config.pad_token_id = model.generation_config.pad_token_id = 0
    arguments = builders.batch("BertModel", encoder, 3, 11, "right")
    arguments.pop("token_type_ids")
    call = {**arguments, "decoder_input_ids": torch.randint(0, 101, (3, 7)), "labels": torch.randint(0, 101, (3, 7))}
    generate = {**arguments, "max_new_tokens": 6, "do_sample": False}
    with torch.no_grad():
        expected = [model(**call, use_cache=False), model.generate(**generate), model.generate(**generate, use_cache=False)]
        assert bertfast.optimize(model) is model
        assert len(report_of(model).replaced) == 2
        actual = [model(**call, use_cache=False), model.generate(**generate), model.generate(**generate, use_cache=False)]
    assert distance(actual[0].loss, expected[0].loss) <= FLOAT32
    assert distance(actual[0].logits, expected[0].logits) <= FLOAT32
    assert torch.equal(actual[1], expected[1])
    assert torch.equal(actual[2], expected[2])


def test_register_is_the_only_thing_that_changes_transformers() -> None:
    """In a process of its own: what the Auto classes build after import, and after register()."""
    import subprocess
    import sys

    code = """
import transformers, bertfast
from transformers import AutoModel, AutoModelForTokenClassification, AutoModelForCausalLM, AutoModelForMaskedLM, BertConfig
config = BertConfig(vocab_size=11, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, is_decoder=True)
autos = AutoModel, AutoModelForTokenClassification, AutoModelForCausalLM, AutoModelForMaskedLM
bertfast.BertModel(config)
assert all(type(auto.from_config(config)).__module__.startswith("transformers.") for auto in autos)
bertfast.register()
assert all(type(auto.from_config(config)).__module__ == "bertfast.modeling" for auto in autos)
assert type(AutoModel.from_config(transformers.DistilBertConfig())).__module__.startswith("transformers.")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
