"""Soak: random jobs for hours, checked against transformers; fails on a wrong result, a hang, or growth.

    python -m tests.soak --hours H [--minutes M] [--seed S]

Jobs: calls of every head in random shapes and dtypes, from threads while weights move, and in forked children; generation, caches, the
Embedder, `bertfast embed`, optimize and restore, int8, models created and deleted, the number of threads changed. Prints memory, threads,
open files, living models and tensors at intervals; tests/soak/growth.py has the rule for growth. A job that hangs ends the run with the
stack of every thread. Exits with 1 and says what failed, with the seed of the job.
"""

import argparse
import faulthandler
import os
import random
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", HF_HUB_DISABLE_PROGRESS_BARS="1", TOKENIZERS_PARALLELISM="false")

PATIENCE = 600  # seconds of a job before it counts as hung
MOST_FAILURES = 10
FEWEST_SAMPLES = 20  # it goes on until it has them


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--hours", type=float, default=0.0)
    parser.add_argument("--minutes", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--interval", type=float, help="seconds between samples (default: 60 samples of the run)")
    arguments = parser.parse_args()
    seconds = 60 * (60 * arguments.hours + arguments.minutes)
    if seconds <= 0:
        parser.error("give --hours or --minutes")
    return run(seconds, arguments.seed, arguments.interval or seconds / 60)


def run(seconds: float, seed: int, interval: float, jobs: Mapping[Any, int] | None = None, patience: float = PATIENCE) -> int:
    """Runs jobs for that many seconds, JOBS unless others are given (with how often each comes). Returns the exit code."""
    import torch
    import transformers

    from tests.soak.growth import growing, sample, thread_names
    from tests.soak.jobs import JOBS, Models

    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)  # torch's own threads do not survive a fork
    jobs = JOBS if jobs is None else jobs
    begin, failures, done, i = time.monotonic(), list[str](), Counter[str](), 0
    with tempfile.TemporaryDirectory(prefix="soak") as name, torch.no_grad():
        torch.manual_seed(seed)
        models = Models(random.Random(seed), Path(name))
        begin = time.monotonic()
        samples = [sample(begin)]
        print(samples[0], flush=True)
        while ((now := time.monotonic() - begin) < seconds or len(samples) < FEWEST_SAMPLES) and len(failures) < MOST_FAILURES:
            faulthandler.dump_traceback_later(patience, exit=True, file=sys.__stderr__)
            rng = random.Random(f"{seed} {i}")
            job = rng.choices(list(jobs), list(jobs.values()))[0]
            torch.manual_seed(rng.randrange(1 << 30))
            try:
                job(models, rng)
            except Exception:
                failures.append(f"job {i} of seed {seed}, {job.__name__}: {traceback.format_exc()}")
                print(failures[-1], flush=True)
            done[job.__name__] += 1
            i += 1
            if now - samples[-1].seconds >= interval:
                samples.append(sample(begin))
                print(samples[-1], flush=True)
        faulthandler.cancel_dump_traceback_later()
        samples.append(sample(begin))
        print(samples[-1])
    print(", ".join(f"{count} {kind}" for kind, count in done.most_common()))
    if len(failures) < MOST_FAILURES:
        failures += growing(samples)
        for what in failures:
            print(what.splitlines()[-1])
    print(f"threads of Python at the end: {thread_names()}")
    print(f"{i} jobs in {time.monotonic() - begin:.0f} s, seed {seed}: {len(failures)} failures")
    return 1 if failures or not i else 0


if __name__ == "__main__":
    faulthandler.enable()
    sys.exit(main())
