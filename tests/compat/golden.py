"""Reads the recorded cases (tests/golden/README.md)."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

GOLDEN = Path(__file__).parent.parent / "golden"
MODELS = GOLDEN / "models"

GROUPS = [
    *("tf_tokcls", "tf_qa", "tf_head_mask_doc"),
    *("flax_model", "flax_model_decoder", "flax_pretraining", "flax_causal", "flax_generate"),
]


@cache
def _group(name: str) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    content = json.loads((GOLDEN / "cases" / f"{name}.json").read_text(encoding="utf-8"))
    with np.load(GOLDEN / "cases" / content["npz"]) as arrays:
        return content["cases"], dict(arrays)


def ids(group: str) -> list[str]:
    return [case["id"] for case in _group(group)[0]]


def load(group: str, id: str) -> dict[str, Any]:
    """The case with its array references replaced by copies of the arrays."""
    cases, arrays = _group(group)
    case = next(case for case in cases if case["id"] == id)

    def resolved(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: resolved(inner) for name, inner in value.items()}
        if isinstance(value, list):
            return [resolved(inner) for inner in value]
        return None if value is None else arrays[value].copy()

    return {**case, **{name: resolved(case[name]) for name in ("inputs", "outputs") if name in case}}
