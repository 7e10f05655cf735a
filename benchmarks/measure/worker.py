"""The process that one subject runs in: `python -m benchmarks.measure.worker`. Requests are lines of JSON on its standard input.

Answers go to the original standard output; standard output itself is redirected to standard error, since libraries print to it.
Arrays are exchanged as .npz files.
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
        """Writes the outputs of one call, or with `again` of the last call that was made."""
        begin = time.perf_counter()
        result = self._last if again else self._call()
        seconds = time.perf_counter() - begin
        self._last = result
        np.savez(path, **self._adapter.outputs(result))
        gc.collect()
        gc.freeze()  # half a million objects of imported modules: visiting them would take 0.2 s per collection
        return {"seconds": seconds}

    def do_reference_gaps(self, path: str, inputs: str, new_tokens: int) -> None:
        with np.load(inputs) as arrays:
            given = {name: arrays[name] for name in arrays.files}
        np.savez(path, gaps=self._adapter.gaps(given, new_tokens))

    def do_time(self, calls: int, warm: int) -> dict[str, Any]:
        """Seconds of each of `calls` calls, after `warm` calls, and the process's CPU seconds. For asynchronous calls, which are waited for
        one by one, also `back_to_back`: seconds per call without waiting in between."""
        call, clock = self._call, time.perf_counter
        timed = self._waiting(call) if self._adapter.asynchronous else call
        for _ in range(warm):
            timed()
        gc.disable()
        seconds = []
        used = time.process_time()
        for _ in range(calls):
            begin = clock()
            self._last = timed()
            seconds.append(clock() - begin)
        used = time.process_time() - used
        answer = {"seconds": seconds, "cpu": used}
        if self._adapter.asynchronous:
            begin = clock()
            for _ in range(calls):
                self._last = call()
            self._adapter.synchronize()
            answer["back_to_back"] = (clock() - begin) / calls
        gc.enable()
        if warm or calls > 1:  # not after the first call of a cold start
            gc.collect()
        return answer

    def _waiting(self, call: Callable[[], Any]) -> Callable[[], Any]:
        synchronize = self._adapter.synchronize

        def called() -> Any:
            result = call()
            synchronize()
            return result

        return called

    def do_steps(self, every: int) -> dict[str, Any]:
        """Seconds of each step of one generation; None for the first token, which follows the prefill, and for the first after a rest.
        After `every` tokens the worker answers {"rest": tokens so far} and waits for a line, so that subjects take turns."""
        clock = Clock(every, lambda tokens: self._rest(tokens))
        gc.collect()
        self._last = self._call(streamer=clock)
        return {"steps": clock.steps}

    def _rest(self, tokens: int) -> None:
        self._say({"rest": tokens})
        if not sys.stdin.readline():
            raise SystemExit  # the suite has ended

    def do_peak(self) -> dict[str, float]:
        """This process's peak memory in MiB. (On Linux ru_maxrss includes the parent's memory at the fork.)"""
        for line in _lines("/proc/self/status"):
            if line.startswith("VmHWM:"):
                return {"mib": int(line.split()[1]) / 1024}
        return {"mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


class Clock:
    """A streamer: generate() calls put() with the prompt, then with the tokens of each step."""

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
    """Has the kernel kill this process with its parent (Linux): a stopped process does not notice the end of its input."""
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
    while line := sys.stdin.readline():  # iterating reads ahead, past the line that a rest waits for
        request = json.loads(line)
        what = request.pop("do")
        try:
            answer = getattr(worker, f"do_{what}")(**request) or {}
        except Exception as error:  # the suite goes on without this subject
            answer = {"error": type(error).__name__, "message": str(error) or repr(error), "traceback": traceback.format_exc()}
        say(answer)
    sys.stderr.flush()
    os._exit(0)  # unloading torch or OpenVINO takes seconds


if __name__ == "__main__":
    main()
