"""The model classes under transformers' machinery: class attributes, copies, weights, files."""

import copy
import inspect
import json
import pickle
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GenerationMixin
from transformers.models.bert import modeling_bert as theirs

import bertfast
import builders
from compare import assert_agree, distance

pytestmark = pytest.mark.usefixtures("one_thread")

B, S = 3, 11


def agree(fast: Any, expected_of: Any, head: str) -> None:
    torch.manual_seed(4)
    arguments = builders.batch(head, fast, B, S, "right")
    with torch.no_grad():
        assert_agree(fast.eval()(**arguments), expected_of.eval()(**arguments), arguments["attention_mask"])


@pytest.mark.parametrize("head", builders.HEADS)
class TestClasses:
    def test_class_attributes_are_transformers(self, head: str) -> None:
        ours, original = getattr(bertfast, head), getattr(theirs, head)
        assert issubclass(ours, original)
        assert ours.__name__ == head
        for name in ("config_class", "base_model_prefix", "main_input_name", "_tied_weights_keys", "supports_gradient_checkpointing"):
            assert getattr(ours, name) == getattr(original, name), name
        assert ours.can_generate() == original.can_generate()
        assert (GenerationMixin in ours.__bases__) == (GenerationMixin in original.__bases__)
        assert inspect.signature(ours.forward) == inspect.signature(original.forward)
        assert ours.forward.__doc__ == original.forward.__doc__

    def test_attributes_of_a_model_are_transformers(self, head: str) -> None:
        original, fast = builders.pair(head)
        assert fast._can_record_outputs.keys() == original._can_record_outputs.keys()
        assert fast.base_model_prefix == "bert"
        assert fast.config.model_type == "bert"
        assert (fast.device, fast.dtype, fast.num_parameters()) == (original.device, original.dtype, original.num_parameters())
        assert list(fast.state_dict()) == list(original.state_dict())
        assert [name for name, _ in fast.named_modules()] == [name for name, _ in original.named_modules()]
        assert type(fast.base_model) is bertfast.BertModel

    def test_saved_and_loaded_by_either(self, head: str, tmp_path: Path) -> None:
        original, fast = builders.pair(head)
        fast.save_pretrained(tmp_path / "ours")
        original.save_pretrained(tmp_path / "theirs")
        written, expected = (load_file(tmp_path / who / "model.safetensors") for who in ("ours", "theirs"))
        assert written.keys() == expected.keys(), "a tensor written twice, or none"
        configs = [json.loads((tmp_path / who / "config.json").read_text()) for who in ("ours", "theirs")]
        assert configs[0] == configs[1]
        assert configs[0]["architectures"] == [head]
        agree(getattr(bertfast, head).from_pretrained(tmp_path / "theirs"), original, head)
        agree(getattr(bertfast, head).from_pretrained(tmp_path / "ours"), original, head)
        agree(fast, getattr(theirs, head).from_pretrained(tmp_path / "ours"), head)

    def test_copies(self, head: str, tmp_path: Path) -> None:
        original, fast = builders.pair(head)
        agree(fast, original, head)  # the state of a first call is not copied
        for other in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
            assert type(other) is type(fast)
            agree(other, original, head)
            shared = {p.data_ptr() for p in fast.parameters()} & {p.data_ptr() for p in other.parameters()}
            assert not shared
        torch.save(fast, tmp_path / "whole.pt")
        agree(torch.load(tmp_path / "whole.pt", weights_only=False), original, head)
        fresh = getattr(bertfast, head)(fast.config)
        fresh.load_state_dict(fast.state_dict())
        agree(fresh, original, head)

    def test_initialised_as_transformers_does(self, head: str) -> None:
        states = []
        for module in (theirs, bertfast):
            torch.manual_seed(8)
            states.append(getattr(module, head)(builders.bert_config()).state_dict())
        assert all(torch.equal(states[1][name], t) for name, t in states[0].items())

    def test_get_and_set_embeddings(self, head: str) -> None:
        original, fast = builders.pair(head)
        assert fast.get_input_embeddings() is fast.base_model.embeddings.word_embeddings
        assert (fast.get_output_embeddings() is None) == (original.get_output_embeddings() is None)
        for model in (original, fast):
            torch.manual_seed(2)
            model.set_input_embeddings(torch.nn.Embedding(101, builders.TINY["hidden_size"]))
        agree(fast, original, head)

    @pytest.mark.parametrize("rows", [101, 90, 117])
    def test_resized(self, head: str, rows: int) -> None:
        original, fast = builders.pair(head)
        agree(fast, original, head)
        for model in (original, fast):
            torch.manual_seed(2)
            model.resize_token_embeddings(rows)
        assert fast.config.vocab_size == rows
        agree(fast, original, head)
        if fast.get_output_embeddings() is not None:
            assert fast.get_output_embeddings().weight is fast.get_input_embeddings().weight


