"""Loads a checkpoint of any format into a model, through the class's from_pretrained."""

import logging
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from bertfast.checkpoints import flax_msgpack, hdf5, names, pickles
from bertfast.checkpoints.errors import DamagedCheckpoint, damaged
from bertfast.checkpoints.folder import Checkpoint, Origin, detect
from bertfast.checkpoints.json_files import check_folder
from bertfast.checkpoints.tensors import read_safetensors, to_pytorch_layout

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

Weights = dict[str, Tensor]


class LoadedFamily(Protocol):
    """What loading asks of a bertfast.graph.family.Family."""

    @property
    def config(self) -> "type[PreTrainedConfig]": ...

    @property
    def checkpoint_aliases(self) -> Mapping[str, str]: ...


_READERS: dict[str, tuple[Callable[[Path], Iterator[tuple[str, Tensor]]], Callable[[str], tuple[str, bool]]]] = {
    "tf_h5": (hdf5.read, names.from_tf),
    "tf_safetensors": (read_safetensors, names.from_tf),
    "flax_msgpack": (flax_msgpack.read, names.from_flax),
    "flax_safetensors": (read_safetensors, names.from_flax),
}
# Arguments of from_pretrained that are not meant for the config, though it has attributes of these names.
NOT_CONFIG = frozenset(["attn_implementation", "dtype", "name_or_path", "torch_dtype"])


def foreign_state_dict(folder: str | PathLike[str], prefer: Origin | None = None) -> Weights | None:
    """The weights in `folder` with PyTorch's names and layout; None where transformers 5 reads the format itself.

    prefer: see detect. Tensors keep the file's dtype. Raises ValueError for a damaged file, ImportError where its reader is missing.
    """
    checkpoint = detect(folder, prefer)
    return read_weights(checkpoint) if checkpoint is not None and checkpoint.foreign else None


def read_weights(checkpoint: Checkpoint) -> Weights:
    """The weights of a checkpoint of any format, with PyTorch's names and layout. Raises ValueError for a damaged file."""
    weights: Weights = {}
    if checkpoint.format == "pytorch":
        for path in checkpoint.files:
            weights |= {names.modernized(name): tensor for name, tensor in pickles.read(path).items()}
        return weights
    read, translate = _READERS.get(checkpoint.format, (read_safetensors, None))
    listed = {(name.partition("/")[2] if checkpoint.format == "tf_h5" else name): file for name, file in checkpoint.weight_map}
    for path in checkpoint.files:
        for source, tensor in read(path):
            listed.pop(source, None)
            name, transposed = translate(source) if translate else (names.modernized(source), False)
            if name in weights:
                raise damaged(path, f"two of its arrays are {name}")
            weights[name] = to_pytorch_layout(source, tensor, transposed, path) if translate else tensor
    if listed:
        name, file = next(iter(listed.items()))
        raise damaged(checkpoint.index or checkpoint.files[0], f"it lists {name!r} in {file}, but the file has no such weight")
    if not weights:
        raise damaged(checkpoint.files[0], "it contains no weights")
    return weights


def folder_of(path: str | PathLike[str], kwargs: dict[str, Any]) -> Path:
    """The folder of a from_pretrained call; pops `subfolder` from kwargs. Raises OSError where there is no such local folder."""
    folder = Path(path) / (kwargs.pop("subfolder", None) or "")
    if not folder.is_dir():
        raise OSError(f"{path}: no such folder; download the model and pass its local folder")
    return folder


