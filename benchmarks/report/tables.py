"""A result as tables of text, and as Markdown."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.suite.stats import NOISY

_HEADINGS = ("subject", "time", "p20 - p80", "times as fast", "of the machine", "error", "")
_MEMORY_HEADINGS = ("subject", "peak", "", "times as small", "", "error", "")


@dataclass(frozen=True)
class Line:
    """One subject's row: its cells, and the terminal's style."""

    cells: tuple[str, ...]
    style: str = ""


def headline(result: dict[str, Any]) -> list[str]:
    """The machine, its peaks, the libraries' versions, and notes."""
    m, peaks = result["machine"], _rates(result["peaks"])
    lines = [f"{m['title']}; {result['threads']} threads; {m['system']}; {result['created']}"]
    if peaks:
        lines.append(f"peaks measured in this run: {peaks}")
    earlier: dict[str, list[str]] = {}  # workloads that --add and --resume kept: shares of their own run's peaks
    for name, workload in result["workloads"].items():
        if (own := _rates(workload.get("peaks"))) and own != peaks:
            earlier.setdefault(own, []).append(name)
    lines += [f"peaks measured in an earlier run, of {', '.join(names)}: {own}" for own, names in earlier.items()]
    lines.append(", ".join(f"{name} {version}" for name, version in result["versions"].items()))
    older = [(name, w) for name, w in result["workloads"].items() if w.get("build") != result.get("build")]
    if older:
        dated = ", ".join(name + (f" ({w['measured'][:10]})" if "measured" in w else "") for name, w in older)
        lines.append(f"note: measured with another build of bertfast than the rest: {dated}")
    if result.get("not_reached"):
        lines.append(f"not reached within the time limit: {', '.join(result['not_reached'])}")
    return lines + [f"note: {note}" for note in result["notes"]]


def _rates(peaks: dict[str, float] | None) -> str:
    if peaks is None:
        return ""
    rates = [f"{name} {peaks[name] / 1e9:.0f}" for name in ("float32", "bfloat16", "int8") if peaks[name]]
    return f"{', '.join(rates)} GFLOP/s (GOP/s), memory {peaks['bandwidth'] / 1e9:.1f} GB/s"


def title(name: str, workload: dict[str, Any]) -> str:
    parts = [name, workload["title"]]
    if workload.get("dtype"):
        parts.append(workload["dtype"])
    if workload["kind"] == "cold":
        parts.append("from the start of the process to the first answer, with the files in the page cache")
    elif workload["kind"] == "memory":
        parts.append("peak memory of a fresh process that loads and computes")
    elif workload["task"] == "embed":
        parts.append(f"{workload['B']} sentences, mean {workload['tokens'] / workload['B']:.0f} tokens, tokenising included")
    elif workload["task"] == "generate":
        if workload["kind"] == "steps":
            parts.append("every step timed, subjects take turns in stretches")
        parts.append(f"batch {workload['B']}, prompt {max(workload['lengths'])}, {workload['new_tokens']} new tokens, greedy")
    elif workload["padding"]:
        parts.append(
            f"{workload['B']} rows, {workload['tokens']} tokens, {workload['padding']:.0%} of {workload['B']}x{workload['S']} is padding"
        )
    if quality := workload.get("quality"):
        parts.append(f"{quality['rounds']} rounds" + (f", {quality['disturbed']} disturbed" if quality["disturbed"] else ""))
        if quality["noisy"]:
            parts.append("NOISY MACHINE")
    return "; ".join(parts)


def headings(workload: dict[str, Any]) -> tuple[str, ...]:
    return _MEMORY_HEADINGS if workload["kind"] == "memory" else _HEADINGS


def lines(workload: dict[str, Any]) -> Iterator[Line]:
    best = min((r["seconds"]["median"] for r in workload["rows"].values() if "seconds" in r), default=None)
    for name, row in workload["rows"].items():
        error = _error(row.get("check"))
        if row["status"] != "timed":
            yield Line(
                (name, row["status"], "", "", "", error, row.get("reason", "").splitlines()[0]),
                "dim" if row["status"] == "absent" else "red",
            )
        elif "mib" in row:
            yield Line((name, f"{row['mib']:.0f} MiB", "", _ratio(row), "", error, f"{row['loaded_mib']:.0f} MiB once loaded"))
        else:
            spread = row["seconds"]
            style = "bold green" if spread["median"] == best else ""
            band = f"{amount(spread['p20'], workload)} - {amount(spread['p80'], workload)}"
            yield Line((name, amount(spread["median"], workload), band, _ratio(row), _share(row), error, _remark(row, workload)), style)


