"""transformers (sdpa, eager, compiled, dynamically quantized), bertfast, and sentence-transformers on either."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.subjects.adapter import AbsentError, Adapter, Arrays
from benchmarks.suite.models import HEADS

_BATCH = 32  # sentence-transformers' default


class TorchAdapter(Adapter):
    """A torch module with transformers' arguments and outputs."""

    model: Any
    device = "cpu"

    def __init__(self, dtype: str, threads: int) -> None:
        import torch

        super().__init__(dtype, threads)
        torch.set_num_threads(threads)
        self.torch_dtype = torch.bfloat16 if dtype == "bfloat16" else torch.float32

    def tensors(self, inputs: Arrays) -> dict[str, Any]:
        import torch

        return {name: torch.from_numpy(array).to(self.device) for name, array in inputs.items()}

    def prepare(self, inputs: Arrays, new_tokens: int) -> Callable[[], Any]:
        import torch

        model = self.model
        tensors = self.tensors(inputs)
        if new_tokens:
            tensors = {"input_ids": tensors["input_ids"].clone(), "attention_mask": tensors["attention_mask"]}
            options = greedy(new_tokens)

            def call(streamer: Any = None) -> Any:
                with torch.inference_mode():
                    return model.generate(**tensors, **options, streamer=streamer)
        else:

            def call() -> Any:
                with torch.inference_mode():
                    return model(**tensors)

        return call

    def outputs(self, result: Any) -> Arrays:
        import torch

        if isinstance(result, torch.Tensor):
            return {"sequences": result.cpu().numpy()}
        return {name: tensor.float().cpu().numpy() for name, tensor in result.items() if isinstance(tensor, torch.Tensor)}

    def gaps(self, inputs: Arrays, new_tokens: int) -> np.ndarray:
        import torch

        tensors = self.tensors(inputs)
        with torch.inference_mode():
            found = self.model.generate(
                input_ids=tensors["input_ids"],
                attention_mask=tensors["attention_mask"],
                **greedy(new_tokens),
                output_scores=True,
                return_dict_in_generate=True,
            )
        best = [scores.topk(2).values for scores in found.scores]
        return np.stack([(b[:, 0] - b[:, 1]).cpu().numpy() for b in best], 1)


def greedy(new_tokens: int) -> dict[str, Any]:
    """generate()'s arguments for exactly this many greedy tokens."""
    return {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens, "do_sample": False, "pad_token_id": 0}


class Transformers(TorchAdapter):
    def __init__(self, dtype: str, threads: int, attention: str = "sdpa", compile: str = "", quantize: str = "") -> None:
        super().__init__(dtype, threads)
        self.attention = attention
        self.compile = compile
        self.quantize = quantize

    def load(self, folder: Path, task: str, cache: Path) -> None:
        import torch
        import transformers

        cls = getattr(transformers, HEADS[task][0])
        model = cls.from_pretrained(folder, attn_implementation=self.attention, dtype=self.torch_dtype).eval()
        if self.quantize:
            model = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
        if self.compile:
            import torch._inductor.config

            torch._inductor.config.freezing = True
            model = torch.compile(model, dynamic=False)
        self.model = model


class Bertfast(TorchAdapter):
    def load(self, folder: Path, task: str, cache: Path) -> None:
        import torch

        import bertfast
        from bertfast import ops

        if self.dtype == "bfloat16" and not ops.has_kernels(torch.device("cpu"), torch.bfloat16):
            raise AbsentError("bertfast has no bfloat16 kernels for this CPU")
        bertfast.set_num_threads(self.threads)
        options: dict[str, Any] = {"quantization": "int8"} if self.dtype == "int8" else {"dtype": self.torch_dtype}
        if task == "embed":
            from bertfast.tasks import Embedder

            self.model = Embedder.from_pretrained(folder, device="cpu", **options)
        else:
            self.model = getattr(bertfast, HEADS[task][0]).from_pretrained(folder, **options).eval()

    def settle(self) -> None:
        import bertfast

        holder = self.model if hasattr(self.model, "encode") else self  # an Embedder, or this adapter
        if self.dtype == "float32":  # weights are mapped from the file, which huge_pages leaves alone
            holder.model = copy.deepcopy(holder.model)
        bertfast.huge_pages(holder.model)

    def prepare(self, inputs: Arrays, new_tokens: int) -> Callable[[], Any]:
        if "sentences" in inputs:
            texts = inputs["sentences"].tolist()
            return lambda: self.model.encode(texts)
        return super().prepare(inputs, new_tokens)

    def outputs(self, result: Any) -> Arrays:
        return {"embeddings": result} if isinstance(result, np.ndarray) else super().outputs(result)


class SentenceTransformers(Adapter):
    """Unchanged, or after bertfast.optimize."""

    model: Any

    def __init__(self, dtype: str, threads: int, optimize: str = "") -> None:
        super().__init__(dtype, threads)
        self.optimize = optimize

    def load(self, folder: Path, task: str, cache: Path) -> None:
        import torch
        from sentence_transformers import SentenceTransformer

        torch.set_num_threads(self.threads)
        self.model = SentenceTransformer(str(folder), device="cpu")
        if self.optimize:
            import bertfast

            bertfast.set_num_threads(self.threads)
            self.model = bertfast.optimize(self.model)

    def prepare(self, inputs: Arrays, new_tokens: int) -> Callable[[], Any]:
        texts = inputs["sentences"].tolist()
        return lambda: self.model.encode(
            texts, batch_size=_BATCH, show_progress_bar=False, convert_to_numpy=True, normalize_embeddings=True
        )

    def outputs(self, result: Any) -> Arrays:
        return {"embeddings": result}
