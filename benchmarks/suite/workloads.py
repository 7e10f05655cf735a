"""What is computed: shapes, lengths and inputs.

A workload's name is `model/shape`: minilm/1x128 is one row of 128 tokens, bert-base/padded32 is 32 rows of unequal lengths in
128 columns. --workload takes the name, either half of it, and wildcards.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from benchmarks.suite.models import MODELS, Model
from benchmarks.suite.seeded import FIRST_WORD, LONGEST, SEED, ragged, sentences

REFERENCE = "transformers"  # the subject that all ratios are to
EMBED_REFERENCE = "sentence-transformers"  # the same for text

SHAPES = {
    "1x16": (16,),
    "1x128": (128,),
    "8x128": (128,) * 8,
    "32x128": (128,) * 32,
    "128x128": (128,) * 128,
    "1x384": (384,),
    "8x512": (512,) * 8,
    "32x512": (512,) * 32,
    "padded32": ragged(32, 45, LONGEST),
}
_CPU_SHAPES = ("1x16", "1x128", "8x128", "32x128", "1x384", "8x512", "padded32")


def reference_of(task: str) -> str:
    return EMBED_REFERENCE if task == "embed" else REFERENCE


@dataclass(frozen=True)
class Workload:
    """B sequences of these lengths in S columns.

    `kind`: "call" times calls; "steps" every step of a generation; "cold" whole processes from their start to their first answer; "memory"
    reads the peak memory of a fresh process; "decode" is a step of a generation on a GPU. `only`: the subjects that take part unless others
    are named. `device`, `dtype`: of a GPU workload, whose subjects share one dtype; on the CPU each subject has its own.
    """

    model: str
    shape: str
    lengths: tuple[int, ...]
    S: int
    task: str = "encoder"
    kind: str = "call"
    new_tokens: int = 0
    most_rounds: int | None = None
    quick: bool = False
    short: bool = False  # replaces a longer workload in the quick selection; not part of the full one
    only: tuple[str, ...] = ()
    title: str = ""
    device: str = "cpu"
    dtype: str = ""
    left_padded: bool = False  # generation always is

    @property
    def name(self) -> str:
        return f"{self.model}/{self.shape}{self.dtype and f'-{self.dtype}'}"

    @property
    def B(self) -> int:
        return len(self.lengths)

    @property
    def tokens(self) -> int:
        """Real tokens, or new ones for generation."""
        return self.B * self.new_tokens or sum(self.lengths)

    @property
    def padding(self) -> float:
        """Share of the B x S cells that are padding."""
        return 1 - sum(self.lengths) / (self.B * self.S)

    @property
    def geometry(self) -> Model:
        return MODELS[self.model]

    def matches(self, pattern: str) -> bool:
        return any(fnmatchcase(name, pattern) for name in (self.name, self.model, self.shape, self.task, self.kind))

    def flops(self) -> float:
        """Floating-point operations that the real tokens need."""
        m = self.geometry
        if self.task == "generate":
            steps = m.flops(list(self.lengths)) + 2.0 * self.B * self.new_tokens * m.layer_weights
            seen = sum(n * self.new_tokens + self.new_tokens**2 // 2 for n in self.lengths)  # keys that the new tokens attend to
            return steps + 4.0 * m.L * m.H * seen + 2.0 * self.B * self.new_tokens * m.H * (m.H + m.V)
        head = 2.0 * sum(self.lengths) * m.H * (m.H + m.V) if self.task in ("lm", "pretraining") else 0.0
        return m.flops(list(self.lengths)) + head

    def weights_read(self) -> float:
        """Weights read from memory: all of them once per call, or once per step of a generation."""
        m = self.geometry
        head = m.H * (m.H + m.V) if self.task in ("lm", "pretraining", "generate") else 0
        return float(m.layer_weights + head) * max(1, self.new_tokens)

    def inputs(self, seed: int = 0) -> dict[str, np.ndarray]:
        """input_ids, attention_mask and token_type_ids as of a tokenizer, [B, S] int64, padded on the right (on the left for generation);
        for `embed`, sentences [n]."""
        rng = np.random.default_rng(SEED + self.B * self.S + seed)
        if self.task == "embed":
            return {"sentences": np.array(sentences(self.lengths, rng))}
        ids = np.zeros((self.B, self.S), np.int64)
        mask = np.zeros((self.B, self.S), np.int64)
        low = min(FIRST_WORD, self.geometry.V // 2)
        for row, n in enumerate(self.lengths):
            at = slice(self.S - n, self.S) if self.left_padded or self.task == "generate" else slice(0, n)
            ids[row, at] = rng.integers(low, self.geometry.V, n)
            mask[row, at] = 1
        return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}

    def as_dict(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "title": self.title or self.geometry.title,
            "task": self.task,
            "kind": self.kind,
            "B": self.B,
            "S": self.S,
            "lengths": list(self.lengths),
            "new_tokens": self.new_tokens,
            "tokens": self.tokens,
            "padding": self.padding,
            "seed": SEED,
            "flops": self.flops(),
            "weights_read": self.weights_read(),
            **({"shape": self.shape, "device": self.device, "dtype": self.dtype} if self.dtype else {}),
        }


def gpu_workload(model: str, shape: str, dtype: str, device: str = "cuda") -> Workload:
    """An encoder's call on a GPU. `device` "cpu" is a dry run."""
    lengths = SHAPES[shape]
    return Workload(model, shape, lengths, max(lengths), device=device, dtype=dtype)


