"""How rows attend to a KV cache."""

from dataclasses import dataclass

from torch import Tensor

from bertfast.batch.attention import Attention, VarlenAttention, uniform_cu_seqlens
from bertfast.cache.store import CacheWriter, WriteLayer, as_rows
from bertfast.ops import Ops


@dataclass(slots=True)
class PrefillAttention:
    """Attention of a call that found the cache empty."""

    inner: Attention
    store: CacheWriter

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, heads: int, O: Ops) -> Tensor:
        self.store(k, v, heads, O)
        return self.inner(q, k, v, heads, O)

    def first_rows(self) -> None:
        return None


@dataclass(slots=True)
class CachedRangeAttention:
    """Each row sees one range of the cells of its sequence."""

    rows: Tensor  # [R] int64: its row of the cache
    first: Tensor | None  # [R] int64; None: from the first cell
    last: Tensor  # [R] int64: one past the last cell
    store: WriteLayer | None  # None: keys and values are whole cells already

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, heads: int, O: Ops) -> Tensor:
        keys, values = (k, v) if self.store is None else self.store(k, v, heads, O)
        shape = (-1, heads, q.shape[1] // heads)
        context: Tensor = O.cached_attention(q.view(shape), keys, values, self.rows, self.first, self.last)
        return context.view(q.shape)

    def first_rows(self) -> None:
        return None


@dataclass(slots=True)
class GatheredCacheAttention:
    """Any other attention, over the cells as rows [B * count, H]."""

    inner: Attention
    count: int
    store: WriteLayer | None

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, heads: int, O: Ops) -> Tensor:
        keys, values = (k, v) if self.store is None else self.store(k, v, heads, O)
        return self.inner(q, as_rows(keys, self.count), as_rows(values, self.count), heads, O)

    def first_rows(self) -> None:
        return None


class PromptAttention:
    """Attention of the prompts: varlen, causal, its keys and values kept. The last layer needs the last position of each alone."""

    def __init__(self, inner: VarlenAttention, write: WriteLayer) -> None:
        self.inner, self.write = inner, write

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, heads: int, O: Ops) -> Tensor:
        self.write(k, v, heads, O)
        return self.inner(q, k, v, heads, O)

    def first_rows(self) -> "Attention | None":
        """One query a sequence: here the last, which a causal mask aligned at the end lets see everything."""
        one = uniform_cu_seqlens(len(self.inner.cu_seqlens_q) - 1, 1, self.inner.cu_seqlens_q.device)
        return PromptAttention(VarlenAttention(one, self.inner.cu_seqlens_k, 1, self.inner.max_seqlen_k, causal=True), self.write)
