"""Bad input gets a ValueError that names the argument, what came and what was expected; nothing is read out of bounds."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig

import bertfast
import builders

pytestmark = pytest.mark.usefixtures("one_thread")

B, S, V, H = 2, 9, builders.TINY["vocab_size"], builders.TINY["hidden_size"]
LIMIT = builders.TINY["max_position_embeddings"]


def ids(*shape: int) -> torch.Tensor:
    return torch.randint(0, V, shape)


BAD: dict[str, tuple[dict[str, Any], list[str]]] = {  # what to pass; what the message must say
    "neither": ({}, ["input_ids", "inputs_embeds", "neither"]),
    "both": ({"input_ids": ids(B, S), "inputs_embeds": torch.rand(B, S, H)}, ["input_ids", "inputs_embeds", "both"]),
    "ids of one dimension": ({"input_ids": ids(S)}, ["input_ids", "(9,)", "[batch, length]"]),
    "ids of three dimensions": ({"input_ids": ids(B, S, 1)}, ["input_ids", "(2, 9, 1)"]),
    "a list": ({"input_ids": [[1, 2]]}, ["input_ids", "list"]),
    "floating ids": ({"input_ids": torch.rand(B, S)}, ["input_ids", "torch.float32", "int64"]),
    "an id too large": ({"input_ids": ids(B, S).index_fill(1, torch.tensor([3]), V)}, ["input_ids", str(V), f"< {V}"]),
    "a huge id": ({"input_ids": ids(B, S).index_fill(1, torch.tensor([3]), 2**62)}, ["input_ids", str(2**62)]),
    "a negative id": ({"input_ids": ids(B, S).index_fill(1, torch.tensor([0]), -1)}, ["input_ids", "-1"]),
    "a type too large": ({"input_ids": ids(B, S), "token_type_ids": torch.full((B, S), 3)}, ["token_type_ids", "3", "< 3"]),
    "types of another length": ({"input_ids": ids(B, S), "token_type_ids": ids(B, S - 1)}, ["token_type_ids", "(2, 8)", "(2, 9)"]),
    "a position too large": ({"input_ids": ids(B, S), "position_ids": torch.full((B, S), LIMIT)}, ["position_ids", str(LIMIT)]),
    "a negative position": ({"input_ids": ids(B, S), "position_ids": torch.full((1, S), -2)}, ["position_ids", "-2"]),
    "too long": ({"input_ids": ids(1, LIMIT + 1)}, [f"length {LIMIT + 1}", f"max_position_embeddings={LIMIT}"]),
    "embeddings of another width": ({"inputs_embeds": torch.rand(B, S, H + 1)}, ["inputs_embeds", "(2, 9, 37)", str(H)]),
    "embeddings of another dtype": ({"inputs_embeds": torch.rand(B, S, H).double()}, ["inputs_embeds", "float64", "float32"]),
    "a mask too short": ({"input_ids": ids(B, S), "attention_mask": torch.eye(B, S - 1)}, ["attention_mask", "(2, 8)", "(2, 9)"]),
    "a mask of five dimensions": (
        {"input_ids": ids(B, S), "attention_mask": torch.ones(B, 1, 1, S, S)},
        ["attention_mask", "(2, 1, 1, 9, 9)"],
    ),
    "a mask of another head count": (
        {"input_ids": ids(B, S), "attention_mask": torch.ones(B, 2, S, S)},
        ["attention_mask", "(2, 2, 9, 9)"],
    ),
    "a 4-D mask of integers": (
        {"input_ids": ids(B, S), "attention_mask": torch.ones(B, 1, S, S).long()},
        ["attention_mask", "int64", "bool"],
    ),
    "a complex mask": (
        {"input_ids": ids(B, S), "attention_mask": torch.ones(B, S, dtype=torch.complex64)},
        ["attention_mask", "complex64"],
    ),
    "a mask that is a list": ({"input_ids": ids(B, S), "attention_mask": [[1] * S] * B}, ["attention_mask", "list"]),
    "a head mask of another size": ({"input_ids": ids(B, S), "head_mask": torch.ones(5)}, ["head_mask", "(5,)", "(3,)"]),
    "ids on another device": ({"input_ids": ids(B, S).to("meta")}, ["input_ids", "meta", "cpu"]),
    "types on another device": ({"input_ids": ids(B, S), "token_type_ids": ids(B, S).to("meta")}, ["token_type_ids", "meta", "cpu"]),
}


@pytest.mark.parametrize("warm", [False, True], ids=["first call", "later call"])
@pytest.mark.parametrize("case", BAD)
def test_bad_arguments(case: str, warm: bool) -> None:
    """On a model that was never called, and on one whose forward has been recorded."""
    _, model = builders.pair("BertModel")
    arguments, said = BAD[case]
    with torch.no_grad():
        if warm:
            good = builders.batch("BertModel", model, B, S)
            good["position_ids"] = torch.arange(S).expand(B, S)
            model(**good), model(**builders.batch("BertModel", model, B, S, "none"))
        with pytest.raises(ValueError, match=re.escape(said[0])) as error:
            model(**arguments)
        for words in said:
            assert words in str(error.value), str(error.value)
        model(ids(B, S))  # and the model is none the worse


def test_bad_encoder_states() -> None:
    _, model = builders.pair("BertLMHeadModel", is_decoder=True, add_cross_attention=True)
    states, mask = torch.rand(B, 5, H), torch.ones(B, 5)
    for arguments, said in (
        ({"encoder_hidden_states": states[:1]}, ["encoder_hidden_states", "(1, 5, 36)", "[2, length, 36]"]),
        ({"encoder_hidden_states": states[..., 1:]}, ["encoder_hidden_states", "(2, 5, 35)"]),
        ({"encoder_hidden_states": states.half()}, ["encoder_hidden_states", "float16", "float32"]),
        ({"encoder_hidden_states": states, "encoder_attention_mask": mask[:, 1:]}, ["encoder_attention_mask", "(2, 4)", "(2, 5)"]),
    ):
        with torch.no_grad(), pytest.raises(ValueError, match=re.escape(said[0])) as error:
            model(ids(B, S), **arguments)
        for words in said:
            assert words in str(error.value), str(error.value)
    _, alone = builders.pair("BertLMHeadModel", is_decoder=True)
    with pytest.raises(ValueError, match="add_cross_attention=True"):
        alone(ids(B, S), encoder_hidden_states=states)


def test_choices_need_three_dimensions() -> None:
    _, model = builders.pair("BertForMultipleChoice")
    with pytest.raises(ValueError, match=r"input_ids.*\[batch, choices, length\]"):
        model(ids(B, S))


def test_positional_arguments() -> None:
    _, model = builders.pair("BertModel")
    with pytest.raises(TypeError, match="input_ids"):
        model(ids(B, S), input_ids=ids(B, S))
    with pytest.raises(TypeError, match="positional"):
        model(*[None] * 30)


def test_head_size_must_divide() -> None:
    with pytest.raises(ValueError, match=r"hidden size.*37.*heads.*3"):
        bertfast.BertModel(builders.bert_config(hidden_size=37))


@pytest.mark.parametrize("head", ["BertModel", "BertForTokenClassification"])
def test_relative_positions_are_refused(head: str, tmp_path: Path) -> None:
    """transformers 5 accepts them in a config, and computes absolute ones."""
    config = builders.bert_config(position_embedding_type="relative_key")
    with pytest.raises(ValueError, match=r"position_embedding_type.*relative_key.*absolute"):
        getattr(bertfast, head)(config)
    config.save_pretrained(tmp_path)
    builders.pair(head)[0].save_pretrained(tmp_path / "weights")
    (tmp_path / "weights" / "config.json").write_text((tmp_path / "config.json").read_text())
    with pytest.raises(ValueError, match="position_embedding_type"):
        getattr(bertfast, head).from_pretrained(tmp_path / "weights")


@pytest.mark.parametrize("length", [0, 7, 100, 5000])
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_truncated_checkpoints(name: str, length: int, tmp_path: Path) -> None:
    original, _ = builders.pair("BertModel")
    original.save_pretrained(tmp_path)
    if name == "pytorch_model.bin":
        torch.save(original.state_dict(), tmp_path / name)
        (tmp_path / "model.safetensors").unlink()
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[:length])
    with pytest.raises(ValueError, match=name):
        bertfast.BertModel.from_pretrained(tmp_path)


def test_empty_batches_are_no_error() -> None:
    """Nothing in, nothing out, in the shapes that transformers gives."""
    _, model = builders.pair("BertModel")
    with torch.no_grad():
        out = model(ids(0, S))
    assert out.last_hidden_state.shape == (0, S, H)
    assert out.pooler_output.shape == (0, H)


def test_config_is_transformers_own() -> None:
    assert bertfast.BertConfig is BertConfig
