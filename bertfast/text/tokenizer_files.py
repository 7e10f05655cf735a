"""The tokenizer of a model folder: its files checked, loaded without code of the folder, its vocabulary held against the model's."""

from pathlib import Path
from typing import Any

from bertfast.checkpoints.json_files import MAX_BYTES, read_json, shown
from bertfast.checkpoints.own_code import read_bert_config

VOCABULARIES = ("tokenizer.json", "vocab.txt")  # transformers makes a tokenizer of 5 tokens where there is neither
_MAX_VOCABULARY_BYTES = 1 << 26  # LaBSE's, of 501,153 tokens, has 10 MB
_UNKNOWN_WORD = "\U000e0100\u0378"
_SPARE_ROWS = 1024  # embedding rows without a token: models are padded to a multiple of 64 or more


def load_tokenizer_of(folder: Path) -> Any:
    """The tokenizer in `folder`, whose vocabulary fits config.vocab_size.

    Raises ValueError, naming folder or file, for no vocabulary, one of another size than the model's, damage, and code of the folder's own.
    """
    from transformers import AutoTokenizer

    from bertfast.graph.family import FAMILIES

    config = read_bert_config(folder, FAMILIES)
    _check_files(folder)
    try:
        # False, not the default None: for None transformers asks on standard input whether it may run the folder's code.
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        _check_values(tokenizer, config, folder)
    except RecursionError as error:
        raise ValueError(f"no tokenizer could be loaded from {str(folder)!r}: one of its files is nested too deeply") from error
    except Exception as error:  # damaged values raise TypeError, OverflowError, AttributeError, and Exception itself from Rust
        raise ValueError(f"no tokenizer could be loaded from {str(folder)!r}: {error or type(error).__name__}") from error
    return tokenizer


def _check_files(folder: Path) -> None:
    if not any((folder / name).is_file() for name in VOCABULARIES):
        raise ValueError(f"no tokenizer could be loaded from {str(folder)!r}: it has neither {' nor '.join(VOCABULARIES)}")
    for name in VOCABULARIES:
        size = (folder / name).stat().st_size if (folder / name).is_file() else 0
        if size > _MAX_VOCABULARY_BYTES:
            raise ValueError(f"{folder / name} has {size:,} bytes, expected at most {_MAX_VOCABULARY_BYTES:,}")
    for name in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
        read_json(folder / name, dict, MAX_BYTES)


def _check_values(tokenizer: Any, config: dict[str, Any], folder: Path) -> None:
    """ValueError for a length that no text has, for tokens without an embedding, and for so many embeddings without a token that the
    vocabulary is another model's. The tokenizer's own error where it cannot encode an unknown word."""
    rows = config.get("vocab_size", 30522)  # transformers' default
    if type(rows) is not int:
        raise ValueError(f"{folder / 'config.json'}: vocab_size is {shown(rows)}, expected an integer")
    length = tokenizer.model_max_length
    if not isinstance(length, (int, float)) or not length >= 3:
        raise ValueError(f"{folder / 'tokenizer_config.json'}: model_max_length is {shown(length)}, expected a number of at least 3")
    tokens = 1 + max(tokenizer.get_vocab().values(), default=-1)
    if not rows - max(_SPARE_ROWS, rows // 8) <= tokens <= rows:
        raise ValueError(f"its vocabulary has {tokens:,} tokens, but config.json says vocab_size {rows:,}: it belongs to another model")
    tokenizer(_UNKNOWN_WORD)  # a damaged tokenizer fails at its first unknown word, or in its post-processor
