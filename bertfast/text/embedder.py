"""Embedder: texts to vectors.

    embedder = Embedder.from_pretrained("all-MiniLM-L6-v2")     # a local folder
    vectors = embedder.encode(["A man is eating.", "Someone has dinner."])  # [2, 384] float32

A folder saved by sentence-transformers defines its pooling, normalization and maximum length; arguments override it.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from bertfast.quantization.schemes import scheme_of
from bertfast.runtime.devices import read_device, read_dtype
from bertfast.text import pooling
from bertfast.text.model_loading import load_model
from bertfast.text.sentence_transformers_folder import SentenceSettings, read_settings
from bertfast.text.token_budget import plan_batches
from bertfast.text.tokenization import load_tokenizer, tokenize, tokenized_chunks

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Embeddings = npt.NDArray[np.float32]  # [texts, dim]
ProgressCallback = Callable[[int], None]  # receives the number of texts that were just finished

MAX_TOKENS = 8192  # of a batch; BERT-base's activations then take about 150 MB in float32
MAX_ROWS = 1024  # texts of a batch
CHUNK_BATCHES = 16  # a chunk of a stream, sorted by length, has about this many batches


class Embedder:
    """Turns texts into vectors with a BERT model, in batches of similar length, without computing padding.

    model: a BertModel of bertfast or transformers, in eval mode; tokenizer: its fast tokenizer; settings: pooling, normalization,
    maximum length and prompt, see SentenceSettings; max_tokens: the token budget of a batch. Most users call from_pretrained.
    Raises ValueError for settings that the model cannot satisfy.

    Attributes: dim, the width of a vector (hidden_size times the number of poolings, or truncate_dim); max_seq_length, in tokens.
    """

    def __init__(
        self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", settings: SentenceSettings, *, max_tokens: int = MAX_TOKENS
    ) -> None:
        positions = model.config.max_position_embeddings
        if max_tokens < 1:
            raise ValueError(f"max_tokens: got {max_tokens}, expected at least 1")
        for mode in settings.pooling:
            if mode not in pooling.MODES:
                raise ValueError(f"pooling: got {mode!r}, expected one of {', '.join(pooling.MODES)}")
        if settings.max_seq_length is not None and not 3 <= settings.max_seq_length <= positions:
            raise ValueError(f"max_seq_length: got {settings.max_seq_length}, expected 3 to {positions}, the model's positions")
        self.model = model
        self.tokenizer = tokenizer
        self.settings = settings
        self.max_tokens = max_tokens
        self.max_seq_length = settings.max_seq_length or min(tokenizer.model_max_length, positions)
        if settings.truncate_dim is not None and settings.truncate_dim < 1:
            raise ValueError(f"truncate_dim: got {settings.truncate_dim}, expected at least 1")
        width = model.config.hidden_size * len(settings.pooling)
        self.dim: int = min(width, settings.truncate_dim or width)
        self._unpooled = 0  # leading tokens ([CLS] and the prompt) that take part in attention but are not pooled
        if settings.prompt and not settings.prompt_counts:
            alone = tokenize(tokenizer, [settings.prompt], max_length=self.max_seq_length)[0]
            self._unpooled = len(alone) - 1  # without [SEP], which follows the text
            if self._unpooled >= self.max_seq_length - 1:
                raise ValueError(
                    f"prompt: its {self._unpooled} tokens leave no room for a text within max_seq_length {self.max_seq_length}"
                )

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        pooling: str | Sequence[str] | None = None,
        normalize: bool | None = None,
        max_seq_length: int | None = None,
        prompt: str | None = None,
        prompt_name: str | None = None,
        dtype: str | torch.dtype = torch.float32,
        device: str | torch.device | None = None,
        quantization: str | None = None,
        max_tokens: int | None = None,
        truncate_dim: int | None = None,
    ) -> "Embedder":
        """Load a model folder: one saved by sentence-transformers, or a plain BERT with its tokenizer.

        folder: local, or the name of a model on the Hub, which is taken from the local cache or downloaded as transformers does.

        None takes the folder's own setting, then the default.

        pooling: "mean", "cls", "max", ... (bertfast.text.pooling.MODES), or several, whose vectors are concatenated. Default: mean.
        normalize: scale vectors to unit length. Default: False.
        max_seq_length: tokens per text, [CLS] and [SEP] included; longer texts are truncated. Default: the model's positions.
        prompt: text prepended to every text; prompt_name: the name of a prompt that the folder defines. Default: none.
        dtype: float32, bfloat16 or float16, of weights and activations; vectors are float32 in any case.
        device: default: the GPU if there is one, else the CPU; a quantized model stays where it was quantized.
        quantization: "int8" (on the CPU, dtype float32) or "fp8" (on a GPU, dtype bfloat16 or float16). Default: as in the folder.
        max_tokens: the token budget of a batch. Default: 8192.
        truncate_dim: keep the first values of a vector, for models trained so (Matryoshka). Default: all. They are of unit length after it
            only with normalize=True.

        Raises ValueError, naming the file or argument. A checkpoint that lacks weights is refused, never filled with random numbers.
        """
        settings = settings_of(
            folder,
            pooling=pooling,
            normalize=normalize,
            max_seq_length=max_seq_length,
            prompt=prompt,
            prompt_name=prompt_name,
            truncate_dim=truncate_dim,
        )
        dtype = read_dtype(dtype)
        tokenizer = load_tokenizer(settings)
        model = load_model(settings.model_dir, dtype, quantization)
        if device is None and scheme_of(model) is not None:
            device = model.device
        model = model.to(read_device(device))
        try:
            return cls(model, tokenizer, settings, max_tokens=MAX_TOKENS if max_tokens is None else max_tokens)
        except ValueError as error:  # of a setting: the folder's, where no argument overrides it
            raise ValueError(f"{settings.model_dir}: {error}") from error

    def encode(self, texts: Sequence[str], *, on_rows: ProgressCallback | None = None) -> Embeddings:
        """One vector per text, [len(texts), dim] float32, in input order.

        on_rows: called after each batch with the number of texts in it (for a progress bar). Raises TypeError for a single str or for
        an item that is no str.
        """
        if isinstance(texts, str):
            raise TypeError("texts: got one str, expected a list of them; write [text]")
        vectors = np.empty((len(texts), self.dim), dtype=np.float32)
        done = 0
        for chunk, rows in self.encode_stream(texts, on_rows=on_rows):
            vectors[done : done + len(chunk)] = rows
            done += len(chunk)
        return vectors

    def encode_stream(self, texts: Iterable[str], *, on_rows: ProgressCallback | None = None) -> Iterator[tuple[list[str], Embeddings]]:
        """Encode any number of texts in constant memory. Yields (texts, vectors [texts, dim] float32) chunk by chunk, in input order.

        Texts are sorted by length within a chunk only. on_rows and errors: as for encode.
        """

        def tokenize_block(block: list[str]) -> list[list[int]]:
            return tokenize(self.tokenizer, block, max_length=self.max_seq_length, prompt=self.settings.prompt)

        for chunk, tokens in tokenized_chunks(texts, tokenize_block, CHUNK_BATCHES * self.max_tokens):
            yield chunk, self._encode_tokens(tokens, on_rows)

    def description(self) -> str:
        """The settings in one line: pooling, normalization, maximum length, prompt."""
        normalized = ", normalized" if self.settings.normalize else ""
        prompt = f", prompt {self.settings.prompt!r}" if self.settings.prompt else ""
        kept = f", first {self.settings.truncate_dim} values" if self.settings.truncate_dim else ""
        return f"{'+'.join(self.settings.pooling)} pooling{normalized}{kept}, at most {self.max_seq_length} tokens per text{prompt}"

    def _encode_tokens(self, tokens: list[list[int]], on_rows: ProgressCallback | None) -> Embeddings:
        vectors = np.empty((len(tokens), self.dim), dtype=np.float32)
        for batch in plan_batches([len(ids) for ids in tokens], max_tokens=self.max_tokens, max_rows=MAX_ROWS):
            vectors[batch] = self._encode_batch([tokens[i] for i in batch])
            if on_rows is not None:
                on_rows(len(batch))
        return vectors

    def _encode_batch(self, tokens: list[list[int]]) -> Embeddings:
        lengths = np.array([len(ids) for ids in tokens])
        columns = np.arange(lengths.max())
        real = columns < lengths[:, None]  # [B, S]
        padded = np.full(real.shape, self.tokenizer.pad_token_id or 0, dtype=np.int64)
        padded[real] = np.concatenate(tokens)
        device = self.model.device
        mask = None if real.all() else torch.from_numpy(real.astype(np.int64)).to(device)
        with torch.no_grad():
            hidden = self.model(input_ids=torch.from_numpy(padded).to(device), attention_mask=mask).last_hidden_state
            pooled_tokens = torch.from_numpy(real & (columns >= self._unpooled)).to(device)
            counts = pooled_tokens.sum(dim=1)
            pooled = pooling.pool(hidden[pooled_tokens], counts, self.settings.pooling, self.settings.normalize, self._unpooled)
            if self.dim < pooled.shape[1]:
                pooled = pooled[:, : self.dim]
                pooled = torch.nn.functional.normalize(pooled, dim=1) if self.settings.renormalize else pooled
        vectors: Embeddings = pooled.cpu().numpy()
        return vectors


def settings_of(
    folder: str | Path,
    *,
    pooling: str | Sequence[str] | None = None,
    normalize: bool | None = None,
    max_seq_length: int | None = None,
    prompt: str | None = None,
    prompt_name: str | None = None,
    truncate_dim: int | None = None,
) -> SentenceSettings:
    """The settings of Embedder.from_pretrained with these arguments: the folder's, where an argument is None. Raises its ValueErrors."""
    settings = read_settings(folder)
    if prompt_name is not None:
        if prompt is not None:
            raise ValueError(f"prompt and prompt_name: got both ({prompt!r}, {prompt_name!r}), expected one of them")
        if prompt_name not in settings.prompts:
            raise ValueError(f"prompt_name: got {prompt_name!r}, expected one of {sorted(settings.prompts)}")
        prompt = settings.prompts[prompt_name]
    modes = pooling if pooling is None else (pooling,) if isinstance(pooling, str) else tuple(pooling)
    given = {
        "pooling": modes, "normalize": normalize, "max_seq_length": max_seq_length, "prompt": prompt, "truncate_dim": truncate_dim,
        "renormalize": normalize,
    }  # fmt: skip
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    return replace(settings, **changes)
