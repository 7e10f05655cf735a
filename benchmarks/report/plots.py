"""Pictures of a result: latency by shape, throughput by padding, share of the peak, milliseconds per step."""

from collections.abc import Callable
from importlib.util import find_spec
from math import nan
from pathlib import Path
from typing import Any

from benchmarks.suite.models import MODELS

_GRID = ("1x16", "1x128", "8x128", "32x128", "1x384", "8x512", "padded32")
_FILLS = ("fill25", "padded32", "fill50", "fill75", "32x128")
_OURS = "#c8102e"
_OTHERS = (
    "#1f4e79",
    "#5b8db8",
    "#7a7a7a",
    "#2e7d5b",
    "#b58900",
    "#8e5ea2",
    "#a0522d",
    "#3a3a3a",
    "#86b875",
    "#c9a0dc",
    "#4aa5a5",
    "#d2b48c",
)


def draw(result: dict[str, Any], stem: Path) -> list[Path]:
    """Writes STEM-KIND.png for each kind with data in the result; nothing if matplotlib is not installed."""
    if find_spec("matplotlib") is None:
        return []
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    drawn = []
    for name, picture in (("latency", _latency), ("padding", _padding), ("peak", _peak), ("steps", _steps)):
        figure = picture(result, plt)
        if figure is not None:
            path = stem.with_name(f"{stem.name}-{name}.png")
            figure.savefig(path, dpi=150, bbox_inches="tight")
            plt.close(figure)
            drawn.append(path)
    return drawn


def _latency(result: dict[str, Any], plt: Any) -> Any:
    return _bars(result, plt, lambda w, row: row["seconds"]["median"] * 1e3, "milliseconds a call (log)", log=True)


def _peak(result: dict[str, Any], plt: Any) -> Any:
    if result["peaks"] is None:
        return None
    return _bars(
        result, plt, lambda w, row: 100 * row.get("of_arithmetic", nan), "% of the measured peak of its dtype, real tokens counted"
    )


def _bars(result: dict[str, Any], plt: Any, value: Callable[[Any, Any], float], label: str, log: bool = False) -> Any:
    models = [m for m in ("minilm", "bert-base") if any(f"{m}/{shape}" in result["workloads"] for shape in _GRID)]
    if not models:
        return None
    figure, axes = plt.subplots(len(models), 1, figsize=(11, 4.2 * len(models)), squeeze=False)
    for axis, model in zip(axes[:, 0], models, strict=True):
        shapes = [shape for shape in _GRID if f"{model}/{shape}" in result["workloads"]]
        names = _subjects(result, [f"{model}/{shape}" for shape in shapes])
        width = 0.85 / max(1, len(names))
        for i, name in enumerate(names):
            at, heights = [], []
            for j, shape in enumerate(shapes):
                workload = result["workloads"][f"{model}/{shape}"]
                row = workload["rows"].get(name, {})
                if row.get("status") == "timed":
                    at.append(j + (i - (len(names) - 1) / 2) * width)
                    heights.append(value(workload, row))
            axis.bar(at, heights, width, label=name, color=_colour(name, names), hatch=_hatch(result, name))
        axis.set_xticks(range(len(shapes)), shapes)
        axis.set_yscale("log" if log else "linear")
        axis.set_ylabel(label)
        axis.set_title(result["workloads"][f"{model}/{shapes[0]}"]["title"], loc="left")
        axis.legend(fontsize=7, ncols=4)
    return _caption(figure, result)


def _padding(result: dict[str, Any], plt: Any) -> Any:
    workloads = [result["workloads"][f"minilm/{shape}"] for shape in _FILLS if f"minilm/{shape}" in result["workloads"]]
    return _curves(
        result,
        plt,
        workloads,
        lambda w: 100 * w["padding"],
        lambda w, row: w["tokens"] / row["seconds"]["median"],
        ("% of 32x128 that is padding", "real tokens a second"),
    )


