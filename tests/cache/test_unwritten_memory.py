"""No result depends on memory that nobody wrote: every fresh buffer is filled with NaN, and every answer stays transformers'."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import DynamicCache

import builders
from bertfast import ops
from bertfast.ops import reference
from compare import assert_agree, distance

pytestmark = pytest.mark.usefixtures("one_thread")

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
LIMITS = {torch.float32: 2e-5, torch.bfloat16: 5e-2, torch.float16: 5e-3, torch.float64: 1e-9}


@pytest.fixture(autouse=True)
def poisoned() -> Iterator[None]:
    """torch fills what `empty` and its kin return: NaN, or the largest integer."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def pair(dtype: torch.dtype, head: str = "BertLMHeadModel") -> tuple[Any, Any]:
    return tuple(model.to(dtype) for model in builders.pair(head, is_decoder=True, use_cache=True))


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"do_sample": True}], ids=["greedy", "beams", "sampling"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_generate(dtype: torch.dtype, options: dict[str, Any]) -> None:
    """Logits, not tokens: in half precision two candidates may be equal."""
    _, fast = pair(dtype)
    arguments = {"input_ids": torch.randint(1, 100, (3, 7)), "attention_mask": builders.mask("left", 3, 7)}
    given = {"do_sample": False, "max_new_tokens": 6, "pad_token_id": 0, "return_dict_in_generate": True, "output_logits": True, **options}
    out = fast.generate(**arguments, **given)
    assert all(logits.isfinite().all() for logits in out.logits)


@pytest.mark.parametrize("kind", ["full", "left", "right", "holes"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cached_forward(dtype: torch.dtype, kind: str) -> None:
    original, fast = pair(dtype)
    ids, mask = torch.randint(1, 100, (3, 9)), builders.mask(kind, 3, 9)
    caches = DynamicCache(), DynamicCache()
    with torch.no_grad():
        for begin, end in ((0, 5), (5, 6), (6, 9)):
            actual, expected = (
                model(ids[:, begin:end], attention_mask=mask[:, :end], past_key_values=cache, use_cache=True).logits
                for model, cache in zip((fast, original), caches, strict=True)
            )
            assert distance(actual, expected) <= LIMITS[dtype], (begin, end)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", [ops, reference], ids=["ops", "reference"])
def test_cached_attention_reads_its_range_alone(backend: Any, dtype: torch.dtype) -> None:
    keys, values = (torch.full((2, 3, 10, 8), torch.nan, dtype=dtype) for _ in range(2))
    keys[:, :, 2:7], values[:, :, 2:7] = torch.randn(2, 3, 5, 8).to(dtype), torch.randn(2, 3, 5, 8).to(dtype)
    q, rows = torch.randn(4, 3, 8).to(dtype), torch.tensor([0, 1, 1, 0])
    first, last = torch.tensor([2, 3, 4, 5]), torch.tensor([7, 7, 4, 6])  # the third: an empty range
    out = backend.cached_attention(q, keys, values, rows, first, last)
    expected = reference.cached_attention(q.double(), keys.double().nan_to_num(5.0), values.double().nan_to_num(5.0), rows, first, last)
    assert distance(out, expected) <= LIMITS[dtype]
    assert out[2].eq(0).all()


def test_the_backward_of_cached_attention_reads_its_range_alone() -> None:
    keys, values = (torch.full((1, 2, 6, 4), torch.nan) for _ in range(2))
    keys[:, :, :3], values[:, :, :3] = torch.randn(1, 2, 3, 4), torch.randn(1, 2, 3, 4)
    q = torch.randn(1, 2, 4, requires_grad=True)
    reference.cached_attention(q, keys, values, torch.tensor([0]), None, torch.tensor([3])).sum().backward()
    assert q.grad is not None
    assert q.grad.isfinite().all()


@pytest.mark.parametrize("head", builders.HEADS)
@pytest.mark.parametrize("kind", ["right", "left", "whole row"])
def test_forward(head: str, kind: str) -> None:
    original, fast = builders.pair(head)
    arguments = builders.batch(head, fast, 3, 11, kind)
    fast.keep_padding = True
    with torch.no_grad():
        for _ in range(2):  # recorded, replayed
            assert_agree(fast(**arguments), original(**arguments))
