"""A foreign checkpoint into a model, through the class's own from_pretrained."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bertfast.checkpoints import flax_msgpack, hdf5, names
from bertfast.checkpoints.errors import DamagedCheckpoint, damaged
from bertfast.checkpoints.folder import Checkpoint, Origin, detect
from bertfast.checkpoints.tensors import read_safetensors, to_pytorch_layout

Weights = dict[str, Tensor]

_READERS: dict[str, tuple[Callable[[Path], Iterator[tuple[str, Tensor]]], Callable[[str], tuple[str, bool]]]] = {
    "tf_h5": (hdf5.read, names.from_tf),
    "tf_safetensors": (read_safetensors, names.from_tf),
    "flax_msgpack": (flax_msgpack.read, names.from_flax),
    "flax_safetensors": (read_safetensors, names.from_flax),
}
# Arguments of from_pretrained that happen to be attributes of a config too.
NOT_CONFIG = frozenset(["attn_implementation", "dtype", "name_or_path", "torch_dtype"])


def foreign_state_dict(folder: str | PathLike[str], prefer: Origin | None = None) -> Weights | None:
    """The weights in `folder` under PyTorch's names and in PyTorch's layout; None where transformers 5 can read them itself.

    prefer: as for `detect`. Tensors keep the dtype of the file. Raises ValueError for a damaged file.
    """
    checkpoint = detect(folder, prefer)
    return read_weights(checkpoint) if checkpoint is not None and checkpoint.foreign else None


def read_weights(checkpoint: Checkpoint) -> Weights:
    """The weights of a checkpoint of any format under PyTorch's names and in PyTorch's layout."""
    weights: Weights = {}
    if checkpoint.format == "pytorch":
        for path in checkpoint.files:
            weights |= {names.renamed(name): tensor for name, tensor in _read_pickle(path).items()}
        return weights
    read, translate = _READERS.get(checkpoint.format, (read_safetensors, None))
    listed = {(name.partition("/")[2] if checkpoint.format == "tf_h5" else name): file for name, file in checkpoint.weight_map}
    for path in checkpoint.files:
        for source, tensor in read(path):
            listed.pop(source, None)
            name, transposed = translate(source) if translate else (names.renamed(source), False)
            if name in weights:
                raise damaged(path, f"two arrays stand for {name}")
            weights[name] = to_pytorch_layout(source, tensor, transposed, path) if translate else tensor
    if listed:
        name, file = next(iter(listed.items()))
        raise damaged(checkpoint.index or checkpoint.files[0], f"it lists {name!r} in {file}, which is not there")
    if not weights:
        raise damaged(checkpoint.files[0], "it holds no weights")
    return weights


def _read_pickle(path: Path) -> Weights:
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises what it likes
        raise damaged(path, str(error).partition("\n")[0]) from error
    if not isinstance(weights, dict) or not all(isinstance(t, Tensor) for t in weights.values()):
        raise damaged(path, "it is not a table of tensors")
    return weights


def folder_of(path: Any, kwargs: dict[str, Any]) -> Path:
    """The folder that a from_pretrained call names; takes `subfolder` out of kwargs. Raises OSError where it is no local folder."""
    folder = Path(path) / (kwargs.pop("subfolder", None) or "")
    if not folder.is_dir():
        raise OSError(f"{path}: no such folder; download the model first, then pass the folder it lies in")
    return folder


def from_pretrained(load: Callable[..., Any], config_class: Any, path: Any, *args: Any, **kwargs: Any) -> Any:
    """`load(path, *args, **kwargs)`, for a folder of any format.

    load: a class's `from_pretrained` as transformers has it. `from_tf=True` or `from_flax=True` among the keywords: where several
    checkpoints lie side by side, that library's.
    """
    wanted: Origin | None = "tf" if kwargs.get("from_tf") else "flax" if kwargs.get("from_flax") else None
    if not isinstance(path, (str, PathLike)) or kwargs.get("gguf_file") is not None:
        return load(path, *args, **kwargs)
    folder = Path(path) / (kwargs.get("subfolder") or "")
    checkpoint = detect(folder, wanted)
    if wanted is not None and (checkpoint is None or checkpoint.origin != wanted):
        raise ValueError(f"from_{wanted}=True: {folder} holds no weights written by {'TensorFlow' if wanted == 'tf' else 'Flax'}")
    if checkpoint is None:
        return load(path, *args, **kwargs)
    if not checkpoint.foreign:
        try:
            return load(path, *args, **kwargs)
        except Exception:
            _look_for_damage(checkpoint)  # an error that names the file, where it is the file's fault
            raise
    return load_foreign(load, config_class, folder, checkpoint, *args, **kwargs)


def _look_for_damage(checkpoint: Checkpoint) -> None:
    for file in checkpoint.files:
        if checkpoint.format == "pytorch":
            _read_pickle(file)
        else:
            next(read_safetensors(file), None)  # opening it looks at the whole of its table


def load_foreign(
    load: Callable[..., Any],
    config_class: Any,
    folder: str | PathLike[str],
    checkpoint: Checkpoint,
    *args: Any,
    adjust: Callable[[Any, Weights], None] | None = None,
    **kwargs: Any,
) -> Any:
    """What `load(folder, *args, **kwargs)` would give if transformers read this format.

    load: a class's `from_pretrained` as transformers has it; config_class: the class of its config; adjust: called with the
    config and the weights before they are loaded. Keywords are those of from_pretrained, `config`, `output_loading_info` and
    `ignore_mismatched_sizes` included. Raises ValueError where a shape differs from the config's.
    """
    from transformers import PreTrainedConfig

    config = kwargs.pop("config", None)
    if not isinstance(config, PreTrainedConfig):
        kept = {name: kwargs.pop(name) for name in NOT_CONFIG & kwargs.keys()}
        config, kwargs = config_class.from_pretrained(folder if config is None else config, return_unused_kwargs=True, **kwargs)
        kwargs |= kept
    weights = read_weights(checkpoint)
    if "cls.predictions.bias" in weights:  # one vector under two names; transformers 5 forgets that where the tables are untied
        weights.setdefault("cls.predictions.decoder.bias", weights["cls.predictions.bias"].clone())
    if adjust is not None:
        adjust(config, weights)
    for name in ("subfolder", "variant", "use_safetensors", "from_tf", "from_flax"):  # they say where to look, and that is done
        kwargs.pop(name, None)
    with_info, any_size = kwargs.pop("output_loading_info", False), kwargs.pop("ignore_mismatched_sizes", False)
    with _named_in_report(folder):
        model, info = load(None, *args, config=config, state_dict=weights, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs)
    if info["mismatched_keys"] and not any_size:
        wrong = "; ".join(f"{name} is {tuple(got)}, the model's {tuple(want)}" for name, got, want in sorted(info["mismatched_keys"]))
        raise DamagedCheckpoint(
            f"{checkpoint.index or checkpoint.files[0]}: shapes differ from the config's: {wrong}. "
            "Pass ignore_mismatched_sizes=True to leave these out"
        )
    model.name_or_path = model.config.name_or_path = str(folder)
    _load_generation_config(model, folder, kwargs)
    return (model, info) if with_info else model


def _load_generation_config(model: Any, folder: str | PathLike[str], kwargs: dict[str, Any]) -> None:
    if kwargs.get("generation_config") is None and model.can_generate() and (Path(folder) / "generation_config.json").is_file():
        from transformers import GenerationConfig

        model.generation_config = GenerationConfig.from_pretrained(folder)


@contextmanager
def _named_in_report(folder: str | PathLike[str]) -> Iterator[None]:
    """transformers reports missing keys "from: None" when it gets a state dict; here it names the folder."""

    def name_the_folder(record: logging.LogRecord) -> bool:
        if isinstance(record.msg, str):
            record.msg = record.msg.replace("from: None\n", f"from: {folder}\n", 1)
        return True

    logger = logging.getLogger("transformers.modeling_utils")
    logger.addFilter(name_the_folder)
    try:
        yield
    finally:
        logger.removeFilter(name_the_folder)
