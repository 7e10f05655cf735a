"""The embedding settings in a model folder, from the files that sentence-transformers saves.

    modules.json                       the chain of modules; "Normalize" means vectors of unit length
    1_Pooling/config.json              "pooling_mode" (since version 5) or the older "pooling_mode_mean_tokens": true ...
    sentence_bert_config.json          max_seq_length, do_lower_case (since version 5 the length is the tokenizer's)
    config_sentence_transformers.json  named prompts, the default one, truncate_dim

A folder without modules.json is a plain model: mean pooling, no normalization, as in sentence-transformers.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bertfast.checkpoints.hub import local_folder
from bertfast.checkpoints.json_files import read_json, shown
from bertfast.checkpoints.own_code import read_bert_config
from bertfast.text.transformer_config import TransformerConfig, typed

_OLDER_POOLING_KEYS = {  # in the order of concatenation
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


_ELSE = "For any other chain call bertfast.optimize(SentenceTransformer(folder)), which keeps the chain"


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
    truncate_dim: int | None = None  # leading values of a vector that are kept, after normalization
    renormalize: bool = False  # scale to unit length after truncation, as SentenceTransformer.encode(normalize_embeddings=True) does


def read_settings(folder: str | Path) -> SentenceSettings:
    """The settings of a model folder, or of a model's name on the Hub.

    Raises ValueError, naming the file, where one is missing, damaged or not supported.
    """
    folder = local_folder(folder)
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
            + _ELSE
        )
    model_dir, pooling_dir = (_inside(folder, module) for module in modules[:2])
    _require_config(model_dir)
    if kinds[-1] == "Normalize":
        _check_normalize(_inside(folder, modules[2]) / "config.json")

    transformer = TransformerConfig.read(model_dir, _ELSE)
    pooling_file, prompts_file = pooling_dir / "config.json", folder / "config_sentence_transformers.json"
    pooling = read_json(pooling_file, dict)
    if pooling is None:
        raise ValueError(f"{pooling_file} does not exist, but modules.json names it")
    prompts = read_json(prompts_file, dict) or {}
    by_name = typed(prompts, "prompts", dict, prompts_file) or {}
    if not all(text is None or isinstance(text, str) for text in by_name.values()):
        raise ValueError(f"{prompts_file}: prompts has a value that is no text")
    by_name = {name: text or "" for name, text in by_name.items()}
    default = typed(prompts, "default_prompt_name", str, prompts_file)
    if default is not None and default not in by_name:
        raise ValueError(f"{prompts_file}: default_prompt_name is {shown(default)}, expected one of {shown(sorted(by_name))}")
    truncate_dim = typed(prompts, "truncate_dim", int, prompts_file)
    if truncate_dim is not None and truncate_dim < 1:
        raise ValueError(f"{prompts_file}: truncate_dim is {truncate_dim}, expected at least 1")
    return SentenceSettings(
        model_dir=model_dir,
        pooling=_pooling_modes(pooling, pooling_file),
        normalize=kinds[-1] == "Normalize",
        max_seq_length=transformer.max_seq_length,
        lower_case=transformer.lower_case,
        prompt=by_name[default] if default is not None else "",
        prompt_counts=typed(pooling, "include_prompt", bool, pooling_file) is not False,
        prompts=by_name,
        truncate_dim=truncate_dim,
    )


def _inside(folder: Path, module: dict[str, Any]) -> Path:
    """The folder of a module. Raises ValueError where modules.json leads out of the model's folder."""
    path = module.get("path", "")
    where = f"{folder / 'modules.json'}: path is {shown(path)}"
    if not isinstance(path, str) or "\0" in path:
        raise ValueError(f"{where}, expected the name of a folder")
    found = folder / path
    try:
        found.exists()  # raises for a name that is too long
        inside = found.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError) as error:  # a name that is too long, a link to itself
        raise ValueError(f"{where}: {error}") from error
    if not inside or ".." in Path(path).parts:
        raise ValueError(f"{where}, which leads out of the folder")
    return found


def _kind(module: Any) -> str:
    """The class of an entry of modules.json: its bare name for a class of sentence-transformers, else its full name."""
    name = module.get("type") if isinstance(module, dict) else None
    if not isinstance(name, str):
        return "?"
    return name.rpartition(".")[2] if name.startswith("sentence_transformers.") else name


def _pooling_modes(config: dict[str, Any], file: Path) -> tuple[str, ...]:
    mode = config.get("pooling_mode")
    if mode is None:
        return tuple(name for key, name in _OLDER_POOLING_KEYS.items() if config.get(key)) or ("mean",)
    modes = [mode] if isinstance(mode, str) else mode
    if not isinstance(modes, list) or not modes or not all(isinstance(name, str) for name in modes):
        raise ValueError(f"{file}: pooling_mode is {shown(mode)}, expected a name or a list of names")
    return tuple(modes)


def _check_normalize(file: Path) -> None:
    config = read_json(file, dict) or {}
    for key in ("module_input_name", "module_output_name"):
        if config.get(key) not in (None, "sentence_embedding"):
            raise ValueError(f"{file}: {key} is {shown(config[key])}, expected 'sentence_embedding'; {_ELSE}")


def _require_config(model_dir: Path) -> None:
    from bertfast.graph.family import FAMILIES  # imports transformers' models

    read_bert_config(model_dir, FAMILIES)
