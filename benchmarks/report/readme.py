"""The measured table of README.md, written from the committed result files only."""

from pathlib import Path
from typing import Any

from benchmarks.report.tables import amount
from benchmarks.suite.stats import NOISY

BEGIN = "<!-- benchmarks: written by `python -m benchmarks readme`, from benchmarks/results -->"
END = "<!-- benchmarks: end -->"
_FLOAT32 = ("bertfast", "transformers", "torch.compile", "onnxruntime", "openvino", "ctranslate2", "sentence-transformers", "fasttextembed")
_SMALLER = ("bertfast-bf16", "openvino-bf16", "bertfast-int8", "torch-int8", "onnxruntime-int8", "openvino-int8", "ctranslate2-int8")
_SHOWN = (
    "minilm/1x16",
    "minilm/1x128",
    "minilm/8x128",
    "minilm/padded32",
    "minilm/embed100",
    "minilm/embed200",
    "minilm/embed2000",
    "bert-base/1x16",
    "bert-base/1x128",
    "bert-base/8x128",
    "bert-base/32x128",
    "bert-base/1x384",
    "bert-base/8x512",
    "bert-base/padded32",
    "bert-base/generate-1",
    "bert-base/generate-8",
    "bge-small/embed20",
    "bge-small/embed200",
)


def section(results: list[dict[str, Any]]) -> str:
    """The text between the markers: a table per machine class and precision."""
    parts = []
    for result in results:
        machine, peaks = result["machine"], result["peaks"]
        rates = (
            f", float32 peak {peaks['float32'] / 1e9:.0f} GFLOP/s, memory {peaks['bandwidth'] / 1e9:.0f} GB/s, both measured"
            if peaks
            else ""
        )
        versions = ", ".join(
            f"{name} {version}" for name, version in result["versions"].items() if name not in ("bertfast", "numpy", "onnx", "tokenizers")
        )
        parts.append(f"**{machine['title']}**; {result['threads']} threads{rates}. {versions}.")
        parts += [table for table in (_table(result, _FLOAT32), _table(result, _SMALLER)) if table]
    parts.append(
        "Median of interleaved runs, milliseconds a call (a step when generating); in brackets how many times as fast as transformers "
        "with sdpa in float32 (sentence-transformers where text is embedded). Every subject is checked against it before it is timed; "
        "* marks outputs that differ by more than 1e-3, "
        f"~ ratios of a noisy machine, or with a band wider than {NOISY:.0%} a side: no verdict."
    )
    return "\n\n".join(parts)


def update(path: Path, results: list[dict[str, Any]]) -> bool:
    """Rewrites the text between the markers. Returns whether it changed; ValueError without markers or results."""
    if not results:
        raise ValueError("no committed results: run `python -m benchmarks --full --out benchmarks/results/NAME.json` first")
    text = path.read_text(encoding="utf-8")
    before, _, after = _split(text)
    new = f"{before}{BEGIN}\n{section(results)}\n{END}{after}"
    if new != text:
        path.write_text(new, encoding="utf-8")
    return new != text


def current(path: Path) -> str:
    """The present text between the markers."""
    return _split(path.read_text(encoding="utf-8"))[1].strip("\n")


def _split(text: str) -> tuple[str, str, str]:
    before, begin, rest = text.partition(BEGIN)
    inside, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page has no place for the table; expected the lines\n{BEGIN}\n{END}")
    return before, inside, after


def _table(result: dict[str, Any], subjects: tuple[str, ...]) -> str:
    workloads = {name: result["workloads"][name] for name in _SHOWN if name in result["workloads"]}
    columns = [s for s in subjects if any(_timed(w, s) for w in workloads.values())]
    rows = {name: w for name, w in workloads.items() if any(_timed(w, s) for s in columns)}
    if not rows:
        return ""
    ours = [s for s in columns if s.startswith("bertfast") and any(_best_peer(w, s) for w in rows.values())]
    headings = [*columns, *(f"{s} / best peer" for s in ours)]
    lines = ["| | " + " | ".join(headings) + " |", "|---|" + "--:|" * len(headings)]
    for name, workload in rows.items():
        cells = [*(_cell(workload, subject) for subject in columns), *(_best_peer(workload, subject) for subject in ours)]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _timed(workload: dict[str, Any], subject: str) -> bool:
    row = workload["rows"].get(subject)
    return row is not None and row["status"] == "timed" and "seconds" in row


def _best_peer(workload: dict[str, Any], subject: str) -> str:
    best = workload["rows"].get(subject, {}).get("best_peer")
    return _times(best, workload) if best and _timed(workload, subject) else ""


def _times(ratio: dict[str, Any], workload: dict[str, Any]) -> str:
    noisy = ratio["band"] > NOISY or workload.get("quality", {}).get("noisy", False)
    return f"{'~' if noisy else ''}{ratio['value']:.2f}x"


def _cell(workload: dict[str, Any], subject: str) -> str:
    if not _timed(workload, subject):
        return ""
    row = workload["rows"][subject]
    ratio = row.get("ratio", {})
    times = f" ({_times(ratio, workload)})" if ratio and ratio["to"] != subject else ""
    mark = "*" if row.get("check", {}).get("inexact") else ""
    return f"{amount(row['seconds']['median'], workload)}{times}{mark}"
