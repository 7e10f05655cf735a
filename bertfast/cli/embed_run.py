"""What a run of bertfast embed computes its rows from, as facts that two runs can be compared by."""

from pathlib import Path
from typing import Any

from bertfast import checkpoints
from bertfast.cli.run_file import Facts, digest_of_files

_CONFIGURATION = ("*.json", "vocab.txt")


def facts_of(folder: str, *, dtype: str, quantization: str | None, device: str | None, max_tokens: int | None, **settings: Any) -> Facts:
    """The facts of a run with these options, without loading the model. device and max_tokens are none: they change no row's meaning.

    settings: of bertfast.text.embedder.settings_of. Raises its ValueErrors, and ValueError for an unknown dtype.
    """
    from bertfast.runtime.devices import read_dtype
    from bertfast.text.embedder import settings_of

    found = settings_of(folder, **settings)
    root = Path(folder)
    checkpoint = checkpoints.detect(found.model_dir)
    weights = () if checkpoint is None else checkpoint.files
    folders = {root, found.model_dir, *(path for path in root.iterdir() if path.is_dir() and path.name[:1].isdigit())}
    configuration = [path for parent in folders for pattern in _CONFIGURATION for path in parent.glob(pattern) if path.is_file()]
    return {
        "model weights": digest_of_files(weights, root),
        "model configuration": digest_of_files(configuration, root),
        "dtype": str(read_dtype(dtype)).removeprefix("torch."),
        "quantization": str(quantization or "the folder's"),
        "pooling": "+".join(found.pooling),
        "normalization": str(found.normalize).lower(),
        "maximum length": str(found.max_seq_length or "the model's"),
        "prompt": repr(found.prompt),
        "truncation": str(found.truncate_dim or "none"),
        "unit length after truncation": str(found.renormalize).lower(),
    }
