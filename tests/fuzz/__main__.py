"""python -m tests.fuzz: see the package's docstring. The exit status is 1 where something was found."""

import argparse
import os
import sys
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")  # before transformers is imported

from tests.fuzz import corpus, runner


def main() -> int:
    parser = argparse.ArgumentParser("python -m tests.fuzz", description="Checks random cases until the time is over.")
    parser.add_argument("--minutes", type=float, default=2.0, help="of all targets together (default: 2)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed makes the same cases (default: 0)")
    parser.add_argument(
        "--target", action="append", choices=runner.NAMES, metavar="NAME", help=f"one of {', '.join(runner.NAMES)}; repeatable"
    )
    parser.add_argument(
        "--corpus",
        type=Path,
        default=corpus.FOLDER,
        metavar="DIR",
        help="cases to begin with; new findings are added to another one than the default",
    )
    options = parser.parse_args()
    print(f"seed {options.seed}, {options.minutes:g} minutes", flush=True)
    reports = runner.fuzz(options.target or runner.NAMES, 60 * options.minutes, options.seed, options.corpus)
    print()
    print(*reports, sep="\n")
    found = sum(len(report.findings) for report in reports)
    print(f"{found} findings" if found != 1 else "1 finding")
    return int(found > 0)


if __name__ == "__main__":
    sys.exit(main())
