"""The tokenizer's files of a folder: a tokenizer whose ids the model has, or one ValueError that names folder or file."""

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from bertfast.text.tokenization import tokenize
from bertfast.text.tokenizer_files import load_tokenizer_of
from tests.fuzz.case import Target
from tests.fuzz.damage import damaged
from tests.fuzz.folders import FolderCase, blob  # noqa: F401 (blob is what the corpus is written in)
from tests.fuzz.json_damage import edited_json

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghij", *(f"##{c}" for c in "abcdefghij"), "the", "cat"]
CONFIG = {
    "model_type": "bert",
    "vocab_size": len(WORDS),
    "hidden_size": 8,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "intermediate_size": 8,
}


@functools.cache
def tokenizer_files() -> dict[str, bytes]:
    from transformers import BertTokenizerFast

    with tempfile.TemporaryDirectory() as folder:
        vocabulary = Path(folder) / "vocab.txt"
        vocabulary.write_text("\n".join(WORDS), encoding="utf-8")
        BertTokenizerFast(vocab=str(vocabulary)).save_pretrained(folder)
        files = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
    special = {
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "pad_token": "[PAD]",
        "mask_token": {"content": "[MASK]", "lstrip": False},
    }
    return {
        "vocab.txt": "\n".join(WORDS).encode(),
        "special_tokens_map.json": json.dumps(special).encode(),
        "added_tokens.json": b'{"zzz": 27}',
        **files,
    }


class TokenizerFolder(FolderCase):
    code = "from bertfast.text.tokenizer_files import load_tokenizer_of\nprint(load_tokenizer_of(folder)('the cat')['input_ids'])"

    def prepare(self, folder: Path) -> None:
        (folder / "config.json").write_text(json.dumps({**CONFIG, "vocab_size": 40}), encoding="utf-8")
        for name, content in tokenizer_files().items():
            if name in ("tokenizer_config.json", "special_tokens_map.json") or (name == "tokenizer.json" and "vocab.txt" not in self.files):
                (folder / name).write_bytes(content)

    def read(self, folder: Path) -> Any:
        return load_tokenizer_of(folder)

    def judge(self, folder: Path, result: Any) -> None:
        try:
            rows = tokenize(result, ["the cat", "", "a\0b \ud800" if False else "é a b", "[MASK] " * 30], max_length=8)
        except ValueError as error:
            assert str(error), error
            return
        assert all(0 <= i < 40 for row in rows for i in row), f"ids beyond the vocabulary: {rows}"
        assert all(len(row) <= 8 for row in rows), f"longer than max_length: {rows}"


KEYS = {
    "tokenizer_config.json": (
        "auto_map",
        "tokenizer_class",
        "model_max_length",
        "do_lower_case",
        "extra_special_tokens",
        "added_tokens_decoder",
        "chat_template",
        "padding_side",
        "backend",
    ),
    "special_tokens_map.json": ("additional_special_tokens", "bos_token", "eos_token"),
    "added_tokens.json": ("[CLS]", "the"),
    "tokenizer.json": ("added_tokens", "normalizer", "pre_tokenizer", "post_processor", "decoder", "model", "truncation", "padding"),
    "config.json": ("auto_map", "tokenizer_class", "vocab_size"),
}


@st.composite
def cases(draw: st.DrawFn) -> TokenizerFolder:
    name = draw(st.sampled_from([*KEYS, "vocab.txt", "tokenizer.json"]))
    if name == "vocab.txt":
        content = draw(st.one_of(damaged(tokenizer_files()[name]), st.binary(max_size=30), st.just(b"\n".join([b"a"] * 30))))
    else:
        base = CONFIG if name == "config.json" else json.loads(tokenizer_files()[name])
        content = draw(edited_json(base, KEYS[name]))
    return TokenizerFolder({name: content})


TARGET = Target(cases(), batch=30)
