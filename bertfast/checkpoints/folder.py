"""Detects the checkpoint format of a folder."""

from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Literal, get_args

from bertfast.checkpoints import pickles
from bertfast.checkpoints.errors import damaged
from bertfast.checkpoints.json_files import read_json
from bertfast.checkpoints.tensors import check_header, safetensors_header

Format = Literal["pytorch", "safetensors", "tf_safetensors", "flax_safetensors", "tf_h5", "flax_msgpack"]
Origin = Literal["pt", "tf", "flax"]

# Single file and index of each format, in transformers 4.37's order of precedence.
_FILES = [
    ("model.safetensors", "model.safetensors.index.json"),
    ("pytorch_model.bin", "pytorch_model.bin.index.json"),
    ("tf_model.h5", "tf_model.h5.index.json"),
    ("flax_model.msgpack", "flax_model.msgpack.index.json"),
]
_FORMATS: dict[str, Format] = {"pytorch_model.bin": "pytorch", "tf_model.h5": "tf_h5", "flax_model.msgpack": "flax_msgpack"}


@dataclass(frozen=True)
class Checkpoint:
    """The weights of one folder."""

    format: Format
    files: tuple[Path, ...]  # one, or the shards in index order
    index: Path | None = None  # the JSON file that lists the shards
    weight_map: tuple[tuple[str, str], ...] = ()  # the index: (weight name, file name)

    @property
    def foreign(self) -> bool:
        """Whether transformers 5 cannot read this format."""
        return self.origin != "pt"

    @property
    def origin(self) -> Origin:
        """The library that wrote it: "tf", "flax", or "pt" for formats that transformers 5 reads."""
        return "tf" if self.format.startswith("tf") else "flax" if self.format.startswith("flax") else "pt"


def model_format(folder: str | PathLike[str]) -> Format | None:
    """The format of the weights in `folder`; None without weights or without such a folder. Raises ValueError for a damaged file."""
    found = detect(folder)
    return None if found is None else found.format


def detect(folder: str | PathLike[str], prefer: Origin | None = None) -> Checkpoint | None:
    """The checkpoint that a class should read from `folder`; None without a checkpoint or without such a folder.

    prefer: "pt", "tf" or "flax" chooses among several checkpoints ("pt": any that transformers 5 reads). Otherwise, and where there is
    none of that library, safetensors come first, then pytorch_model.bin, tf_model.h5, flax_model.msgpack.
    Raises ValueError for another `prefer` and for a damaged file.
    """
    if prefer is not None and prefer not in get_args(Origin):
        raise ValueError(f"prefer: got {prefer!r}, expected one of {get_args(Origin)}")
    folder = Path(folder)
    if not folder.is_dir():
        return None
    first: Checkpoint | None = None
    for single, index in _FILES:
        for name in (single, index):
            if (folder / name).is_file():
                found = _describe(folder / name, single, sharded=name == index)
                if prefer in (None, found.origin):
                    return found
                first = first or found
    return first


def _describe(path: Path, single: str, sharded: bool) -> Checkpoint:
    if not sharded:
        _check_size(path, single)
        return Checkpoint(_format(path, single), (path,))
    weight_map = _read_index(path)
    files = tuple(path.parent / name for name in dict.fromkeys(weight_map.values()))
    for file in files:
        _check_size(file, single)
    return Checkpoint(_format(files[0], single), files, path, tuple(weight_map.items()))


def _check_size(path: Path, single: str) -> None:
    """ValueError for a file whose reader would take far more memory than the file has bytes."""
    if single == "model.safetensors":
        check_header(path)
    elif single == "pytorch_model.bin":
        pickles.check(path)


def _format(path: Path, single: str) -> Format:
    if single != "model.safetensors":
        return _FORMATS[single]
    names, metadata = safetensors_header(path)
    written_by = metadata.get("format")
    if written_by == "tf" or any(name.endswith(":0") for name in names):
        return "tf_safetensors"
    # Without metadata, Flax's layout shows in the last word of its names only.
    if written_by == "flax" or any(name.rpartition(".")[2] in ("kernel", "embedding", "scale") for name in names):
        return "flax_safetensors"
    return "safetensors"


def _read_index(path: Path) -> dict[str, str]:
    try:
        index = read_json(path, object)
    except ValueError as error:
        raise damaged(path, str(error).removeprefix(f"{path} ")) from error
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(name, str) for name in weight_map.values()):
        raise damaged(path, "no 'weight_map' of weight names to file names")
    for name in dict.fromkeys(weight_map.values()):
        # A path could lead out of the checkpoint folder.
        if name != Path(name).name or not (path.parent / name).is_file():
            raise damaged(path, f"it lists the shard {name!r}, but there is no such file in its folder")
    return weight_map