class TestWeights:
    @pytest.mark.parametrize("head", ["BertForMaskedLM", "BertForPreTraining", "BertLMHeadModel"])
    @pytest.mark.parametrize("tied", [True, False])
    def test_tied(self, head: str, tied: bool, tmp_path: Path) -> None:
        original, fast = builders.pair(head, tie_word_embeddings=tied)
        word_embeddings, decoder = fast.bert.embeddings.word_embeddings.weight, fast.cls.predictions.decoder
        assert (decoder.weight is word_embeddings) == tied
        fast.save_pretrained(tmp_path)
        loaded = getattr(bertfast, head).from_pretrained(tmp_path)
        assert (loaded.cls.predictions.decoder.weight is loaded.bert.embeddings.word_embeddings.weight) == tied
        agree(loaded, original, head)
        with torch.no_grad():
            for model in (loaded, original):
                model.bert.embeddings.word_embeddings.weight.mul_(1.5)
        agree(loaded, original, head)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_dtypes(self, dtype: torch.dtype, tmp_path: Path) -> None:
        original, fast = builders.pair("BertModel")
        original.save_pretrained(tmp_path)
        for model in (
            bertfast.BertModel.from_pretrained(tmp_path, dtype=dtype),
            copy.deepcopy(fast).to(dtype),
            bertfast.BertModel.from_pretrained(tmp_path, dtype=str(dtype).removeprefix("torch.")),
        ):
            assert {p.dtype for p in model.parameters()} == {dtype}
            out = model(**builders.batch("BertModel", model, B, S)).last_hidden_state
            assert out.dtype == dtype
        assert copy.deepcopy(fast).half().dtype == torch.float16

    def test_a_dtype_without_kernels_agrees_too(self) -> None:
        original, fast = builders.pair("BertModel")
        arguments = builders.batch("BertModel", fast, B, S, "right")
        with torch.no_grad():
            assert_agree(fast.double()(**arguments), original.double()(**arguments), arguments["attention_mask"], limit=1e-12)

    def test_device_map_and_subfolder(self, tmp_path: Path) -> None:
        original, _ = builders.pair("BertModel")
        original.save_pretrained(tmp_path / "inner")
        agree(bertfast.BertModel.from_pretrained(tmp_path, subfolder="inner", device_map="cpu"), original, "BertModel")

    def test_attention_implementation(self, tmp_path: Path) -> None:
        original, _ = builders.pair("BertModel")
        original.save_pretrained(tmp_path)
        fast = bertfast.BertModel.from_pretrained(tmp_path, attn_implementation="eager")
        assert fast.config._attn_implementation == "eager"
        agree(fast, original, "BertModel")

    def test_keep_padding_is_an_argument_of_loading(self, tmp_path: Path) -> None:
        builders.pair("BertModel")[0].save_pretrained(tmp_path)
        assert bertfast.BertModel.from_pretrained(tmp_path, keep_padding=True).keep_padding
        fast, _ = bertfast.BertModel.from_pretrained(tmp_path, output_loading_info=True)
        assert not fast.keep_padding

    def test_meta_device(self, tmp_path: Path) -> None:
        original, _ = builders.pair("BertForMaskedLM")
        with torch.device("meta"):
            fast = bertfast.BertForMaskedLM(original.config)
        assert {p.device.type for p in fast.parameters()} == {"meta"}
        fast.to_empty(device="cpu")
        fast.load_state_dict(original.state_dict())
        fast.tie_weights()
        fast.bert.embeddings.position_ids.copy_(original.bert.embeddings.position_ids)  # buffers that checkpoints lack
        fast.bert.embeddings.token_type_ids.zero_()
        agree(fast, original, "BertForMaskedLM")


