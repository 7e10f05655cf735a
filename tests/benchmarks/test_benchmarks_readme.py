"""Every measured figure in the README comes from a committed result file, and every command line in the documents exists."""

import re
from pathlib import Path

import pytest
import typer

from benchmarks import cli
from benchmarks.commands import OWN_ARGUMENTS
from benchmarks.report import readme, results

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "README.md"


def test_readme_equals_the_committed_results():
    committed = results.committed()
    if not committed:
        assert readme.current(PAGE) == "", "the README shows measurements, and no result file is committed"
        pytest.skip("no result file is committed, and the README shows none")
    assert readme.current(PAGE) == readme.section([results.load(path) for path in committed]), "run python -m benchmarks readme"


def test_committed_results_are_whole():
    """Complete runs, with peaks, and a reason for every row without a time."""
    for path in results.committed():
        result = results.load(path)
        assert path.stem == result["machine"]["key"]
        assert result["peaks"] is not None
        assert "bertfast" in result["subjects"]
        for name, workload in result["workloads"].items():
            for subject, row in workload["rows"].items():
                assert row["status"] in ("timed", "absent", "refused", "failed"), (name, subject)
                assert row["status"] == "timed" or row["reason"], (name, subject)


def test_every_command_line_in_the_documents_exists():
    """The sub-command and the options of each `python -m benchmarks ...`."""
    app = typer.main.get_command(cli.app)
    found = 0
    for page in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "benchmarks" / "README.md", *(ROOT / ".ci").iterdir()):
        for module, line in re.findall(r"python -m benchmarks(\.[\w.]+)?([^\n`]*)", page.read_text(encoding="utf-8")):
            found += 1
            assert not module, f"{page}: python -m benchmarks{module}: expected a sub-command"
            words = line.partition("#")[0].split()
            name = words[0] if words and words[0][0] not in "-|" else ""
            command = app.commands[name] if name else app
            if name not in OWN_ARGUMENTS:
                options = {option for parameter in command.params for option in parameter.opts}
                assert {word for word in words if word.startswith("-")} <= options | {"--help"}, f"{page}: {line}"
    assert found > 10
