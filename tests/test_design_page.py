"""docs/design.md names files that exist, and its vocabulary is in alphabetical order, one row a term."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
SUFFIXES = "py|cpp|h|md|txt|toml|sh"


def test_every_file_it_names_is_there():
    named = set(re.findall(rf"(?<![\w./])((?:bertfast|csrc|kernels|benchmarks|tests|docs)/[\w./]+\.(?:{SUFFIXES}))\b", PAGE))
    assert len(named) > 50
    denied = {"kernels/__init__.py"}  # the page says that it must not exist
    assert not [name for name in sorted(named - denied) if not (ROOT / name).is_file()]
    assert not (ROOT / "kernels/__init__.py").exists()


def test_the_vocabulary_has_one_row_a_term():
    rows = re.findall(r"^\| ([^|]+) \| [^|]+ \| `[\w./]+` \|$", PAGE, re.MULTILINE)
    assert len(rows) >= 40
    assert [row.lower() for row in rows] == sorted({row.lower() for row in rows}, key=lambda row: re.sub(r"[^a-z]", "", row))


def test_the_life_of_a_call_has_at_most_twelve_steps():
    section = PAGE.partition("## 2. ")[2].partition("## 3. ")[0]
    steps = re.findall(r"^(\d+)\. (.*)$", section, re.MULTILINE)
    assert max(int(number) for number, _ in steps) <= 12
    for number, text in steps:
        assert re.search(r"`(?:bertfast|csrc|kernels)/", text), f"step {number} names no file"
