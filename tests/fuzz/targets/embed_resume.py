"""OUT.part and its run file, damaged: `embed --resume` goes on from rows that are the interrupted run's, or refuses them by name."""

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

from bertfast.cli.output_files import open_output
from tests.fuzz.case import Target
from tests.fuzz.damage import damaged
from tests.fuzz.folders import FolderCase, blob  # noqa: F401 (blob is what the corpus is written in)
from tests.fuzz.json_damage import edited_json

FACTS = {"input": "in.txt", "dtype": "float32"}
DIM, ROWS = 3, 5


@functools.cache
def interrupted(suffix: str) -> dict[str, bytes]:
    """The files that a run leaves which was stopped after two chunks."""
    with tempfile.TemporaryDirectory() as folder:
        out = open_output(f"{folder}/out{suffix}", resume=False, restart=False)
        out.begin(DIM, FACTS)
        for start in (0, 2):
            texts = [f"text {i}" for i in range(start, start + 2 + start // 2)]
            out.append(texts, np.arange(start, start + len(texts) * DIM, dtype=np.float32).reshape(-1, DIM))
        out.stream.flush()
        found = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
        out.stream.close()
        return found


class EmbedResume(FolderCase):
    code = (
        "from bertfast.cli.output_files import open_output\n"
        "for name in folder.glob('*.part'):\n"
        "    out = open_output(str(name.with_suffix('')), resume=True, restart=False)\n"
        f"    print(out.begin({DIM}, {FACTS}), out.rows)"
    )

    def read(self, folder: Path) -> Any:
        [part] = folder.glob("*.part")
        out = open_output(str(part.with_suffix("")), resume=True, restart=False)
        try:
            texts = out.begin(DIM, FACTS)
            return out.rows, texts, part.with_suffix("").suffix, part.read_bytes()
        finally:
            out.close()

    def judge(self, folder: Path, result: Any) -> None:
        rows, texts, suffix, content = result
        if rows == 0:
            return
        valid = interrupted(suffix)
        run = json.loads(valid[f"out{suffix}.part.run.json"])
        assert (rows, texts) == (run["rows"], run["texts"]) or "texts" not in str(texts), (
            f"goes on from {rows} rows, expected {run['rows']}"
        )
        kept = len(valid[f"out{suffix}.part"])
        header = 128 if suffix == ".npy" else 0
        assert content[header:kept] == valid[f"out{suffix}.part"][header:], "goes on from rows that were changed"


@st.composite
def cases(draw: st.DrawFn) -> EmbedResume:
    suffix = draw(st.sampled_from([".npy", ".jsonl"]))
    files = dict(interrupted(suffix))
    part, run = f"out{suffix}.part", f"out{suffix}.part.run.json"
    kind = draw(st.sampled_from(["part", "run", "both", "missing", "longer"]))
    if kind in ("part", "both"):
        files[part] = draw(damaged(files[part]))
    if kind in ("run", "both"):
        files[run] = draw(edited_json(json.loads(files[run]), ("rows", "facts", "texts", "vectors")))
    if kind == "missing":
        del files[run]
    if kind == "longer":  # rows that were written after the last run file
        files[part] += files[part][-12:] if suffix == ".npy" else b'{"text": "a", "vector": [1, 2, 3]}\n'
    return EmbedResume(files)


TARGET = Target(cases(), batch=100, share=0.5)
