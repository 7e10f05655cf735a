"""docs/api.md: its Python runs as it is printed, and it names every public class and function."""

import re
from pathlib import Path

import bertfast

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "api.md").read_text(encoding="utf-8")


def test_python_blocks_run_one_after_the_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # they save models
    threads = bertfast.get_num_threads()
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 8
    names: dict[str, object] = {}
    try:
        for block in blocks:
            exec(compile(block, "docs/api.md", "exec"), names)
    finally:
        bertfast.set_num_threads(threads)


def test_every_public_name_is_described():
    output_classes = {name for name in bertfast.__all__ if name.endswith(("Output", "Attentions", "Predictor"))}
    for name in set(bertfast.__all__) - output_classes - {"__version__"}:
        assert f"`{name}`" in PAGE or f"bertfast.{name}(" in PAGE, name
