"""The embedding settings in a model folder, from the files that sentence-transformers saves.

    modules.json                       the chain of modules; "Normalize" means vectors of unit length
    1_Pooling/config.json              "pooling_mode" (since version 5) or the older "pooling_mode_mean_tokens": true ...
    sentence_bert_config.json          max_seq_length, do_lower_case (since version 5 the length is the tokenizer's)
    config_sentence_transformers.json  named prompts, and the default one

A folder without modules.json is a plain model: mean pooling, no normalization, as in sentence-transformers.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bertfast.checkpoints.json_files import read_json
from bertfast.checkpoints.own_code import read_bert_config

_OLDER_POOLING_KEYS = {  # in the order of concatenation
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


@dataclass(frozen=True)
class SentenceSettings:
    """The embedding settings of one folder."""

    model_dir: Path  # the folder with config.json and the weights
    pooling: tuple[str, ...] = ("mean",)
    normalize: bool = False
    max_seq_length: int | None = None  # tokens, [CLS] and [SEP] included; None: the model's positions
    lower_case: bool = False
    prompt: str = ""  # prepended to every text
    prompt_counts: bool = True  # whether the prompt's tokens are pooled
    prompts: dict[str, str] = field(default_factory=dict)  # name -> prompt


def read_settings(folder: str | Path) -> SentenceSettings:
    """The settings of a model folder. Raises ValueError, naming the file, where one is missing, damaged or not supported."""
    folder = Path(folder)
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise ValueError(f"model folder {str(folder)!r} {what}; expected a local folder with config.json, the weights and a tokenizer")
    modules = read_json(folder / "modules.json", list)
    if modules is None:
        _require_config(folder)
        return SentenceSettings(folder)

    kinds = [_kind(module) for module in modules]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise ValueError(
            f"{folder / 'modules.json'} names the modules {', '.join(kinds)}; expected Transformer, Pooling and optionally Normalize. "
            "For any other chain call bertfast.optimize(SentenceTransformer(folder)), which keeps the chain"
        )
    paths = [folder / str(module.get("path", "")) for module in modules]
    model_dir, pooling_dir = paths[0], paths[1]
    _require_config(model_dir)

    transformer = read_json(model_dir / "sentence_bert_config.json", dict) or {}
    pooling = read_json(pooling_dir / "config.json", dict)
    if pooling is None:
        raise ValueError(f"{pooling_dir / 'config.json'} does not exist, but modules.json names it")
    prompts = read_json(folder / "config_sentence_transformers.json", dict) or {}
    by_name = {str(name): str(text) for name, text in (prompts.get("prompts") or {}).items()}
    default = prompts.get("default_prompt_name")
    if default is not None and default not in by_name:
        raise ValueError(f"config_sentence_transformers.json: default_prompt_name is {default!r}, expected one of {sorted(by_name)}")
    return SentenceSettings(
        model_dir=model_dir,
        pooling=_pooling_modes(pooling),
        normalize=kinds[-1] == "Normalize",
        max_seq_length=transformer.get("max_seq_length"),
        lower_case=bool(transformer.get("do_lower_case", False)),
        prompt=by_name[default] if default is not None else "",
        prompt_counts=bool(pooling.get("include_prompt", True)),
        prompts=by_name,
    )


def _kind(module: Any) -> str:
    """The class of an entry of modules.json: its bare name for a class of sentence-transformers, else its full name."""
    name = module.get("type") if isinstance(module, dict) else None
    if not isinstance(name, str):
        return "?"
    return name.rpartition(".")[2] if name.startswith("sentence_transformers.") else name


def _pooling_modes(config: dict[str, Any]) -> tuple[str, ...]:
    mode = config.get("pooling_mode")
    if mode is None:
        return tuple(name for key, name in _OLDER_POOLING_KEYS.items() if config.get(key)) or ("mean",)
    return (mode,) if isinstance(mode, str) else tuple(mode)


def _require_config(model_dir: Path) -> None:
    from bertfast.graph.family import FAMILIES  # imports transformers' models

    read_bert_config(model_dir, FAMILIES)
