"""Kills: every command that writes is ended at random moments; what it leaves must not cost its user anything but time.

    python -m tests.kills --times 500 [--seed S] [--command NAME]

Each trial runs one command under a random fault (SIGKILL, SIGTERM, SIGINT; a full disk, RLIMIT_FSIZE, /dev/full, a closed pipe), some in
an interpreter of their own, then goes on as its messages say. The result must equal that of an undisturbed run, byte for byte, with no
other file beside it; a finished result is never lost; nothing that is left blocks the next run. Exits with 1 and prints what did not hold.
"""

import argparse
import os
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", HF_HUB_DISABLE_PROGRESS_BARS="1")
os.environ.update(TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1")

FRESH = 25  # one trial in so many runs in an interpreter of its own


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.kills", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--times", type=int, default=50, help="number of trials (default 50)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--command", default="", help="only commands whose name contains this")
    parser.add_argument("--trial", type=int, help="that trial of the seed alone")
    arguments = parser.parse_args()
    trials = range(arguments.times) if arguments.trial is None else range(arguments.trial, arguments.trial + 1)
    return run(trials, arguments.seed, arguments.command)


def run(trials: range, seed: int, only: str = "", fresh: int = FRESH) -> int:
    """Runs these trials of a seed and prints what they found. Returns the exit code."""
    from tests.kills import child
    from tests.kills.commands import Setting
    from tests.kills.trial import prepare, trial, why_no_disks

    child.preload()
    begin, found, faults_seen = time.monotonic(), [], Counter[str]()
    with tempfile.TemporaryDirectory(prefix="kills") as name:
        setting = Setting(Path(name))
        subjects = [prepare(setting, command) for command in setting.commands() if only in command.name]
        for subject in subjects:
            run = subject.run
            print(f"{subject.command.name}: {run.seconds:.2f} s, {run.operations} operations on files, largest {run.largest:,} bytes")
        no_disks = why_no_disks(setting.folder)
        for i in trials:
            rng = random.Random(f"{seed} {i}")
            subject = subjects[i % len(subjects)]
            faults, wrong = trial(setting, subject, rng, disks=no_disks is None, fresh=fresh > 0 and i % fresh == fresh - 1)
            if i % 50 == 49:
                print(f"{i + 1} trials in {time.monotonic() - begin:.0f} s", flush=True)
            faults_seen.update(str(fault).split(" ")[0] for fault in faults)
            for what in wrong:
                found.append(f"trial {i} of seed {seed}, {subject.command.name}, {' then '.join(map(str, faults))}: {what}")
                print(found[-1], flush=True)
    print("faults:", ", ".join(f"{count} {kind}" for kind, count in sorted(faults_seen.items())))
    if no_disks is not None:
        print(f"NOT RUN: full disks: {no_disks}")
    print(f"{len(trials)} trials in {time.monotonic() - begin:.0f} s, seed {seed}: {len(found)} findings")
    return 1 if found or not trials else 0


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)  # a child of a process with threads of torch's own may hang
    sys.exit(main())
