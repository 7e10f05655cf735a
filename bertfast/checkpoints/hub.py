"""Names of models on the Hugging Face Hub, resolved to a local folder as transformers resolves them."""

import re
from os import PathLike
from pathlib import Path

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9_][\w.-]*)?")
_FIRST = ["*.json", "*.txt", "model*.safetensors"]
_OTHER_WEIGHTS = ["pytorch_model*.bin", "tf_model*.h5", "flax_model*.msgpack"]  # where there are no safetensors


def local_folder(name: str | PathLike[str]) -> Path:
    """The folder `name`, or the folder in the Hub's cache of the model of that name.

    A model that is not cached, or is out of date, is downloaded, unless HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set. Raises ValueError
    where there is neither.
    """
    path = Path(name)
    if not isinstance(name, str) or path.exists() or not _NAME.fullmatch(name):
        return path
    from huggingface_hub import snapshot_download
    from transformers.utils.hub import is_offline_mode

    offline = is_offline_mode()
    try:
        found = Path(snapshot_download(name, allow_patterns=_FIRST, local_files_only=offline))
        if not offline and not any(found.glob("model*.safetensors")):
            snapshot_download(name, allow_patterns=_OTHER_WEIGHTS)
    except (OSError, ValueError) as error:
        why = "and the Hub's cache has no model of that name (offline)" if offline else f"and the Hub gave no model of that name: {error}"
        raise ValueError(f"model folder {name!r} does not exist, {why}") from error
    return found
