"""Texts to token ids: the folder's tokenizer, and a stream of texts cut into chunks of bounded size."""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING

from bertfast.text.sentence_transformers_folder import SentenceSettings
from bertfast.text.tokenizer_files import load_tokenizer_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHUNK_TEXTS = 4096  # texts of a chunk, at most (rounded up to a block); an interrupted stream repeats one chunk
TOKENIZE_TEXTS = 256  # texts of a block: tokenized in one call, so a chunk of long texts ends near its token limit


def load_tokenizer(settings: SentenceSettings) -> "PreTrainedTokenizerBase":
    """The tokenizer in `settings.model_dir`; settings.lower_case puts a lowercase step before its normalizer. Raises ValueError."""
    tokenizer = load_tokenizer_of(settings.model_dir)
    if settings.lower_case:
        from tokenizers import normalizers

        backend = tokenizer.backend_tokenizer
        own = [backend.normalizer] if backend.normalizer is not None else []
        backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *own])
    return tokenizer


def tokenize(tokenizer: "PreTrainedTokenizerBase", texts: list[str], *, max_length: int, prompt: str = "") -> list[list[int]]:
    """Token ids of prompt + text for each text, special tokens included, truncated to `max_length`. Raises TypeError for a non-str."""
    for text in texts:
        if not isinstance(text, str):
            raise TypeError(f"texts: got a {type(text).__name__} among them, expected str: {text!r}")
    encoded = tokenizer(
        [prompt + text for text in texts] if prompt else texts,
        truncation=True,
        max_length=max_length,
        return_attention_mask=False,
        return_token_type_ids=False,
    )
    ids: list[list[int]] = encoded["input_ids"]
    return ids


def tokenized_chunks(
    texts: Iterable[str], tokenize: Callable[[list[str]], list[list[int]]], max_tokens: int
) -> Iterator[tuple[list[str], list[list[int]]]]:
    """(texts, token ids) chunk by chunk, in order. A chunk ends at CHUNK_TEXTS texts or `max_tokens` tokens, after a whole block."""
    source = iter(texts)
    chunk: list[str] = []
    tokens: list[list[int]] = []
    while block := list(islice(source, TOKENIZE_TEXTS)):
        chunk += block
        tokens += tokenize(block)
        if len(chunk) >= CHUNK_TEXTS or sum(map(len, tokens)) >= max_tokens:
            yield chunk, tokens
            chunk, tokens = [], []
    if chunk:
        yield chunk, tokens
