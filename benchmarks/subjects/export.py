"""The wrapper through which ONNX and OpenVINO trace transformers' models, and the ONNX export."""

import logging
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.suite.models import HEADS

INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def example() -> dict[str, np.ndarray]:
    """The three inputs of a small batch, [2, 9] int64, with padding."""
    ids = np.arange(1, 19).reshape(2, 9)
    mask = np.ones_like(ids)
    mask[1, 5:] = 0
    return dict(zip(INPUTS, (ids, mask, np.zeros_like(ids)), strict=True))


def traceable(folder: Path, task: str, attention: str) -> tuple[Any, tuple[str, ...], dict[str, Any]]:
    """A module that takes the three inputs by position and returns a tuple; its outputs' names; example inputs. The example has padding:
    tracing would fix the branch for an all-ones mask."""
    import torch
    import transformers

    name, outputs = HEADS[task]

    class Positional(torch.nn.Module):
        def __init__(self, model: Any) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any) -> Any:
            found = self.model(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids)
            return tuple(found[output] for output in outputs)

    model = getattr(transformers, name).from_pretrained(folder, attn_implementation=attention)
    model.config.use_cache = False
    return Positional(model.eval()), outputs, {name: torch.from_numpy(array) for name, array in example().items()}


def write_onnx(folder: Path, task: str, target: Path) -> None:
    """Exports eager attention with the tracing exporter: ONNX Runtime's BERT optimizer fuses that graph."""
    import torch

    module, outputs, example = traceable(folder, task, "eager")
    axes = {name: {0: "B", 1: "S"} for name in INPUTS}
    axes.update({name: {0: "B"} if name in ("pooler_output", "seq_relationship_logits") else {0: "B", 1: "S"} for name in outputs})
    with quiet():
        torch.onnx.export(
            module,
            tuple(example.values()),
            str(target),
            dynamo=False,
            opset_version=17,
            input_names=list(INPUTS),
            output_names=list(outputs),
            dynamic_axes=axes,
        )


@contextmanager
def quiet() -> Any:
    """Hides the exporters' warnings; failures still raise."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def named(outputs: tuple[str, ...]) -> Callable[[Any], dict[str, np.ndarray]]:
    return lambda result: {name: np.asarray(array) for name, array in zip(outputs, result, strict=True)}
