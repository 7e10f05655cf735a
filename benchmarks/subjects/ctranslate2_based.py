"""CTranslate2: models from its converter, token ids as lists (without padding)."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.subjects.adapter import Adapter, Arrays, attended, converted, name_of, once
from benchmarks.subjects.text import Batch, Embedder


class CTranslate2(Adapter):
    def convert(self, folder: Path, task: str, cache: Path) -> None:
        once(self._folder(folder, cache), lambda path: _convert(folder, path))

    def load(self, folder: Path, task: str, cache: Path) -> None:
        import ctranslate2

        # One batch per core for text in bulk, as its documentation advises for throughput; otherwise all cores on one call.
        workers = self.threads if task == "embed" else 1
        self._encoder = ctranslate2.Encoder(
            str(self._folder(folder, cache)),
            device="cpu",
            compute_type=self.dtype,
            inter_threads=workers,
            intra_threads=self.threads // workers,
        )
        self._source, self._workers = folder, workers

    def prepare(self, inputs: Arrays, new_tokens: int) -> Callable[[], Any]:
        encoder = self._encoder
        if "sentences" in inputs:
            embed = Embedder(self._source, self._hidden)
            texts = inputs["sentences"].tolist()
            return lambda: embed(texts)
        rows = attended(inputs)
        return lambda: encoder.forward_batch(rows)

    def outputs(self, result: Any) -> Arrays:
        if isinstance(result, np.ndarray):
            return {"embeddings": result}
        return {"last_hidden_state": np.array(result.last_hidden_state), "pooler_output": np.array(result.pooler_output)}

    def _hidden(self, batches: Iterable[Batch]) -> Iterator[np.ndarray]:
        encoder = self._encoder
        with ThreadPoolExecutor(self._workers) as pool:
            under_way: deque[Future[Any]] = deque()
            for batch in batches:
                if len(under_way) == 2 * self._workers:
                    yield np.asarray(under_way.popleft().result().last_hidden_state)
                under_way.append(pool.submit(encoder.forward_batch, attended(batch.inputs)))
            for future in under_way:
                yield np.asarray(future.result().last_hidden_state)

    @staticmethod
    def _folder(folder: Path, cache: Path) -> Path:
        return converted(cache, __file__, "ctranslate2") / name_of(folder)


def _convert(folder: Path, target: Path) -> None:
    from ctranslate2.converters import TransformersConverter

    TransformersConverter(str(folder)).convert(str(target), force=True)
