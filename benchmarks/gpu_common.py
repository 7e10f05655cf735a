"""What the parts of benchmarks/gpu.py share: models with seeded weights, inputs, and how a subject is timed."""

import argparse
import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertConfig
from transformers.models.bert import modeling_bert as theirs

from benchmarks.models import MODELS, _fill
from benchmarks.seeded import ragged

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
SHAPES = {
    "1x16": [16],
    "1x128": [128],
    "8x128": [128] * 8,
    "32x128": [128] * 32,
    "128x128": [128] * 128,
    "32x512": [512] * 32,
    "padded32": list(ragged(32, 45, 128)),
}
Inputs = dict[str, Tensor]


def build(model: str, dtype: torch.dtype, device: str, head: str = "BertModel", **config: Any) -> nn.Module:
    """transformers' class with seeded weights."""
    m = MODELS[model]
    torch.manual_seed(20 + m.L)
    sizes = {"vocab_size": m.V, "hidden_size": m.H, "num_hidden_layers": m.L, "num_attention_heads": m.N, "intermediate_size": m.I}
    module = getattr(theirs, head)(BertConfig(**sizes, max_position_embeddings=m.P, **config)).eval()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            _fill(name, parameter)
    return module.to(device, dtype).requires_grad_(False)


def make_inputs(lengths: list[int], vocabulary: int, device: str, seed: int = 0, left: bool = False) -> Inputs:
    """[B, S] ids, types and, where rows differ in length, a mask."""
    rng = torch.Generator().manual_seed(seed)
    B, S = len(lengths), max(lengths)
    ids = torch.randint(1, vocabulary, (B, S), generator=rng)
    column = torch.arange(S)[None]
    n = torch.tensor(lengths)[:, None]
    mask = column >= S - n if left else column < n
    given = {"input_ids": ids * mask, "token_type_ids": torch.randint(2, (B, S), generator=rng) * mask}
    if min(lengths) < S:
        given["attention_mask"] = mask.long()
    return {name: t.to(device) for name, t in given.items()}


def synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


@dataclass
class Subject:
    name: str
    call: Callable[[Inputs], Any]
    note: str = ""
    cosine: float = math.nan  # worst of its first call's tokens, with the reference's
    latencies: list[float] = field(default_factory=list)
    stream: list[float] = field(default_factory=list)


def measure(rival: Subject, sets: list[Inputs], options: argparse.Namespace) -> None:
    """A few calls one by one, then as many back to back; about 30 ms of each."""
    inputs, begin, calls = itertools.cycle(sets), time.perf_counter(), 0
    while calls < 4 or time.perf_counter() - begin < options.turn:
        synchronise(options.device)
        before = time.perf_counter()
        rival.call(next(inputs))
        synchronise(options.device)
        rival.latencies.append((time.perf_counter() - before) * 1e3)
        calls += 1
    before = time.perf_counter()
    for _ in range(calls):
        rival.call(next(inputs))
    synchronise(options.device)
    rival.stream.append((time.perf_counter() - before) * 1e3 / calls)