def amount(seconds: float, workload: dict[str, Any]) -> str:
    """Milliseconds per call, or per new token for generation."""
    ms = seconds * 1e3 / max(1, workload["new_tokens"])
    return f"{ms / 1e3:.3g} s" if ms >= 1e4 else f"{ms:.0f} ms" if ms >= 1e3 else f"{ms:.3g} ms"


def missing(result: dict[str, Any]) -> list[str]:
    """The subjects that are in no table, and why."""
    found = [f"absent: {name} ({s['absent']})" for name, s in result["subjects"].items() if s["absent"]]
    return found + [
        f"left out: {name} ({s['left_out']}; --full or -s {name})" for name, s in result["subjects"].items() if s.get("left_out")
    ]


def markdown(result: dict[str, Any]) -> str:
    """The whole result, one table per workload."""
    out = [*(f"{line}  " for line in headline(result)), ""]
    for name, workload in result["workloads"].items():
        out += [f"**{title(name, workload)}**", "", "| " + " | ".join(headings(workload)) + " |", "|---|--:|--:|--:|--:|---|---|"]
        out += ["| " + " | ".join(cell.replace("|", "\\|") for cell in line.cells) + " |" for line in lines(workload)]
        out.append("")
    out += [f"- {name}: {s['setup']} ({s['dtype']})" for name, s in result["subjects"].items() if not s["absent"] and not s.get("left_out")]
    out += [f"- {line}" for line in missing(result)]
    return "\n".join(out) + "\n"


def _ratio(row: dict[str, Any]) -> str:
    return _times(row["ratio"]) if row.get("ratio") else ""


def _times(ratio: dict[str, Any]) -> str:
    band = f" ± {ratio['band']:.0%}" if ratio["band"] else ""
    return f"{ratio['value']:.2f}x{band}" + (" (noisy, no verdict)" if ratio["band"] > NOISY else "")


def _share(row: dict[str, Any]) -> str:
    """The larger share: of the peak arithmetic (F) or of the bandwidth (B)."""
    shares = [(row[key], letter) for key, letter in (("of_arithmetic", "F"), ("of_bandwidth", "B")) if key in row]
    return "{:.0%} {}".format(*max(shares)) if shares else ""


def _error(check: dict[str, Any] | None) -> str:
    if check is None:
        return ""
    if check["agreement"] is not None:
        return f"{check['agreement']:.1%} of tokens"
    if check["largest"] is None:
        return ""
    mark = " *" if check["inexact"] else ""
    return f"{check['largest']:.1e}, cos {check['cosine']:.5f}{mark}"


def _remark(row: dict[str, Any], workload: dict[str, Any]) -> str:
    if phases := row.get("phases"):
        return ", ".join(f"{name} {seconds:.2f} s" for name, seconds in phases.items())
    parts = []
    if itself := row.get("itself"):
        parts.append(f"{_times(itself)} itself")
    if best := row.get("best_peer"):
        parts.append(f"{_times(best)} the best peer, {best['to']}")
    if line := row.get("line"):
        parts.append(f"{line['first'] * 1e3:.3g} ms a step, and {line['slope'] * 1e6:.3g} us more for each token before it")
    if step := row.get("step"):
        parts.append(f"{step['median'] * 1e3:.3g} ms a step without the prompt")
    if stream := row.get("back_to_back"):
        parts.append(f"{amount(stream['median'], workload)} back to back")
    per_second = (workload["B"] if workload["task"] == "embed" else workload["tokens"]) / row["seconds"]["median"]
    parts.append(f"{per_second:,.0f} {'sentences' if workload['task'] == 'embed' else 'tokens'}/s")
    return "; ".join(parts)
