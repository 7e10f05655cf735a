"""The process that one subject runs in: `python -m benchmarks.worker`, told what to do by lines of JSON on its standard input.

Its libraries may print what they like: standard output goes to standard error, and answers leave by a copy of the original
descriptor. Arrays travel as .npz files in a folder that both ends know.
"""

import gc
import json
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np


class Worker:
    def __init__(self) -> None:
        self._adapter: Any = None
        self._call: Callable[[], Any] = lambda: None
        self._last: Any = None
        self._task = ""

    def do_convert(self, factory: str, dtype: str, threads: int, options: dict[str, str], folder: str, task: str, cache: str) -> None:
        module, _, name = factory.partition(":")
        self._adapter = getattr(import_module(module), name)(dtype, threads, **options)
        self._task = task
        self._where = (Path(folder), task, Path(cache))
        self._adapter.convert(*self._where)

    def do_load(self) -> dict[str, float]:
        begin = time.perf_counter()
        self._adapter.load(*self._where)
        return {"seconds": time.perf_counter() - begin}

    def do_inputs(self, path: str, new_tokens: int) -> None:
        with np.load(path) as arrays:
            inputs = {name: arrays[name] for name in arrays.files}
        self._last = None
        self._call = self._adapter.prepare(inputs, new_tokens)

    def do_outputs(self, path: str, again: bool) -> dict[str, float]:
        """Of one call, or, `again`, of the last one that was timed."""
        begin = time.perf_counter()
        result = self._last if again else self._call()
        seconds = time.perf_counter() - begin
        np.savez(path, **self._adapter.outputs(result))
        return {"seconds": seconds}

    def do_reference_gaps(self, path: str, inputs: str, new_tokens: int) -> None:
        """For generation: by how much the best score led the second, at every step of the reference's own run."""
        import torch

        with np.load(inputs) as arrays:
            ids, mask = (torch.from_numpy(arrays[name]) for name in ("input_ids", "attention_mask"))
        with torch.inference_mode():
            found = self._adapter.model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=new_tokens,
                min_new_tokens=new_tokens,
                do_sample=False,
                pad_token_id=0,
                output_scores=True,
                return_dict_in_generate=True,
            )
        best = [scores.topk(2).values for scores in found.scores]
        np.savez(path, gaps=np.stack([(b[:, 0] - b[:, 1]).numpy() for b in best], 1))

    def do_time(self, calls: int, warm: int) -> dict[str, Any]:
        """`warm` calls, then `calls` timed ones, in seconds. CPU seconds of the process beside them."""
        call, clock = self._call, time.perf_counter
        for _ in range(warm):
            call()
        gc.collect()
        gc.disable()
        seconds = []
        used = time.process_time()
        for _ in range(calls):
            begin = clock()
            self._last = call()
            seconds.append(clock() - begin)
        used = time.process_time() - used
        gc.enable()
        return {"seconds": seconds, "cpu": used}

    def do_peak(self) -> dict[str, float]:
        """Most memory that this process ever held, in MiB. (ru_maxrss would count what the parent held when it forked.)"""
        for line in _lines("/proc/self/status"):
            if line.startswith("VmHWM:"):
                return {"mib": int(line.split()[1]) / 1024}
        return {"mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    worker = Worker()
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        what = request.pop("do")
        try:
            answer = getattr(worker, f"do_{what}")(**request) or {}
        except Exception as error:  # whatever a library throws is an answer: the suite goes on without it
            answer = {"error": type(error).__name__, "message": str(error) or repr(error), "traceback": traceback.format_exc()}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
