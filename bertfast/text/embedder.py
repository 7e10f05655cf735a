"""Text in, answers out.

    embedder = Embedder.from_pretrained("all-MiniLM-L6-v2")     # a local folder
    vectors = embedder.encode(["A man is eating.", "Someone has dinner."])  # [2, 384] float32

A folder written by sentence-transformers says itself how it is pooled, scaled and cut off, and is obeyed; arguments override it.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers

from bertfast.quantization.schemes import scheme_of
from bertfast.text import pooling
from bertfast.text.sentence_transformers_folder import SentenceSettings, read_settings
from bertfast.text.token_budget import plan_batches

Vectors = npt.NDArray[np.float32]
OnRows = Callable[[int], None]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MAX_TOKENS = 8192  # of a batch; the activations of BERT-base then take about 150 MB in float32
MAX_ROWS = 1024
CHUNK_TEXTS, CHUNK_BATCHES = 4096, 16  # what is sorted together, and so what an interrupted stream has to repeat
TOKENIZE_TEXTS = 256  # at a time, so that a chunk of long texts ends near its budget


class Embedder:
    """Turns texts into vectors with a BERT model, in batches of similar length, without computing on padding.

    model: a BertModel of bertfast (or transformers), in eval mode; tokenizer: its fast tokenizer; settings: see SentenceSettings.
    max_tokens: the token budget of one batch. Most users call from_pretrained.
    """

    def __init__(self, model: Any, tokenizer: Any, settings: SentenceSettings, *, max_tokens: int = MAX_TOKENS) -> None:
        positions = model.config.max_position_embeddings
        if max_tokens < 1:
            raise ValueError(f"max_tokens: got {max_tokens}, expected at least 1")
        for mode in settings.pooling:
            if mode not in pooling.MODES:
                raise ValueError(f"pooling: got {mode!r}, expected one of {', '.join(pooling.MODES)}")
        if settings.max_seq_length is not None and not 3 <= settings.max_seq_length <= positions:
            raise ValueError(f"max_seq_length: got {settings.max_seq_length}, expected 3 to {positions}, the positions that the model has")
        self.model = model
        self.tokenizer = tokenizer
        self.settings = settings
        self.max_tokens = max_tokens
        self.max_seq_length = settings.max_seq_length or min(tokenizer.model_max_length, positions)
        self.dim: int = model.config.hidden_size * len(settings.pooling)
        self._uncounted = 0  # tokens at the start of each text that see and are seen, but are not pooled
        if settings.prompt and not settings.prompt_counts:
            self._uncounted = len(self._tokenize([settings.prompt], prompt="")[0]) - 1  # [SEP] comes after the text
            if self._uncounted >= self.max_seq_length - 1:
                raise ValueError(f"prompt: its {self._uncounted} tokens leave no room for a text within {self.max_seq_length}")

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
    ) -> "Embedder":
        """Load a local model folder: sentence-transformers' or a plain BERT with its tokenizer.

        pooling: "mean", "cls", "max", ... (text.pooling.MODES) or several, whose vectors are joined; normalize: vectors of length 1;
        max_seq_length: tokens of a text, [CLS] and [SEP] included, the rest is cut off; prompt: text set before every text, or
        prompt_name: one of those the folder knows. None takes what the folder says. device: None is the GPU where there is one, and the
        CPU for a quantized model. quantization: "int8", or None for the weights as the folder has them.

        ValueError says which file or argument is wrong; a checkpoint that lacks weights is one of these, never random weights.
        """
        settings = read_settings(folder)
        if prompt is not None and prompt_name is not None:
            raise ValueError(f"prompt and prompt_name: got both ({prompt!r}, {prompt_name!r}), expected one of them")
        if prompt_name is not None:
            if prompt_name not in settings.prompts:
                raise ValueError(f"prompt_name: got {prompt_name!r}, expected one of {sorted(settings.prompts)}")
            prompt = settings.prompts[prompt_name]
        modes = settings.pooling if pooling is None else (pooling,) if isinstance(pooling, str) else tuple(pooling)
        settings = replace(
            settings,
            pooling=modes,
            normalize=settings.normalize if normalize is None else normalize,
            max_seq_length=settings.max_seq_length if max_seq_length is None else max_seq_length,
            prompt=settings.prompt if prompt is None else prompt,
        )
        if isinstance(dtype, str):
            if dtype not in DTYPES:
                raise ValueError(f"dtype: got {dtype!r}, expected one of {', '.join(DTYPES)}")
            dtype = DTYPES[dtype]
        tokenizer = _load_tokenizer(settings)
        model = _load_model(settings.model_dir, dtype, quantization)
        if device is None and scheme_of(model) is not None:
            device = model.device
        model = model.to(_device(device))
        return cls(model, tokenizer, settings, max_tokens=MAX_TOKENS if max_tokens is None else max_tokens)

    def encode(self, texts: Sequence[str], *, on_rows: OnRows | None = None) -> Vectors:
        """One vector a text, [len(texts), dim] float32, in the order given.

        on_rows is called with the number of texts that have just been finished (a progress bar).
        """
        if isinstance(texts, str):
            raise TypeError("texts: got one str, expected a list of them; write [text]")
        vectors = np.empty((len(texts), self.dim), dtype=np.float32)
        done = 0
        for chunk, rows in self.encode_stream(texts, on_rows=on_rows):
            vectors[done : done + len(chunk)] = rows
            done += len(chunk)
        return vectors

    def encode_stream(self, texts: Iterable[str], *, on_rows: OnRows | None = None) -> Iterator[tuple[list[str], Vectors]]:
        """The same for any number of texts, chunk by chunk in the order given: the texts of a chunk and their vectors.

        Memory does not grow with the number of texts. Lengths are sorted within a chunk.
        """
        for chunk, tokens in self._chunks(texts):
            yield chunk, self._encode_tokens(tokens, on_rows)

    def description(self) -> str:
        """How texts become vectors here, in words."""
        scaled = ", length 1" if self.settings.normalize else ""
        prompt = f", prompt {self.settings.prompt!r}" if self.settings.prompt else ""
        return f"{'+'.join(self.settings.pooling)} pooling{scaled}, at most {self.max_seq_length} tokens a text{prompt}"

    def _chunks(self, texts: Iterable[str]) -> Iterator[tuple[list[str], list[list[int]]]]:
        source = iter(texts)
        chunk: list[str] = []
        tokens: list[list[int]] = []
        budget = CHUNK_BATCHES * self.max_tokens
        while block := list(islice(source, TOKENIZE_TEXTS)):
            chunk += block
            tokens += self._tokenize(block, self.settings.prompt)
            if len(chunk) >= CHUNK_TEXTS or sum(map(len, tokens)) >= budget:
                yield chunk, tokens
                chunk, tokens = [], []
        if chunk:
            yield chunk, tokens

    def _tokenize(self, texts: list[str], prompt: str) -> list[list[int]]:
        for text in texts:
            if not isinstance(text, str):
                raise TypeError(f"texts: got a {type(text).__name__} among them, expected str: {text!r}")
        encoded = self.tokenizer(
            [prompt + text for text in texts] if prompt else texts,
            truncation=True,
            max_length=self.max_seq_length,
            return_attention_mask=False,
            return_token_type_ids=False,
        )
        ids: list[list[int]] = encoded["input_ids"]
        return ids

    def _encode_tokens(self, tokens: list[list[int]], on_rows: OnRows | None) -> Vectors:
        vectors = np.empty((len(tokens), self.dim), dtype=np.float32)
        for batch in plan_batches([len(ids) for ids in tokens], max_tokens=self.max_tokens, max_rows=MAX_ROWS):
            vectors[batch] = self._encode_batch([tokens[i] for i in batch])
            if on_rows is not None:
                on_rows(len(batch))
        return vectors

    def _encode_batch(self, tokens: list[list[int]]) -> Vectors:
        lengths = np.array([len(ids) for ids in tokens])
        columns = np.arange(lengths.max())
        real = columns < lengths[:, None]  # [B, S]
        padded = np.full(real.shape, self.tokenizer.pad_token_id or 0, dtype=np.int64)
        padded[real] = np.concatenate(tokens)
        device = self.model.device
        mask = None if real.all() else torch.from_numpy(real.astype(np.int64)).to(device)
        with torch.no_grad():
            hidden = self.model(input_ids=torch.from_numpy(padded).to(device), attention_mask=mask).last_hidden_state
            counted = torch.from_numpy(real & (columns >= self._uncounted)).to(device)
            pooled = pooling.pool(hidden[counted], counted.sum(dim=1), self.settings.pooling, self.settings.normalize)
        vectors: Vectors = pooled.cpu().numpy()
        return vectors


def _device(device: str | torch.device | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device: got {device!r}, expected cpu, cuda, cuda:1, ...") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device: got {str(device)!r}, but torch {torch.__version__} finds no CUDA device here")
    return device


def _load_tokenizer(settings: SentenceSettings) -> Any:
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(settings.model_dir)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"no tokenizer could be loaded from {str(settings.model_dir)!r}: {error}") from error
    if settings.lower_case:
        from tokenizers import normalizers

        backend = tokenizer.backend_tokenizer
        own = [backend.normalizer] if backend.normalizer is not None else []
        backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *own])
    return tokenizer


def _load_model(folder: Path, dtype: torch.dtype, quantization: str | None) -> Any:
    from bertfast.modeling import BertModel

    # No pooler: sentence vectors come from the token vectors. What a checkpoint has beyond them (a pooler, another task's head) is
    # no news here, so transformers' table of it is replaced by a warning about the keys that should not be there.
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        model, report = BertModel.from_pretrained(
            folder, add_pooling_layer=False, dtype=dtype, quantization=quantization, output_loading_info=True
        )
    finally:
        transformers.logging.set_verbosity(verbosity)
    where = f"the checkpoint in {str(folder)!r}"
    for what in ("missing_keys", "mismatched_keys"):
        if report[what]:
            raise ValueError(f"{where} has {what.replace('_', ' ')}, so its vectors would be random: {_some(report[what])}")
    if strangers := [key for key in report["unexpected_keys"] if key.startswith(("embeddings.", "encoder.", "bert."))]:
        warnings.warn(f"{where} has weights that its config.json has no place for: {_some(strangers)}", stacklevel=3)
    return model.eval()


def _some(keys: Iterable[Any]) -> str:
    names = sorted(map(str, keys))
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
