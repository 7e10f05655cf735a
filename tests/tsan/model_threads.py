"""Threads on models, under ThreadSanitizer: calls, moved weights, generation and caches at once.

    python -m tests.tsan.model_threads [--seconds S] [--seed N] [--racy]

Needs a bertfast._C built with -DBERTFAST_SANITIZE=thread and libtsan preloaded; .ci/full does both. torch and CPython are not
instrumented, but ThreadSanitizer sees their locks, memory and copies, so it reports a kernel that reads a weight which torch has freed.
Nothing is suppressed: torch runs on one thread, since libgomp synchronizes unseen. Every result must equal the one that a single thread
computed before. --racy also overwrites a weight with a kernel while others read it: ThreadSanitizer must report it (exit code 66).
"""

import argparse
import random
import threading
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import bertfast
from bertfast import _C
from tests import builders

Job = Callable[[random.Random], None]


class Failures:
    """What went wrong, of any thread."""

    def __init__(self) -> None:
        self.found: list[str] = []
        self.jobs = 0

    def expect_equal(self, what: str, actual: Tensor, expected: Tensor) -> None:
        self.jobs += 1
        if not torch.equal(actual, expected):
            self.found.append(f"{what}: other bits than on one thread")


def calls(model: Any, failures: Failures) -> Job:
    """One model called by several threads, padded or not, in bands or op by op."""
    cases = []
    for B, S, kind in ((1, 5, "none"), (3, 17, "right"), (4, 9, "holes"), (20, 30, "none")):
        arguments = builders.batch("BertModel", model, B, S, kind)
        cases.append((arguments, model(**arguments).last_hidden_state))

    def job(rng: random.Random) -> None:
        arguments, expected = rng.choice(cases)
        failures.expect_equal("a call", model(**arguments).last_hidden_state, expected)

    return job


def moves(model: Any) -> Job:
    """Replaces the memory of every weight; their values stay."""

    def job(rng: random.Random) -> None:
        if rng.random() < 0.5:
            for parameter in model.parameters():
                parameter.data = parameter.data.clone()
        else:
            model.load_state_dict({name: value.clone() for name, value in model.state_dict().items()}, assign=True)
        time.sleep(rng.random() / 50)

    return job


def generations(model: Any, failures: Failures) -> Job:
    """Greedy and beam search: both write KV caches."""
    prompt = torch.randint(1, model.config.vocab_size, (2, 5))
    settings = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    expected = {beams: model.generate(prompt, num_beams=beams, **settings) for beams in (1, 3)}

    def job(rng: random.Random) -> None:
        beams = rng.choice((1, 3))
        failures.expect_equal(f"generate with {beams} beams", model.generate(prompt, num_beams=beams, **settings), expected[beams])

    return job


def cached_steps(model: Any, failures: Failures) -> Job:
    """Forward with a cache, token by token."""
    ids = torch.randint(1, model.config.vocab_size, (2, 7))

    def logits() -> Tensor:
        cache, steps = None, []
        for column in range(ids.shape[1]):
            output = model(ids[:, column : column + 1], past_key_values=cache, use_cache=True)
            cache = output["cache"] if "cache" in output else output["past_key_values"]
            steps.append(output.logits)
        return torch.cat(steps, dim=1)

    expected = logits()

    def job(rng: random.Random) -> None:
        failures.expect_equal("cached steps", logits(), expected)

    return job


def changes_of_threads(rng: random.Random) -> None:
    bertfast.set_num_threads(rng.randint(1, 4))
    time.sleep(rng.random() / 50)


def overwrites(model: Any) -> Job:
    """A race: a kernel writes a LayerNorm's weights over themselves while calls read them."""
    weight = model.base_model.embeddings.LayerNorm.weight
    same, row = weight.detach().clone(), torch.zeros(1, dtype=torch.int64)

    def job(rng: random.Random) -> None:
        _C.pack(same.data_ptr(), 1, row.data_ptr(), weight.data_ptr(), 1, 4 * len(same))

    return job


def run(jobs: list[Job], seconds: float, seed: int) -> None:
    """Each job in a thread of its own, again and again."""
    errors: list[BaseException] = []
    end = time.monotonic() + seconds

    def repeat(number: int, job: Job) -> None:
        rng = random.Random(f"{seed} {number}")
        try:
            while time.monotonic() < end:
                job(rng)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=repeat, args=each) for each in enumerate(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.tsan.model_threads", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seconds", type=float, default=20.0, help="how long the threads run (default 20)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--racy", action="store_true", help="with a race, which ThreadSanitizer must report")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    failures = Failures()
    with torch.no_grad():
        encoder = builders.small_model("BertModel")
        decoder = builders.small_model("BertLMHeadModel", is_decoder=True)
        quantized = bertfast.optimize(builders.small_model("BertModel"), quantization="int8")
        encoder_calls = calls(encoder, failures)
        jobs = [
            encoder_calls,
            encoder_calls,
            calls(quantized, failures),
            generations(decoder, failures),
            cached_steps(decoder, failures),
            changes_of_threads,
        ]
        jobs.append(overwrites(encoder) if arguments.racy else moves(encoder))
        if not arguments.racy:
            jobs.append(moves(decoder))

        def without_gradients(job: Job) -> Job:
            return torch.no_grad()(job)

        run([without_gradients(job) for job in jobs], arguments.seconds, arguments.seed)
    print(f"{failures.jobs} results compared, seed {arguments.seed}: {len(failures.found)} differ")
    if failures.found or not failures.jobs:
        raise SystemExit("\n".join(failures.found[:10]) or "nothing was computed")


if __name__ == "__main__":
    main()