def _steps(result: dict[str, Any], plt: Any) -> Any:
    """The time of each step as the sequence grows, a panel per batch size, with the line fitted through it. Dotted: the least time to read
    the KV cache, added to where bertfast's line begins."""
    workloads = [w for w in result["workloads"].values() if w["kind"] == "steps" and any("steps" in row for row in w["rows"].values())]
    if not workloads:
        return None
    figure, axes = plt.subplots(1, len(workloads), figsize=(7 * len(workloads), 5), squeeze=False)
    for axis, workload in zip(axes[0], workloads, strict=True):
        names = [name for name, row in workload["rows"].items() if "steps" in row]
        for name in names:
            row = workload["rows"][name]
            at = [i for i, step in enumerate(row["steps"]) if step is not None]
            colour, style = _colour(name, names), "--" if _hatch(result, name) else "-"
            axis.plot(at, [1e3 * row["steps"][i] for i in at], color=colour, linewidth=0.5, alpha=0.5)
            line = row["line"]
            ends = [0, len(row["steps"])]
            label = f"{name}: {1e3 * line['first']:.3g} ms + {1e6 * line['slope']:.3g} us a token"
            axis.plot(ends, [1e3 * (line["first"] + line["slope"] * n) for n in ends], color=colour, linestyle=style, label=label)
            peaks = workload.get("peaks", result["peaks"])  # its own if it was kept from an earlier run
            if name == "bertfast" and peaks:
                model = MODELS[workload["model"]]
                each = 2 * model.L * model.H * 4 * workload["B"] / peaks["bandwidth"]
                floor = [1e3 * (line["first"] + each * n) for n in ends]
                axis.plot(ends, floor, color="black", linestyle=":", label=f"reading its float32 cache: {1e6 * each:.3g} us a token")
        axis.set_xlabel(f"tokens generated, after a prompt of {max(workload['lengths'])}")
        axis.set_ylabel(f"milliseconds a step, batch {workload['B']}")
        axis.set_ylim(bottom=0)
        axis.set_title(workload["title"], loc="left")
        axis.legend(fontsize=8)
    return _caption(figure, result)


def _curves(
    result: dict[str, Any],
    plt: Any,
    workloads: list[dict[str, Any]],
    x: Callable[[Any], float],
    y: Callable[[Any, Any], float],
    labels: tuple[str, str],
) -> Any:
    if len(workloads) < 2:
        return None
    figure, axis = plt.subplots(figsize=(9, 5))
    names = [s for s in result["subjects"] if any(w["rows"].get(s, {}).get("status") == "timed" for w in workloads)]
    for name in names:
        points = sorted((x(w), y(w, w["rows"][name])) for w in workloads if w["rows"].get(name, {}).get("status") == "timed")
        axis.plot(
            *zip(*points, strict=True), marker="o", label=name, color=_colour(name, names), linestyle="--" if _hatch(result, name) else "-"
        )
    axis.set_xlabel(labels[0])
    axis.set_ylabel(labels[1])
    axis.set_ylim(bottom=0)
    axis.legend(fontsize=8)
    return _caption(figure, result)


def _subjects(result: dict[str, Any], workloads: list[str]) -> list[str]:
    found = dict.fromkeys(n for w in workloads for n, row in result["workloads"][w]["rows"].items() if row["status"] == "timed")
    return sorted(found, key=lambda name: not name.startswith("bertfast"))


def _colour(name: str, names: list[str]) -> str:
    others = [n for n in names if not n.startswith("bertfast")]
    return _OURS if name.startswith("bertfast") else _OTHERS[others.index(name) % len(_OTHERS)]


def _hatch(result: dict[str, Any], name: str) -> str:
    return {"bfloat16": "//", "int8": "xx"}.get(result["subjects"].get(name, {}).get("dtype", ""), "")


def _caption(figure: Any, result: dict[str, Any]) -> Any:
    figure.text(0.01, -0.01, f"{result['machine']['title']}; {result['threads']} threads; {result['created'][:10]}", fontsize=7, va="top")
    figure.tight_layout()
    return figure
