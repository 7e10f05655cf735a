"""fasttextembed: pure C, for models of bge-small's shape with [CLS] pooling. Our weights are written in its file format."""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.subjects.adapter import AbsentError, Adapter, Arrays, converted, name_of, once

_L, _H, _N, _I = 12, 384, 12, 1536  # constants of the library
_MAGIC, _VERSION, _ALIGN = 0x31455446, 2, 64
_F32, _F16 = 0, 1


class FastTextEmbed(Adapter):
    def convert(self, folder: Path, task: str, cache: Path) -> None:
        once(self._folder(folder, cache), lambda path: _convert(folder, path))

    def load(self, folder: Path, task: str, cache: Path) -> None:
        from fasttextembed import TextEmbedding

        converted = self._folder(folder, cache)
        self._model = TextEmbedding(str(converted / "model.fte"), str(converted / "vocab.tsv"))

    def prepare(self, inputs: Arrays, new_tokens: int) -> Callable[[], Any]:
        texts = inputs["sentences"].tolist()
        return lambda: self._model.embed(texts, threads=self.threads)

    def outputs(self, result: Any) -> Arrays:
        return {"embeddings": np.array(result, np.float32)}

    @staticmethod
    def _folder(folder: Path, cache: Path) -> Path:
        return converted(cache, __file__, "fasttextembed") / name_of(folder)


def _convert(folder: Path, target: Path) -> None:
    from safetensors.numpy import load_file
    from transformers import BertConfig

    config = BertConfig.from_pretrained(folder)
    if (config.num_hidden_layers, config.hidden_size, config.num_attention_heads, config.intermediate_size) != (_L, _H, _N, _I):
        raise AbsentError("fasttextembed runs models of bge-small's shape only (12 layers, H=384)")
    target.mkdir(parents=True, exist_ok=True)
    words = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
    (target / "vocab.tsv").write_text("".join(f"{word}\t{i}\n" for i, word in enumerate(words)), encoding="utf-8")
    write(target / "model.fte", _tensors(load_file(folder / "model.safetensors")), len(words), config.max_position_embeddings)


def _tensors(weights: Arrays) -> Arrays:
    """Under the library's names: matrices [in, out] in float16, vectors in float32."""
    found: Arrays = {}
    for table in ("word", "position", "token_type"):
        name = f"embeddings.{table}_embeddings.weight"
        found[name] = weights[name].astype(np.float16)
    for name, array in weights.items():
        if "LayerNorm" in name or (name.endswith("dense.bias") and "pooler" not in name):
            found[name] = array.astype(np.float32)
    for layer in range(_L):
        at = f"encoder.layer.{layer}"
        parts = [f"{at}.attention.self.{part}" for part in ("query", "key", "value")]
        found[f"Attention_{layer}_qkv_weight"] = np.concatenate([weights[f"{p}.weight"].T for p in parts], 1).astype(np.float16)
        found[f"Attention_{layer}_qkv_bias"] = np.concatenate([weights[f"{p}.bias"] for p in parts]).astype(np.float32)
        # The library's names for these are node numbers of one ONNX export.
        for which, dense in enumerate(("attention.output.dense", "intermediate.dense", "output.dense")):
            found[f"onnx::MatMul_{1536 + 13 * layer + which}"] = weights[f"{at}.{dense}.weight"].T.astype(np.float16)
    return found


def write(path: Path, tensors: Arrays, V: int, P: int) -> None:
    """The header (two offsets, magic, version, geometry, count, padding), the table of tensors, and their aligned bytes."""
    header = struct.Struct("<2Q11I")
    entry = struct.Struct("<2Q64si4ii")
    table_at = -(-header.size // 8) * 8
    blob_at = at = _aligned(table_at + entry.size * len(tensors))
    table, blob = b"", b""
    for name, array in tensors.items():
        data = np.ascontiguousarray(array).tobytes()
        shape = (*array.shape, *(0,) * (4 - array.ndim))
        table += entry.pack(at, len(data), name.encode(), array.ndim, *shape, _F16 if array.dtype == np.float16 else _F32)
        blob += data + b"\0" * (_aligned(len(data)) - len(data))
        at = blob_at + len(blob)
    head = header.pack(table_at, blob_at, _MAGIC, _VERSION, _H, _L, _N, _I, V, P, 2, len(tensors), 0)
    front = head + b"\0" * (table_at - len(head)) + table
    path.write_bytes(front + b"\0" * (blob_at - len(front)) + blob)


def _aligned(n: int) -> int:
    return -(-n // _ALIGN) * _ALIGN