def _grid() -> Iterator[Workload]:
    for model in ("minilm", "bert-base"):
        for shape in _CPU_SHAPES:
            lengths = SHAPES[shape]
            yield Workload(model, shape, lengths, max(lengths), quick=model == "minilm" and shape in ("1x16", "1x128", "padded32"))
    for p in (25, 50, 75):
        yield Workload("minilm", f"fill{p}", ragged(32, LONGEST * p / 100, LONGEST), LONGEST)
    heads = ("pretraining", "lm", "tokens", "qa")
    yield from (Workload("minilm", f"{task}-8x64", ragged(8, 45, 64), 64, task) for task in heads)
    yield from (Workload("minilm", f"{task}-1x16", (16,), 16, task) for task in heads)
    yield from _text()
    yield from _generations()
    for model in ("minilm", "bert-base"):
        yield Workload(model, "cold", (16,), 16, kind="cold")
        yield Workload(model, "memory", SHAPES["padded32"], LONGEST, kind="memory")
    yield from _tiny()


def _text() -> Iterator[Workload]:
    yield Workload("minilm", "embed100", ragged(100, 24, LONGEST), LONGEST, task="embed", quick=True, short=True)
    for model, n in (("minilm", 200), ("minilm", 2000), ("bge-small", 200)):
        yield Workload(model, f"embed{n}", ragged(n, 24, LONGEST), LONGEST, task="embed")
    own_shape = (EMBED_REFERENCE, "bertfast", "fasttextembed")  # the only model that fasttextembed runs
    yield Workload("bge-small", "embed20", ragged(20, 24, LONGEST), LONGEST, task="embed", quick=True, short=True, only=own_shape)


def _generations() -> Iterator[Workload]:
    for B in (1, 8):
        yield Workload("bert-base", f"generate-{B}", (32,) * B, 32, "generate", new_tokens=64)
    for B in (1, 8):
        yield Workload("bert-base", f"steps-{B}", (32,) * B, 32, "generate", kind="steps", new_tokens=400, most_rounds=3)


def _tiny() -> Iterator[Workload]:
    """For the suite's own tests."""
    yield Workload("tiny", "2x8", (8, 5), 8)
    yield Workload("tiny", "generate", (8, 5), 8, task="generate", new_tokens=6)
    yield Workload("tiny", "steps", (8, 5), 8, task="generate", kind="steps", new_tokens=60, most_rounds=2)
    yield Workload("tiny", "cold", (8, 5), 8, kind="cold")
    yield Workload("tiny", "memory", (8, 5), 8, kind="memory")


WORKLOADS = {workload.name: workload for workload in _grid()}


def select(patterns: list[str], full: bool) -> list[Workload]:
    """Those that match any pattern; without patterns the quick or the full selection. ValueError for a pattern that matches none."""
    public = [w for w in WORKLOADS.values() if w.model != "tiny"]
    if not patterns:
        return [w for w in public if (w.quick if not full else not w.short)]
    for pattern in patterns:
        if not any(w.matches(pattern) for w in WORKLOADS.values()):
            raise ValueError(f"no workload matches {pattern!r}; expected one of: {', '.join(w.name for w in public)}")
    return [w for w in WORKLOADS.values() if any(w.matches(p) for p in patterns) and (w in public or w.name in patterns)]
