"""A model folder's own code, which is never run: transformers would import it, or ask on standard input whether it may."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bertfast.checkpoints.json_files import read_json, shown

_ATTENTION_KEYS = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal")


def read_bert_config(folder: Path, model_types: Iterable[str]) -> dict[str, Any]:
    """config.json of a folder, for a caller that chooses transformers' classes by it.

    Raises ValueError, naming the file, where it is missing or damaged, where its model_type is missing or none of `model_types`, and where
    the folder asks for code of its own (see refuse_own_code).
    """
    path = folder / "config.json"
    config: dict[str, Any] | None = read_json(path, dict)
    if config is None:
        raise ValueError(f"{path} does not exist; expected the folder of a BERT model, as save_pretrained writes it")
    known = " or ".join(map(repr, model_types))
    if "model_type" not in config:
        raise ValueError(f"{path} has no model_type; bertfast runs {known}: add it if this is such a model")
    if config["model_type"] not in tuple(model_types):
        raise ValueError(f"{path}: model_type is {shown(config['model_type'])}, bertfast runs {known}")
    refuse_own_code(folder, config)
    return config


def refuse_own_code(folder: Path, config: dict[str, Any]) -> None:
    """ValueError, naming the file, where the folder names Python code to run in place of transformers' classes.

    `config`: its config.json. Looks at `auto_map` of config.json and tokenizer_config.json, at a kernel of a hub as attention, and at
    custom_generate/.
    """
    if config.get("auto_map"):
        raise ValueError(f"{folder / 'config.json'}: auto_map names code of the folder's own, {_RULE}")
    for key in _ATTENTION_KEYS:
        if "/" in str(config.get(key, "")):
            raise ValueError(f"{folder / 'config.json'}: {key} is {shown(config[key])}, a kernel to download, {_RULE}")
    tokenizer: dict[str, Any] | None = read_json(folder / "tokenizer_config.json", dict)
    if tokenizer is not None and tokenizer.get("auto_map"):
        raise ValueError(f"{folder / 'tokenizer_config.json'}: auto_map names code of the folder's own, {_RULE}")
    code = folder / "custom_generate" / "generate.py"
    if code.exists():
        raise ValueError(f"{code} is code of the folder's own, {_RULE}")


_RULE = "which bertfast never runs; remove it if transformers' own classes read this model"
