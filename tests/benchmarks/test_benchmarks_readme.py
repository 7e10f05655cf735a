"""Every measured figure in the README comes from a committed result file."""

from pathlib import Path

import pytest

from benchmarks.report import readme, results

PAGE = Path(__file__).parents[2] / "README.md"


def test_readme_equals_the_committed_results():
    committed = results.committed()
    if not committed:
        assert readme.current(PAGE) == "", "the README shows measurements, and no result file is committed"
        pytest.skip("no result file is committed, and the README shows none")
    assert readme.current(PAGE) == readme.section([results.load(path) for path in committed]), "run python -m benchmarks readme"


def test_committed_results_are_whole():
    """Files that a run wrote to its end, on a machine that was quiet."""
    for path in results.committed():
        result = results.load(path)
        assert path.stem == result["machine"]["key"]
        assert result["peaks"] is not None
        assert "bertfast" in result["subjects"]
        for name, workload in result["workloads"].items():
            for subject, row in workload["rows"].items():
                assert row["status"] in ("timed", "absent", "refused", "failed"), (name, subject)
                assert row["status"] == "timed" or row["reason"], (name, subject)
