"""The adapters of the GPU's subjects. All run in one process."""

import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.subjects.adapter import AbsentError, Arrays
from benchmarks.subjects.torch_based import TorchAdapter, greedy
from benchmarks.suite.models import HEADS

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
_COPIES = 4  # of the inputs, at different addresses: a caller's next batch lies elsewhere

Inputs = dict[str, Tensor]
Run = Callable[[Inputs], Any]


class GpuAdapter(TorchAdapter):
    """Calls return before the GPU has finished. `device` "cpu" is a dry run."""

    asynchronous = True

    def __init__(self, dtype: str, threads: int, device: str) -> None:
        super().__init__(dtype, threads)
        self.device = device
        self.torch_dtype = torch.bfloat16 if dtype == "fp8" else DTYPES[dtype]

    def load(self, folder: Path, task: str, cache: Path) -> None:
        self.model = self.reference_model(folder, task)

    def reference_model(self, folder: Path, task: str, attention: str = "sdpa") -> Any:
        """transformers' model on the device."""
        import transformers

        cls = getattr(transformers, HEADS[task][0])
        model = cls.from_pretrained(folder, attn_implementation=attention, dtype=self.torch_dtype)
        return model.eval().to(self.device).requires_grad_(False)

    def synchronize(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def prepare(self, inputs: Arrays, new_tokens: int) -> Callable[[], Any]:
        copies = [self._given(inputs, new_tokens) for _ in range(_COPIES)]
        batches = itertools.cycle(copies)
        with torch.no_grad():
            run = self.generating(new_tokens) if new_tokens else self.running(copies[0])

        def call() -> Any:
            with torch.no_grad():
                return run(next(batches))

        return call

    def _given(self, inputs: Arrays, new_tokens: int) -> Inputs:
        """The inputs on the device. A mask without padding is left out of a forward: its number of tokens would have to be waited for."""
        given = {name: t.clone() for name, t in self.tensors(inputs).items()}
        if new_tokens:
            del given["token_type_ids"]
        elif inputs["attention_mask"].all():
            del given["attention_mask"]
        return given

    def running(self, given: Inputs) -> Run:
        """A forward on inputs of the shape of `given`."""
        return lambda given: self.model(**given)

    def generating(self, new_tokens: int) -> Run:
        options = greedy(new_tokens)
        return lambda given: self.model.generate(**given, **options)


class Transformers(GpuAdapter):
    def __init__(self, dtype: str, threads: int, device: str, attention: str = "sdpa", compile: str = "", static_cache: str = "") -> None:
        super().__init__(dtype, threads, device)
        self.attention = attention
        self.compile = compile  # a mode of torch.compile
        self.static_cache = static_cache

    def load(self, folder: Path, task: str, cache: Path) -> None:
        self.model = self.reference_model(folder, task, self.attention)
        if self.compile:
            self.model = torch.compile(self.model, mode=self.compile, dynamic=False)

    def generating(self, new_tokens: int) -> Run:
        # generate() compiles the step for a static cache on a GPU, in mode reduce-overhead, which uses CUDA graphs.
        options = {**greedy(new_tokens), **({"cache_implementation": "static"} if self.static_cache else {})}
        return lambda given: self.model.generate(**given, **options)


class TransformersCudaGraph(GpuAdapter):
    def running(self, given: Inputs) -> Run:
        def forward(given: Inputs) -> Any:
            mask = given.get("attention_mask")
            # transformers asks the device whether a 2D mask is all ones, which cannot be captured; a 4D mask is used as it is.
            more = {} if mask is None else {"attention_mask": mask[:, None, None, :].bool().expand(-1, 1, mask.shape[1], -1)}
            return self.model(**{**given, **more})

        return captured(forward, given)


class Varlen(GpuAdapter):
    """The unpadded BERT in plain PyTorch under a CUDA graph; packing is part of a call. The graph holds for one number of tokens."""

    def __init__(self, dtype: str, threads: int, device: str, compile: str = "") -> None:
        super().__init__(dtype, threads, device)
        self.compile = compile

    def load(self, folder: Path, task: str, cache: Path) -> None:
        if self.device != "cuda":
            raise AbsentError("it runs under a CUDA graph, which needs an NVIDIA GPU")
        from benchmarks.gpu.varlen_bert import VarlenBert

        model = VarlenBert(self.reference_model(folder, task))
        self.model = torch.compile(model, mode=self.compile, dynamic=False) if self.compile else model

    def prepare(self, inputs: Arrays, new_tokens: int) -> Callable[[], Any]:
        self._mask = inputs["attention_mask"].astype(bool)
        return super().prepare(inputs, new_tokens)

    def running(self, given: Inputs) -> Run:
        longest = given["input_ids"].shape[1]

        def forward(p: Inputs) -> Any:
            hidden, pooled = self.model(p["ids"], p["positions"], p["types"], p["cu_seqlens"], longest)
            return {"last_hidden_state": hidden, "pooler_output": pooled}

        replay = captured(forward, packed(given))
        return lambda given: replay(packed(given))

    def outputs(self, result: Any) -> Arrays:
        """Padded again."""
        found = super().outputs(result)
        hidden = np.zeros((*self._mask.shape, found["last_hidden_state"].shape[-1]), np.float32)
        hidden[self._mask] = found["last_hidden_state"]
        return {**found, "last_hidden_state": hidden}


class Bertfast(GpuAdapter):
    def __init__(self, dtype: str, threads: int, device: str, eager: str = "", batch_invariant: str = "", quantization: str = "") -> None:
        super().__init__(dtype, threads, device)
        self.eager = eager
        self.options: dict[str, Any] = {}
        if batch_invariant:
            self.options["batch_invariant"] = True
        if quantization:
            self.options["quantization"] = quantization

    def load(self, folder: Path, task: str, cache: Path) -> None:
        import bertfast

        try:
            self.model = bertfast.optimize(self.reference_model(folder, task), **self.options)
        except ValueError as error:
            if "quantization" in self.options:  # needs a GPU with fp8
                raise AbsentError(str(error)) from None
            raise

    def running(self, given: Inputs) -> Run:
        return without_cuda_graphs(super().running(given)) if self.eager else super().running(given)

    def generating(self, new_tokens: int) -> Run:
        return without_cuda_graphs(super().generating(new_tokens)) if self.eager else super().generating(new_tokens)


def without_cuda_graphs(run: Run) -> Run:
    def eager(given: Inputs) -> Any:
        os.environ["BERTFAST_CUDA_GRAPHS"] = "0"
        try:
            return run(given)
        finally:
            del os.environ["BERTFAST_CUDA_GRAPHS"]

    return eager


def captured(run: Run, given: Inputs) -> Run:
    """`run` as a CUDA graph for inputs of these shapes: copies them in, replays, copies the outputs out."""
    if not torch.cuda.is_available():
        raise AbsentError("it runs under a CUDA graph, which needs an NVIDIA GPU")
    static = {name: t.clone() for name, t in given.items()}
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run(static)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run(static)

    def replay(new: Inputs) -> Any:
        for name, t in new.items():
            static[name].copy_(t)
        graph.replay()
        return {name: t.clone() for name, t in out.items() if isinstance(t, Tensor)}

    return replay


def packed(given: Inputs) -> Inputs:
    """[T] ids, positions and token types of the real tokens, and cu_seqlens [B + 1]."""
    ids = given["input_ids"]
    mask = given.get("attention_mask", torch.ones_like(ids)).bool()
    cu = F.pad(mask.sum(1).cumsum(0), (1, 0)).int()
    positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    return {"ids": ids[mask], "positions": positions[mask], "types": given["token_type_ids"][mask], "cu_seqlens": cu}
