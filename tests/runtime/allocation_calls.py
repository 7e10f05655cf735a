"""Public calls with each allocation of the C++ host failing in turn: MemoryError or the right result, and the next call right.

Run with failing_allocations.cpp preloaded: `python -m tests.runtime.allocation_calls`. Prints each call with the number of its
allocations, and a line for each fault.
"""

import ctypes
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

import bertfast
from bertfast import _C
from bertfast.cache.objects import CACHE_FIELD
from bertfast.engine.model_state import drop_state
from bertfast.ops import cpu
from tests import builders
from tests.compare import is_equal

Call = Callable[[], Any]

library = ctypes.CDLL(None)
library.stop_failing.restype = ctypes.c_bool
library.fail_after.argtypes = (ctypes.c_int, ctypes.c_bool, ctypes.c_size_t, ctypes.c_size_t)


def code_of_host() -> tuple[int, int]:
    """The addresses of _C's code."""
    with open("/proc/self/maps") as maps:
        parts = [line.split() for line in maps]
    ends = [part[0].split("-") for part in parts if part[-1] == _C.__file__ and "x" in part[1]]
    return int(ends[0][0], 16), int(ends[-1][1], 16)


def nothing() -> None:
    pass


def sweep(name: str, call: Call, before: Callable[[], object] = nothing, coarse: bool = False) -> None:
    """before: what the first of two calls starts from. coarse: of many allocations only some fail."""
    where = code_of_host()
    before()
    expected = call()
    for later in (False, True):
        count = 0
        while True:
            before()
            problem, actual = "", expected
            library.fail_after(count, later, *where)
            try:
                actual = call()
            except MemoryError:
                pass
            except Exception as error:
                problem = f"{type(error).__name__}: {error}"
            failed = library.stop_failing()
            if not problem and not is_equal(actual, expected):
                problem = "a wrong result"
            if not is_equal(call(), expected):
                problem += "; the next call is wrong"
            if problem:
                print(f"FAULT {name}, allocation {count}{' and all later' if later else ''}: {problem}")
            if not failed:
                break
            count += 1 + (count // 20 if coarse else 0)
        print(f"{name}: {count} allocations", flush=True)


def tensors(model: Any, arguments: dict[str, Any], **options: Any) -> dict[str, Any]:
    with torch.no_grad():
        return dict(model(**arguments, **options))


def new_pool() -> None:
    """The next op on several rows starts threads, whose arenas are empty."""
    bertfast.set_num_threads(3)
    cpu.linear(torch.zeros(64, 8), torch.zeros(64, 8), torch.zeros(64))
    bertfast.set_num_threads(2)


class CachedStep:
    """A step on a KV cache, which it takes back: after an error too, the cache must be as it was."""

    def __init__(self, model: Any) -> None:
        self.model, self.ids = model, torch.arange(24).view(2, 12)

    def prefill(self) -> None:
        self.cache = tensors(self.model, {"input_ids": self.ids, "use_cache": True})[CACHE_FIELD]

    def __call__(self) -> Tensor:
        logits: Tensor = tensors(self.model, {"input_ids": self.ids[:, :1], "use_cache": True, CACHE_FIELD: self.cache})["logits"]
        self.cache.crop(-1)
        return logits


def batch_cuts() -> list[int]:
    lengths, order = torch.tensor([5, 90, 1, 7, 60, 3, 3, 8]), torch.empty(8, dtype=torch.int64)
    return [*_C.plan_batches(lengths.data_ptr(), 8, 64, 4, order.data_ptr()), *order.tolist()]


def main() -> None:
    torch.set_num_threads(1)
    bertfast.set_num_threads(2)
    settings = {**builders.SMALL, "num_hidden_layers": 1}
    encoder = builders.pair("BertForSequenceClassification", std=0.3, **settings)[1]
    padded = builders.batch("BertModel", encoder, 3, 9, "right")
    full = builders.batch("BertModel", encoder, 3, 9, "none")
    wide = builders.batch("BertModel", encoder, 48, 24, "none")
    for name, arguments in (("padded", padded), ("full", full)):
        sweep(f"{name}, recorded", partial(tensors, encoder, arguments), partial(drop_state, encoder))
        sweep(f"{name}, replayed", partial(tensors, encoder, arguments))
    sweep("in bands", partial(tensors, encoder, wide), new_pool)
    sweep("op by op", partial(tensors, encoder, padded, output_hidden_states=True), new_pool)
    int8 = bertfast.optimize(builders.pair("BertModel", std=0.3, **settings)[0], quantization="int8")
    sweep("int8, recorded", partial(tensors, int8, padded), partial(drop_state, int8))
    sweep("int8, op by op", partial(tensors, int8, padded, output_hidden_states=True), new_pool)
    sweep("batches", batch_cuts)
    decoder = builders.pair("BertLMHeadModel", std=0.3, is_decoder=True, use_cache=True, eos_token_id=None, **settings)[1]
    step = CachedStep(decoder)
    sweep("a cached step", step, step.prefill)
    for options in ({}, {"num_beams": 2}):
        generate = partial(decoder.generate, step.ids, max_new_tokens=3, pad_token_id=0, do_sample=False, **options)
        sweep(f"generate, {options}", generate, coarse=True)


if __name__ == "__main__":
    main()
