"""How rows attend to a KV cache.

Shape letters: R rows, B sequences, N heads, D head size, H = N * D, C positions of a cache row.
"""

from dataclasses import dataclass

from torch import Tensor

from bertfast.batch.attention import Attention, VarlenAttention
from bertfast.batch.by_size import uniform_cu_seqlens
from bertfast.cache.store import CacheWriter, WriteLayer, as_rows
from bertfast.ops import Ops


@dataclass(slots=True)
class PrefillAttention(Attention):
    """The cache was empty: attends as without one, and stores the keys and values."""

    inner: Attention
    store: CacheWriter

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, heads: int, O: Ops) -> Tensor:
        self.store(k, v, heads, O)
        return self.inner.of_all_keys(q, k, v, heads, O)


@dataclass(slots=True)
class CachedRangeAttention(Attention):
    """Each row sees one range of positions of its cache row: cached_attention reads the cache where it lies."""

    rows: Tensor  # [R] int64: the cache row of each row
    first: Tensor | None  # [R] int64: the first position; None: 0
    last: Tensor  # [R] int64: one past the last position
    store: WriteLayer | None  # None: k and v are whole cache layers already

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, heads: int, O: Ops) -> Tensor:
        keys, values = (k, v) if self.store is None else self.store(k, v, heads, O)
        shape = (-1, heads, q.shape[1] // heads)
        context: Tensor = O.cached_attention(q.view(shape), keys, values, self.rows, self.first, self.last)
        return context.view(q.shape)


@dataclass(slots=True)
class GatheredCacheAttention(Attention):
    """Anything else (gaps, masks, head masks, probabilities): `inner` over the cache's positions as rows [B * keys, H]."""

    inner: Attention
    keys: int  # positions of each cache row
    store: WriteLayer | None  # None: k and v are whole cache layers already

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, heads: int, O: Ops) -> Tensor:
        keys, values = (k, v) if self.store is None else self.store(k, v, heads, O)
        return self.inner.of_all_keys(q, as_rows(keys, self.keys), as_rows(values, self.keys), heads, O)


@dataclass(slots=True)
class PromptAttention(Attention):
    """A generation's prompts: varlen and causal, keys and values stored. The last layer computes the last token of each prompt alone."""

    inner: VarlenAttention
    store: WriteLayer

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, heads: int, O: Ops) -> Tensor:
        self.store(k, v, heads, O)
        return self.inner(q, k, v, heads, O)

    def restricted_to_first_rows(self) -> "PromptAttention":
        """One query a sequence, here its last token: a causal mask aligned at the end lets it see every key."""
        one = uniform_cu_seqlens(len(self.inner.cu_seqlens_q) - 1, 1, self.inner.cu_seqlens_q.device)
        return PromptAttention(VarlenAttention(one, self.inner.cu_seqlens_k, 1, self.inner.max_seqlen_k, causal=True), self.store)