class TestCheckpoints:
    def test_a_model_of_another_head(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """The encoder is loaded, the head initialised, and the log names the weights that are random."""
        original, _ = builders.pair("BertForMaskedLM")
        original.save_pretrained(tmp_path)
        infos, said = [], []
        transformers.utils.logging.enable_propagation()
        for module in (theirs, bertfast):
            caplog.clear()
            torch.manual_seed(1)
            model, info = module.BertForTokenClassification.from_pretrained(tmp_path, output_loading_info=True)
            infos.append(info)
            said.append(sorted("\n".join(r.getMessage() for r in caplog.records).splitlines()))  # sets, logged in any order
        assert infos[1] == infos[0]
        assert infos[1]["missing_keys"] == {"classifier.weight", "classifier.bias"}
        assert infos[1]["unexpected_keys"]
        assert any("classifier.weight" in line for line in said[1])
        assert said[1] == said[0]
        state = original.state_dict()
        assert all(torch.equal(t, state[name]) for name, t in model.state_dict().items() if name.startswith("bert."))

    def test_old_names_of_layer_norm(self, tmp_path: Path) -> None:
        original, _ = builders.pair("BertModel")
        original.save_pretrained(tmp_path)
        state = load_file(tmp_path / "model.safetensors")
        old = {n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): t for n, t in state.items()}
        assert old.keys() != state.keys()
        save_file(old, tmp_path / "model.safetensors", metadata={"format": "pt"})
        agree(bertfast.BertModel.from_pretrained(tmp_path), original, "BertModel")

    def test_shards(self, tmp_path: Path) -> None:
        original, fast = builders.pair("BertForPreTraining")
        fast.save_pretrained(tmp_path, max_shard_size="40KB")
        assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
        agree(bertfast.BertForPreTraining.from_pretrained(tmp_path), original, "BertForPreTraining")
        agree(fast, theirs.BertForPreTraining.from_pretrained(tmp_path), "BertForPreTraining")
        shard = sorted(tmp_path.glob("model-*.safetensors"))[-1]
        shard.write_bytes(shard.read_bytes()[:-100])
        with pytest.raises(ValueError, match=shard.name):
            bertfast.BertForPreTraining.from_pretrained(tmp_path)
        shard.unlink()
        with pytest.raises(ValueError, match=shard.name):
            bertfast.BertForPreTraining.from_pretrained(tmp_path)

    def test_pickles_are_loaded_as_weights_only(self, tmp_path: Path) -> None:
        original, _ = builders.pair("BertModel")
        original.config.save_pretrained(tmp_path)
        torch.save(original.state_dict(), tmp_path / "pytorch_model.bin")
        agree(bertfast.BertModel.from_pretrained(tmp_path), original, "BertModel")

        class Payload:
            def __reduce__(self) -> Any:
                return (Path(tmp_path / "executed").touch, ())

        torch.save({"weight": Payload()}, tmp_path / "pytorch_model.bin")
        with pytest.raises(ValueError, match=r"pytorch_model.bin"):
            bertfast.BertModel.from_pretrained(tmp_path)
        assert not (tmp_path / "executed").exists()

    def test_shapes_that_do_not_fit(self, tmp_path: Path) -> None:
        builders.pair("BertForTokenClassification", num_labels=5)[0].save_pretrained(tmp_path)
        messages = []
        for module in (theirs, bertfast):
            with pytest.raises(RuntimeError, match="ignore_mismatched_sizes") as error:
                module.BertForTokenClassification.from_pretrained(tmp_path, num_labels=3)
            messages.append(str(error.value))
        assert messages[0] == messages[1]
        loaded = bertfast.BertForTokenClassification.from_pretrained(tmp_path, num_labels=3, ignore_mismatched_sizes=True)
        assert loaded.classifier.weight.shape[0] == 3

    def test_an_empty_folder(self, tmp_path: Path) -> None:
        with pytest.raises(OSError, match=str(tmp_path)):
            bertfast.BertModel.from_pretrained(tmp_path)

    def test_written_header(self, tmp_path: Path) -> None:
        builders.pair("BertModel")[1].save_pretrained(tmp_path)
        with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
            assert file.metadata()["format"] == "pt"


def test_threads_call_one_model_at_once() -> None:
    _, fast = builders.pair("BertForTokenClassification")
    calls = [builders.batch("BertForTokenClassification", fast, 1 + i % 4, 3 + 2 * i, builders.MASKS[i % 4]) for i in range(12)]
    with torch.no_grad():
        expected = [copy.deepcopy(fast)(**arguments).logits for arguments in calls]
    wrong: list[str] = []

    def work(start: int) -> None:
        with torch.no_grad():
            for step in range(60):
                i = (start + step) % len(calls)
                actual: Tensor = fast(**calls[i]).logits
                if not torch.equal(actual, expected[i]):
                    wrong.append(f"call {i}: off by {distance(actual, expected[i])}")

    threads = [threading.Thread(target=work, args=(3 * n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_old_name_of_the_cache_argument() -> None:
    """transformers renamed past_key_values; every version takes and returns it under either name."""
    original, fast = builders.pair("BertLMHeadModel", is_decoder=True)
    ids = torch.randint(0, 101, (B, S))
    with torch.no_grad():
        whole = original(ids, use_cache=False).logits
        for model in (original, fast):
            first = model(ids[:, :4], use_cache=True)
            cache = first["cache"] if "cache" in first else first["past_key_values"]
            rest = model(ids[:, 4:], past_key_values=cache, use_cache=True)
            assert distance(rest.logits, whole[:, 4:]) <= 2e-5
