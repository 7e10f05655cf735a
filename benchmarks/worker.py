"""The process that one subject runs in: `python -m benchmarks.worker`, told what to do by lines of JSON on its standard input.

Its libraries may print what they like: standard output goes to standard error, and answers leave by a copy of the original
descriptor. Arrays travel as .npz files in a folder that both ends know.
"""

import ctypes
import gc
import json
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

_PR_SET_PDEATHSIG = 1


class Worker:
    def __init__(self, say: Callable[[dict[str, Any]], None]) -> None:
        self._say = say
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

    def do_settle(self) -> None:
        self._adapter.settle()

    def do_inputs(self, path: str, new_tokens: int) -> None:
        with np.load(path) as arrays:
            inputs = {name: arrays[name] for name in arrays.files}
        self._last = None
        self._call = self._adapter.prepare(inputs, new_tokens)

    def do_outputs(self, path: str, again: bool) -> dict[str, float]:
        """Of one call, or, `again`, of the last one that was made."""
        begin = time.perf_counter()
        result = self._last if again else self._call()
        seconds = time.perf_counter() - begin
        self._last = result
        np.savez(path, **self._adapter.outputs(result))
        gc.collect()
        gc.freeze()  # a collection before each turn would look at half a million objects of imported modules: 0.2 s every time
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
        gc.disable()
        seconds = []
        used = time.process_time()
        for _ in range(calls):
            begin = clock()
            self._last = call()
            seconds.append(clock() - begin)
        used = time.process_time() - used
        gc.enable()
        if warm or calls > 1:  # not where a first call is all that is asked for: nobody waits for its garbage
            gc.collect()
        return {"seconds": seconds, "cpu": used}

    def do_steps(self, every: int) -> dict[str, Any]:
        """One generation, and when each of its tokens came: seconds a step, None for the first token, which a prefill precedes, and for the
        first after a rest. After `every` tokens it rests: answers {"rest": tokens so far} and waits for a line, so that two subjects can
        take turns within their generations."""
        clock = Clock(every, lambda tokens: self._rest(tokens))
        gc.collect()
        self._last = self._call(streamer=clock)
        return {"steps": clock.steps}

    def _rest(self, tokens: int) -> None:
        self._say({"rest": tokens})
        if not sys.stdin.readline():
            raise SystemExit  # the suite has gone

    def do_peak(self) -> dict[str, float]:
        """Most memory that this process ever held, in MiB. (ru_maxrss would count what the parent held when it forked.)"""
        for line in _lines("/proc/self/status"):
            if line.startswith("VmHWM:"):
                return {"mib": int(line.split()[1]) / 1024}
        return {"mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


class Clock:
    """A streamer for generate(), which calls put() with the prompt, and then with the tokens of each step."""

    def __init__(self, every: int, rest: Callable[[int], None]) -> None:
        self.steps: list[float | None] = []
        self._every = every
        self._rest = rest
        self._prompt = True
        self._last: float | None = None

    def put(self, tokens: Any) -> None:
        now = time.perf_counter()
        if self._prompt:
            self._prompt = False
            return
        self.steps.append(None if self._last is None else now - self._last)
        self._last = now
        if len(self.steps) % self._every == 0:
            self._rest(len(self.steps))
            self._last = None

    def end(self) -> None:
        pass


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def _die_with_the_suite() -> None:
    """Between its turns a worker is stopped, and what is stopped notices no end of its input: the kernel has to end it. (Linux.)"""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)


def main() -> None:
    _die_with_the_suite()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(answer: dict[str, Any]) -> None:
        print(json.dumps(answer), file=answers, flush=True)

    worker = Worker(say)
    say({"ready": True})
    while line := sys.stdin.readline():  # iterating would read ahead, past the line that a rest waits for
        request = json.loads(line)
        what = request.pop("do")
        try:
            answer = getattr(worker, f"do_{what}")(**request) or {}
        except Exception as error:  # whatever a library throws is an answer: the suite goes on without it
            answer = {"error": type(error).__name__, "message": str(error) or repr(error), "traceback": traceback.format_exc()}
        say(answer)
    sys.stderr.flush()
    os._exit(0)  # nothing is left to do, and taking torch or OpenVINO apart takes seconds


if __name__ == "__main__":
    main()
