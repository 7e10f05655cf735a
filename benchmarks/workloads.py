"""What is computed: shapes, and the lengths and texts that seeded.py draws.

A workload's name is `model/shape`: minilm/1x128 is one row of 128 tokens, bert-base/padded32 is 32 rows of ragged lengths in
128 columns. Either half may be given to --workload, and wildcards.
"""

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from benchmarks.models import MODELS, Model
from benchmarks.seeded import FIRST_WORD, LONGEST, SEED, ragged, sentences
from benchmarks.subjects import EMBED_REFERENCE


@dataclass(frozen=True)
class Workload:
    """B sequences of these lengths in S columns. `kind`: "call" times calls of one process; "steps" every step of a generation; "cold"
    whole processes, from their start to their first answer; "memory" reads the peak of a fresh process instead of the clock. `only`: the
    subjects that take part when none is asked for by name."""

    model: str
    shape: str
    lengths: tuple[int, ...]
    S: int
    task: str = "encoder"
    kind: str = "call"
    new_tokens: int = 0
    most_rounds: int | None = None  # enough for a curve, where a comparison takes more
    quick: bool = False
    short: bool = False  # stands in for a longer one in the quick selection, and is left out of the full one
    only: tuple[str, ...] = ()
    title: str = ""

    @property
    def name(self) -> str:
        return f"{self.model}/{self.shape}"

    @property
    def B(self) -> int:
        return len(self.lengths)

    @property
    def tokens(self) -> int:
        """What a user asked for: real tokens, or new ones when generating."""
        return self.B * self.new_tokens or sum(self.lengths)

    @property
    def padding(self) -> float:
        """Share of the B x S rectangle that holds no token."""
        return 1 - sum(self.lengths) / (self.B * self.S)

    @property
    def geometry(self) -> Model:
        return MODELS[self.model]

    def matches(self, pattern: str) -> bool:
        return any(fnmatchcase(name, pattern) for name in (self.name, self.model, self.shape, self.task, self.kind))

    # What the machine must do at least, whoever computes it.

    def flops(self) -> float:
        m = self.geometry
        if self.task == "generate":
            steps = m.flops(list(self.lengths)) + 2.0 * self.B * self.new_tokens * m.layer_weights
            seen = sum(n * self.new_tokens + self.new_tokens**2 // 2 for n in self.lengths)  # keys that the new tokens look at
            return steps + 4.0 * m.L * m.H * seen + 2.0 * self.B * self.new_tokens * m.H * (m.H + m.V)
        head = 2.0 * sum(self.lengths) * m.H * (m.H + m.V) if self.task in ("lm", "pretraining") else 0.0
        return m.flops(list(self.lengths)) + head

    def weights_read(self) -> float:
        """Weights that have to come in from memory, counted once a call (once a step when generating)."""
        m = self.geometry
        head = m.H * (m.H + m.V) if self.task in ("lm", "pretraining", "generate") else 0
        return float(m.layer_weights + head) * max(1, self.new_tokens)

    def inputs(self) -> dict[str, np.ndarray]:
        """input_ids, attention_mask, token_type_ids, as a tokenizer hands them over: [B, S] int64, padding on the right (on the left when
        generating); for `embed`, sentences [n]."""
        rng = np.random.default_rng(SEED + self.B * self.S)
        if self.task == "embed":
            return {"sentences": np.array(sentences(self.lengths, rng))}
        ids = np.zeros((self.B, self.S), np.int64)
        mask = np.zeros((self.B, self.S), np.int64)
        low = min(FIRST_WORD, self.geometry.V // 2)
        for row, n in enumerate(self.lengths):
            at = slice(self.S - n, self.S) if self.task == "generate" else slice(0, n)
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
        }


def _grid() -> list[Workload]:
    found = []
    for model in ("minilm", "bert-base"):
        for B, S in ((1, 16), (1, 128), (8, 128), (32, 128), (1, 384), (8, 512)):
            quick = model == "minilm" and (B, S) in ((1, 16), (1, 128))
            found.append(Workload(model, f"{B}x{S}", (S,) * B, S, quick=quick))
        found.append(Workload(model, "padded32", ragged(32, 45, LONGEST), LONGEST, quick=model == "minilm"))
    found += [Workload("minilm", f"fill{p}", ragged(32, LONGEST * p / 100, LONGEST), LONGEST) for p in (25, 50, 75)]
    found += [Workload("minilm", f"{task}-8x64", ragged(8, 45, 64), 64, task) for task in ("pretraining", "lm", "tokens", "qa")]
    found += [Workload("minilm", f"{task}-1x16", (16,), 16, task) for task in ("pretraining", "lm", "tokens", "qa")]
    found.append(Workload("minilm", "embed100", ragged(100, 24, LONGEST), LONGEST, task="embed", quick=True, short=True))
    for model, n in (("minilm", 200), ("minilm", 2000), ("bge-small", 200)):
        found.append(Workload(model, f"embed{n}", ragged(n, 24, LONGEST), LONGEST, task="embed"))
    own_shape = (EMBED_REFERENCE, "bertfast", "fasttextembed")  # the one model that fasttextembed runs
    found.append(Workload("bge-small", "embed20", ragged(20, 24, LONGEST), LONGEST, task="embed", quick=True, short=True, only=own_shape))
    found += [Workload("bert-base", f"generate-{B}", (32,) * B, 32, "generate", new_tokens=64) for B in (1, 8)]
    found += [Workload("bert-base", f"steps-{B}", (32,) * B, 32, "generate", kind="steps", new_tokens=400, most_rounds=3) for B in (1, 8)]
    for model in ("minilm", "bert-base"):
        found.append(Workload(model, "cold", (16,), 16, kind="cold"))
        found.append(Workload(model, "memory", ragged(32, 45, LONGEST), LONGEST, kind="memory"))
    found.append(Workload("tiny", "2x8", (8, 5), 8))
    found.append(Workload("tiny", "generate", (8, 5), 8, task="generate", new_tokens=6))
    found.append(Workload("tiny", "steps", (8, 5), 8, task="generate", kind="steps", new_tokens=60, most_rounds=2))
    found.append(Workload("tiny", "cold", (8, 5), 8, kind="cold"))
    found.append(Workload("tiny", "memory", (8, 5), 8, kind="memory"))
    return found


WORKLOADS = {workload.name: workload for workload in _grid()}


def select(patterns: list[str], full: bool) -> list[Workload]:
    """Those that match any pattern; without patterns the quick ones, or all but stand-ins. ValueError for a pattern that matches none."""
    own = [w for w in WORKLOADS.values() if w.model != "tiny"]  # the suite's own tests are run by name only
    if not patterns:
        return [w for w in own if (w.quick if not full else not w.short)]
    for pattern in patterns:
        if not any(w.matches(pattern) for w in WORKLOADS.values()):
            raise ValueError(f"no workload matches {pattern!r}; there are: {', '.join(w.name for w in own)}")
    return [w for w in WORKLOADS.values() if any(w.matches(p) for p in patterns) and (w in own or w.name in patterns)]
