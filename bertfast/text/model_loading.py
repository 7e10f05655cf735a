"""A BertModel for embeddings: without pooler, and never with random weights."""

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import transformers

if TYPE_CHECKING:
    from bertfast.modeling import BertModel


_BUFFERS = ("embeddings.position_ids", "embeddings.token_type_ids")  # saved by older versions


def load_model(folder: Path, dtype: torch.dtype, quantization: str | None) -> "BertModel":
    """The BertModel in `folder`, in eval mode. Raises ValueError where the checkpoint lacks weights or their shapes differ."""
    from bertfast.modeling import BertModel

    # No pooler: embeddings are pooled from token vectors. A checkpoint may have weights beyond those (a pooler, another task's head):
    # transformers' table of them is silenced; weights of the encoder that config.json has no place for are warned about below.
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        model, report = BertModel.from_pretrained(
            folder, add_pooling_layer=False, dtype=dtype, quantization=quantization, output_loading_info=True
        )
    finally:
        transformers.logging.set_verbosity(verbosity)
    where = f"the checkpoint in {str(folder)!r}"
    for what in ("missing_keys", "mismatched_keys"):
        if report[what]:
            raise ValueError(f"{where} has {what.replace('_', ' ')}, so embeddings would be random: {first_names(report[what])}")
    names = {key: key.removeprefix("bert.") for key in report["unexpected_keys"]}
    if unexpected := [key for key, name in names.items() if name.startswith(("embeddings.", "encoder.")) and name not in _BUFFERS]:
        warnings.warn(f"{where} has weights that its config.json has no place for: {first_names(unexpected)}", stacklevel=3)
    loaded: BertModel = model.eval()
    return loaded


def first_names(names: Iterable[object], count: int = 3) -> str:
    """The first `count` names in sorted order, and how many more there are."""
    ordered = sorted(map(str, names))
    more = f" and {len(ordered) - count} more" if len(ordered) > count else ""
    return ", ".join(ordered[:count]) + more
