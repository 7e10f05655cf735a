"""Result files: a run as JSON. benchmarks/results/ holds one committed file per machine class."""

import json
from pathlib import Path
from typing import Any

from benchmarks.measure.settings import FORMAT

FOLDER = Path(__file__).parents[1] / "results"


def save(result: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(_rounded(result), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def load(path: Path) -> dict[str, Any]:
    """ValueError if the file is no result file of this format."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is no result file: {error}") from None
    if not isinstance(result, dict) or result.get("format") != FORMAT:
        raise ValueError(
            f"{path} is no result file: format {result.get('format') if isinstance(result, dict) else None}, expected {FORMAT}"
        )
    return result


def merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """`new`, with the workloads of `old` that it did not measure; these keep the peaks that their shares refer to. ValueError unless
    machine class, threads and versions are the same."""
    for what in ("threads", "versions"):
        if old[what] != new[what]:
            raise ValueError(f"the file has {what} {old[what]}, this run has {new[what]}: write to another file")
    if old["machine"]["key"] != new["machine"]["key"]:
        raise ValueError(
            f"the file was measured on {old['machine']['key']}, this machine is {new['machine']['key']}: write to another file"
        )
    kept = {name: {"peaks": old["peaks"], **workload} for name, workload in old["workloads"].items()}
    workloads = {**kept, **new["workloads"]}
    took_part = {name: s for name, s in new["subjects"].items() if name not in old["subjects"] or not s.get("left_out")}
    notes = dict.fromkeys([*old["notes"], *new["notes"]])
    return {**new, "subjects": {**old["subjects"], **took_part}, "workloads": workloads, "notes": list(notes)}


def committed() -> list[Path]:
    return sorted(FOLDER.glob("*.json"))


def _rounded(value: Any) -> Any:
    """Floats with six digits: more than the clock resolves, and readable."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list) else value