def from_pretrained(load: Callable[..., Any], family: LoadedFamily, path: object, *args: object, **kwargs: Any) -> Any:
    """`load(path, *args, **kwargs)` for a folder of any format.

    load: transformers' from_pretrained of a class. The keyword from_tf=True or from_flax=True chooses that library's checkpoint.
    Raises ValueError where the folder has none of it, and for a damaged file.
    """
    wanted: Origin | None = "tf" if kwargs.get("from_tf") else "flax" if kwargs.get("from_flax") else None
    if not isinstance(path, (str, PathLike)) or kwargs.get("gguf_file") is not None:
        return load(path, *args, **kwargs)
    folder = Path(path) / (kwargs.get("subfolder") or "")
    if folder.is_dir():
        kwargs.setdefault("trust_remote_code", False)  # for None, transformers may ask on standard input, and run custom_generate/
    checkpoint = detect(folder, wanted)
    if wanted is not None and (checkpoint is None or checkpoint.origin != wanted):
        raise ValueError(f"from_{wanted}=True: {folder} has no weights written by {'TensorFlow' if wanted == 'tf' else 'Flax'}")
    if checkpoint is None:
        return load(path, *args, **kwargs)
    if not checkpoint.foreign:
        if checkpoint.format == "pytorch":
            pickles.require_safe_torch()
        try:
            return load(path, *args, **kwargs)
        except Exception as error:
            if _raised_by_a_reader(error):  # what transformers refused for another reason is not read
                _raise_if_damaged(checkpoint)  # names the file where the file is the cause
            raise
    return load_foreign(load, family, folder, checkpoint, *args, **kwargs)


def _raised_by_a_reader(error: BaseException | None) -> bool:
    """Whether an error, or one that led to it, comes from torch's or safetensors' reader."""
    while error is not None:
        if type(error).__name__ == "SafetensorError" or isinstance(error, UnpicklingError):
            return True
        if any(frame.f_globals.get("__name__") == "torch.serialization" for frame, _ in traceback.walk_tb(error.__traceback__)):
            return True
        error = error.__cause__ or error.__context__
    return False


def _raise_if_damaged(checkpoint: Checkpoint) -> None:
    for file in checkpoint.files:
        if checkpoint.format == "pytorch":
            pickles.read(file)
        else:
            next(read_safetensors(file), None)  # opening it validates the whole header


def load_foreign(
    load: Callable[..., Any],
    family: LoadedFamily,
    folder: str | PathLike[str],
    checkpoint: Checkpoint,
    *args: object,
    adjust: "Callable[[PreTrainedConfig, Weights], None] | None" = None,
    **kwargs: object,
) -> Any:
    """`load(folder, *args, **kwargs)` as if transformers read this format.

    load: transformers' from_pretrained of a class; family: of the model; adjust: called with config and weights before
    they are loaded; may change both. Other keywords are from_pretrained's. Raises ValueError where a shape differs from the config's.
    """
    from transformers import PreTrainedConfig

    check_folder(Path(folder))
    config = kwargs.pop("config", None)
    if not isinstance(config, PreTrainedConfig):
        kept = {name: kwargs.pop(name) for name in NOT_CONFIG & kwargs.keys()}
        config, kwargs = family.config.from_pretrained(folder if config is None else config, return_unused_kwargs=True, **kwargs)
        kwargs |= kept
    weights = read_weights(checkpoint)
    for name, alias in family.checkpoint_aliases.items():
        if name in weights:
            weights.setdefault(alias, weights[name].clone())
    if adjust is not None:
        adjust(config, weights)
    for name in ("subfolder", "variant", "use_safetensors", "from_tf", "from_flax"):  # used by the caller to find the checkpoint
        kwargs.pop(name, None)
    with_info, any_size = kwargs.pop("output_loading_info", False), kwargs.pop("ignore_mismatched_sizes", False)
    with _folder_in_report(folder):
        model, info = load(None, *args, config=config, state_dict=weights, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs)
    if info["mismatched_keys"] and not any_size:
        wrong = "; ".join(f"{name} is {tuple(got)}, the model's {tuple(want)}" for name, got, want in sorted(info["mismatched_keys"]))
        raise DamagedCheckpoint(
            f"{checkpoint.index or checkpoint.files[0]}: shapes differ from the config's: {wrong}. "
            "Pass ignore_mismatched_sizes=True to initialise these weights at random"
        )
    model.name_or_path = model.config.name_or_path = str(folder)
    _load_generation_config(model, folder, kwargs)
    return (model, info) if with_info else model


def _load_generation_config(model: "PreTrainedModel", folder: str | PathLike[str], kwargs: dict[str, object]) -> None:
    if kwargs.get("generation_config") is None and model.can_generate() and (Path(folder) / "generation_config.json").is_file():
        from transformers import GenerationConfig

        model.generation_config = GenerationConfig.from_pretrained(folder)


@contextmanager
def _folder_in_report(folder: str | PathLike[str]) -> Iterator[None]:
    """transformers' report of missing keys says "from: None" for a state dict; within, it names the folder."""

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
