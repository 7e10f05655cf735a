"""Result files: one run, as JSON. Those of machine classes we have had are committed under benchmarks/results/."""

import json
from pathlib import Path
from typing import Any

from benchmarks.runner import FORMAT

FOLDER = Path(__file__).with_name("results")


def save(result: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(_rounded(result), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def load(path: Path) -> dict[str, Any]:
    """ValueError for what is no result file, or one of another format."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is no result file: {error}") from None
    if not isinstance(result, dict) or result.get("format") != FORMAT:
        raise ValueError(
            f"{path} has format {result.get('format') if isinstance(result, dict) else None}, this suite reads format {FORMAT}"
        )
    return result


def merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """`new`, with those workloads of `old` that it did not measure. Each workload is one interleaved run, so they may stand in one file:
    if machine class, threads and versions are the same. ValueError if not. What is kept says which peaks its shares are of."""
    for what in ("threads", "versions"):
        if old[what] != new[what]:
            raise ValueError(f"the file has {what} {old[what]}, this run {new[what]}: they do not belong into one file")
    if old["machine"]["key"] != new["machine"]["key"]:
        raise ValueError(f"the file was measured on {old['machine']['key']}, this is {new['machine']['key']}")
    kept = {name: {"peaks": old["peaks"], **workload} for name, workload in old["workloads"].items()}
    workloads = {**kept, **new["workloads"]}
    took_part = {name: s for name, s in new["subjects"].items() if name not in old["subjects"] or not s.get("left_out")}
    notes = dict.fromkeys([*old["notes"], *new["notes"]])
    return {**new, "subjects": {**old["subjects"], **took_part}, "workloads": workloads, "notes": list(notes)}


def committed() -> list[Path]:
    return sorted(FOLDER.glob("*.json"))


def _rounded(value: Any) -> Any:
    """Six digits are more than any clock here is worth, and files are read by people too."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list) else value
