"""Public calls, each in this process and then in a forked child: `python -m tests.runtime.fork_calls heads|others FOLDER`.

Before each fork torch and bertfast have used their threads. Prints how many calls there are, and a line for each whose child hung, failed
or gave other results.
"""

import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

import bertfast
from bertfast.cache.objects import CACHE_FIELD
from bertfast.tasks import Embedder
from tests import builders
from tests.compare import is_equal

Call = Callable[[], Any]

PATIENCE = 60  # seconds for a child
# Wide enough that torch computes each of its ops on a batch in parallel.
WIDE = {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 256, "num_hidden_layers": 2, "max_position_embeddings": 128}
B, S = 16, 96


def parallel_op() -> None:
    torch.ones(1 << 20).add_(1.0)


def outputs(head: str, model: Any, kind: str, labels: bool = False, **options: Any) -> dict[str, Any]:
    arguments = builders.batch(head, model, B // 4 if head == "BertForMultipleChoice" else B, S, kind)
    if labels:
        arguments |= builders.labels(head, model, arguments)
    with torch.no_grad():
        return dict(model(**arguments, **options))


def gradients(head: str, model: Any) -> list[Tensor]:
    model.zero_grad()
    model(**builders.batch(head, model, B // 4, S, "right"))[0].pow(2).mean().backward()
    return [p.grad for p in model.parameters() if p.grad is not None]


def calls_of_heads() -> dict[str, Call]:
    calls: dict[str, Call] = {}
    for head in builders.HEADS:
        model = builders.pair(head, **WIDE)[1]
        for kind in ("none", "right", "left", "whole row"):
            calls[f"{head}, {kind}"] = partial(outputs, head, model, kind)
        calls[f"{head}, labels"] = partial(outputs, head, model, "right", labels=True)
        calls[f"{head}, attentions"] = partial(outputs, head, model, "right", output_attentions=True, output_hidden_states=True)
        calls[f"{head}, backward"] = partial(gradients, head, model)
    return calls


def calls_of_dtypes() -> dict[str, Call]:
    calls: dict[str, Call] = {}
    kept = builders.pair("BertModel", **WIDE)[1]
    kept.keep_padding = True
    int8 = bertfast.optimize(builders.pair("BertModel", **WIDE)[0], quantization="int8")
    models = {"keep_padding": kept, "int8": int8}
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        models[str(dtype)] = builders.pair("BertModel", dtype=dtype, **WIDE)[1]
    for name, model in models.items():
        for kind in ("none", "right", "left"):
            calls[f"{name}, {kind}"] = partial(outputs, "BertModel", model, kind)
    return calls


def calls_of_embedder(folder: str) -> dict[str, Call]:
    embedder = Embedder.from_pretrained(folder, device="cpu")
    texts = [f"{'a text of some words ' * (i % 9)}{i}" for i in range(64)]
    return {f"encode {count}": partial(embedder.encode, texts[:count]) for count in (1, 2, 64)}


def decoder(quantization: str | None) -> Any:
    settings = {"is_decoder": True, "use_cache": True, "eos_token_id": None, "pad_token_id": 0}
    model = builders.pair("BertLMHeadModel", std=0.1, **settings, **WIDE)[1]
    return model if quantization is None else bertfast.optimize(model, quantization=quantization)


def cached_steps(model: Any, ids: Tensor) -> list[Tensor]:
    with torch.no_grad():
        out = model(ids, use_cache=True)
        return [model(ids[:, :n], use_cache=True, **{CACHE_FIELD: out[CACHE_FIELD]}).logits for n in (1, 8)]


def calls_of_decoders() -> dict[str, Call]:
    calls: dict[str, Call] = {}
    for quantization in (None, "int8"):
        model = decoder(quantization)
        for rows, options in ((1, {}), (2, {}), (32, {}), (8, {"num_beams": 4}), (8, {"do_sample": True}), (2, {"use_cache": False})):
            ids = torch.randint(1, 101, (rows, 48))
            mask = torch.ones_like(ids)
            mask[1:, :5] = 0
            settings = {"attention_mask": mask, "max_new_tokens": 4, "do_sample": False, **options}
            calls[f"generate, {quantization}, {rows} rows, {options}"] = partial(model.generate, ids, **settings)
        calls[f"cached steps, {quantization}"] = partial(cached_steps, model, torch.randint(1, 101, (32, 64)))
    return calls


def in_a_child(call: Call, expected: Any) -> int:
    """The exit status of a forked child that makes the call: 0 for equal results, minus the number of the signal that ended it."""
    if (child := os.fork()) == 0:
        signal.alarm(PATIENCE)
        torch.manual_seed(0)
        right = is_equal(call(), expected) and torch.get_num_threads() == 2 and bertfast.get_num_threads() == 2
        parallel_op()
        os._exit(0 if right else 1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main(which: str, folder: str) -> None:
    torch.set_num_threads(2)
    calls = calls_of_heads() if which == "heads" else {**calls_of_dtypes(), **calls_of_embedder(folder), **calls_of_decoders()}
    print(len(calls), "calls")
    for name, call in calls.items():
        torch.manual_seed(0)
        expected = call()
        parallel_op()
        sys.stdout.flush()
        status = in_a_child(call, expected)
        if status:
            print(f"{name}: {'the child hung' if status == -signal.SIGALRM else f'exit status {status}'}")


if __name__ == "__main__":
    main(*sys.argv[1:])
