"""sentence-transformers' files of a folder: an Embedder of finite vectors of its `dim`, or one ValueError that names folder or file."""

import functools
import json
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

import bertfast
from bertfast.tasks import Embedder
from tests import builders
from tests.fuzz.case import Target
from tests.fuzz.folders import FolderCase, blob  # noqa: F401 (blob is what the corpus is written in)
from tests.fuzz.json_damage import edited_json
from tests.fuzz.targets.tokenizer_folder import CONFIG, tokenizer_files

KIND = "sentence_transformers.models."
FILES: dict[str, Any] = {
    "modules.json": [
        {"idx": 0, "name": "0", "path": "", "type": KIND + "Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": KIND + "Pooling"},
        {"idx": 2, "name": "2", "path": "2_Normalize", "type": KIND + "Normalize"},
    ],
    "1_Pooling/config.json": {
        "word_embedding_dimension": 8,
        "pooling_mode_cls_token": False,
        "pooling_mode_mean_tokens": True,
        "include_prompt": True,
    },
    "2_Normalize/config.json": {"module_input_name": "sentence_embedding"},
    "sentence_bert_config.json": {
        "max_seq_length": 12,
        "do_lower_case": False,
        "transformer_task": "feature-extraction",
        "modality_config": {"text": {"method": "forward"}},
    },
    "config_sentence_transformers.json": {
        "prompts": {"query": "the "},
        "default_prompt_name": "query",
        "truncate_dim": 4,
        "similarity_fn_name": "cosine",
    },
}
KEYS = {
    "modules.json": ("type", "path", "kwargs"),
    "1_Pooling/config.json": (
        "pooling_mode",
        "pooling_mode_max_tokens",
        "pooling_mode_lasttoken",
        "pooling_mode_weightedmean_tokens",
        "include_prompt",
    ),
    "2_Normalize/config.json": ("module_output_name",),
    "sentence_bert_config.json": (
        "model_args",
        "model_kwargs",
        "tokenizer_args",
        "processor_kwargs",
        "query_length",
        "config_args",
        "processing_kwargs",
    ),
    "config_sentence_transformers.json": ("prompts", "truncate_dim", "default_prompt_name"),
}


@functools.cache
def model_files() -> dict[str, bytes]:
    warnings.filterwarnings("ignore")
    changes = {**builders.SMALL, **CONFIG, "vocab_size": 40, "max_position_embeddings": 16}
    model = bertfast.BertModel(builders.bert_config({k: v for k, v in changes.items() if k != "model_type"}), add_pooling_layer=False)
    builders.realistic_(model, 0)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


class SentenceFolder(FolderCase):
    megabytes = 200.0
    code = "from bertfast import Embedder\nprint(Embedder.from_pretrained(folder, device='cpu').encode(['the cat', '', 'a b c ' * 5]))"

    def prepare(self, folder: Path) -> None:
        for name, content in {**model_files(), **tokenizer_files(), **{n: json.dumps(c).encode() for n, c in FILES.items()}}.items():
            if name != "added_tokens.json":
                (folder / name).parent.mkdir(exist_ok=True)
                (folder / name).write_bytes(content)

    def read(self, folder: Path) -> Any:
        embedder = Embedder.from_pretrained(folder, device="cpu")
        return embedder, embedder.encode(["the cat", "", "a b c " * 5])

    def judge(self, folder: Path, result: Any) -> None:
        embedder, vectors = result
        assert vectors.shape == (3, embedder.dim) and vectors.dtype == np.float32, f"{vectors.shape} {vectors.dtype}"
        assert np.isfinite(vectors).all(), "a vector is not finite"
        assert 3 <= embedder.max_seq_length <= 16 and isinstance(embedder.max_seq_length, int), (
            f"max_seq_length {embedder.max_seq_length!r}"
        )


@st.composite
def cases(draw: st.DrawFn) -> SentenceFolder:
    names = draw(st.lists(st.sampled_from(sorted(FILES)), min_size=1, max_size=2, unique=True))
    return SentenceFolder({name: draw(edited_json(FILES[name], KEYS[name], raw=len(names) == 1)) for name in names})


TARGET = Target(cases(), batch=20)
