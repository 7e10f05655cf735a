"""Attention kinds: which of them recorders take, what they do by default, and the optional parts of MaskedAttention."""

import pytest
import torch
from torch import Tensor

from bertfast.batch.attention import MaskedAttention, VarlenAttention
from bertfast.batch.by_size import uniform_cu_seqlens
from bertfast.batch.packed import GraphInputs
from bertfast.cache.attention import CachedRangeAttention, GatheredCacheAttention
from bertfast.ops import reference

B, S, N, D = 2, 3, 2, 4
CPU = torch.device("cpu")


def rows() -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = torch.randn(3, B * S, N * D).unbind()
    return q, k, v


def varlen(causal: bool = False) -> VarlenAttention:
    cu_seqlens = uniform_cu_seqlens(B, S, CPU)
    return VarlenAttention(cu_seqlens, cu_seqlens, S, S, causal)


def test_recorders_get_varlen_attention_or_none():
    ids = torch.zeros(B * S, dtype=torch.int64)
    own, cross, masked = varlen(), varlen(), MaskedAttention(B, None)
    inputs = GraphInputs(ids, None, None, ids, own, None, cross)
    assert inputs.varlen is own
    assert inputs.require_varlen() is own
    assert inputs.cross_varlen is cross
    for other in (masked, GatheredCacheAttention(own, S, None)):
        inputs = GraphInputs(ids, None, None, ids, other)
        assert inputs.varlen is None
        assert inputs.cross_varlen is None
        with pytest.raises(TypeError, match=f"got {type(other).__name__}, expected VarlenAttention"):
            inputs.require_varlen()


def test_only_varlen_attention_is_restricted_to_first_rows():
    q, k, v = rows()
    first = varlen().restricted_to_first_rows()
    assert first is not None
    expected = varlen()(q, k, v, N, reference)[::S]
    assert torch.equal(first(q[::S], k, v, N, reference), expected)
    ids = torch.zeros(B * S, dtype=torch.int64)
    for other in (varlen(causal=True), MaskedAttention(B, None), CachedRangeAttention(ids, None, ids, None)):
        assert other.restricted_to_first_rows() is None


def test_masked_attention_is_varlen_attention_without_a_mask():
    q, k, v = rows()
    torch.testing.assert_close(MaskedAttention(B, None)(q, k, v, N, reference), varlen()(q, k, v, N, reference))
    lower = torch.ones(S, S, dtype=torch.bool).tril()
    torch.testing.assert_close(MaskedAttention(B, lower)(q, k, v, N, reference), varlen(True)(q, k, v, N, reference))


def test_dropout_and_head_mask_multiply_the_probabilities():
    q, k, v = rows()
    head_masks = [torch.rand(1, N, 1, 1)]
    kept = torch.randint(0, 2, (B, N, S, S)).float()
    asked: list[tuple[int, ...]] = []
    attention = MaskedAttention(B, None, head_masks, True, dropout=lambda shape, like: asked.append(tuple(shape)) or kept)
    context = attention(q, k, v, N, reference)
    assert asked == [(B, N, S, S)]
    plain = MaskedAttention(B, None, keep_probabilities=True)
    plain(q, k, v, N, reference)
    expected = plain.probabilities[0] * (head_masks[0] * kept)
    assert torch.equal(attention.probabilities[0], expected)
    V = v.view(B, S, N, D).transpose(1, 2)
    torch.testing.assert_close(context, (expected @ V).transpose(1, 2).reshape(B * S, N * D))


def test_memory_gives_the_keys_and_values_that_are_attended_to():
    class Memory:
        def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
            assert k.shape == v.shape == (B, S, N, D)
            return k[:, :1], v[:, :1]

    q, k, v = rows()
    out = MaskedAttention(B, None, memory=Memory())(q, k, v, N, reference)
    assert torch.allclose(out.view(B, S, -1), v.view(B, S, -1)[:, :1])  # one key: its value, whatever the scores


def test_no_sequences():
    empty = torch.zeros(0, N * D)
    attention = MaskedAttention(0, None, keep_probabilities=True)
    assert attention(empty, empty, empty, N, reference).shape == (0, N * D)
    assert attention.probabilities[0].shape[:2] == (0, N)
