"""Which outputs the suite refuses to time."""

import numpy as np
import pytest

from benchmarks.suite.checks import COSINE, LARGEST, check, check_tokens

B, S, H = 3, 7, 16


@pytest.fixture
def reference():
    rng = np.random.default_rng(0)
    return {
        "last_hidden_state": rng.standard_normal((B, S, H)).astype(np.float32),
        "pooler_output": np.tanh(rng.standard_normal((B, H))).astype(np.float32),
    }


@pytest.fixture
def mask():
    mask = np.ones((B, S), np.int64)
    mask[1, 4:] = 0
    return mask


def changed(reference, name, at, by):
    copy = {key: array.copy() for key, array in reference.items()}
    copy[name][at] += by
    return copy


@pytest.mark.parametrize(("name", "at"), [("last_hidden_state", (0, 3, 5)), ("last_hidden_state", (1, 3, 0)), ("pooler_output", (2, 15))])
def test_an_offset_in_one_output_is_refused_in_float32(reference, mask, name, at):
    result = check(changed(reference, name, at, 1e-2), reference, mask, "float32")
    assert result.refused is not None
    assert result.largest > LARGEST


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int8"])
def test_rounding_passes_in_every_dtype(reference, mask, dtype):
    result = check(changed(reference, "last_hidden_state", (0, 0, 0), 1e-6), reference, mask, dtype)
    assert result.refused is None
    assert not result.inexact


def test_padding_is_not_compared(reference, mask):
    assert check(changed(reference, "last_hidden_state", (1, 5, 0), 100.0), reference, mask, "float32").refused is None
    assert check(changed(reference, "last_hidden_state", (1, 5, 0), 100.0), reference, None, "float32").refused is not None


def test_half_precision_is_judged_by_its_worst_row(reference, mask):
    rounded = {name: (array * (1 + 2**-9)).astype(np.float32) for name, array in reference.items()}
    result = check(rounded, reference, mask, "bfloat16")
    assert result.refused is None
    assert result.inexact  # 2^-9 exceeds the float32 limit: marked
    turned = changed(reference, "last_hidden_state", (2, 6), reference["last_hidden_state"][0, 0])
    result = check(turned, reference, mask, "bfloat16")
    assert result.refused is not None
    assert result.cosine < COSINE


def test_int8_is_timed_with_any_error_and_marked(reference, mask):
    result = check(changed(reference, "last_hidden_state", (0, 0), 1.0), reference, mask, "int8")
    assert result.refused is None
    assert result.inexact


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_missing_misshapen_or_nan_outputs_are_refused_in_every_dtype(reference, mask, dtype):
    assert "missing" in check({"pooler_output": reference["pooler_output"]}, reference, mask, dtype).refused
    assert "expected" in check({**reference, "pooler_output": reference["pooler_output"][:1]}, reference, mask, dtype).refused
    for value in (np.nan, np.inf):
        assert "inf or nan" in check(changed(reference, "pooler_output", (0, 0), value), reference, mask, dtype).refused


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_reference_with_nan_or_no_outputs_is_refused(reference, mask, value):
    assert (
        "the reference's pooler_output holds"
        in check(reference, changed(reference, "pooler_output", (0, 0), value), mask, "float32").refused
    )
    assert "no outputs" in check(reference, {}, mask, "float32").refused


def test_large_outputs_are_judged_relative_to_their_size(reference, mask):
    large = {name: array * 1000 for name, array in reference.items()}
    assert check(changed(large, "last_hidden_state", (0, 0, 0), 0.1), large, mask, "float32").refused is None
    assert check(changed(large, "last_hidden_state", (0, 0, 0), 100.0), large, mask, "float32").refused is not None


def sequences():
    tokens = np.arange(2 * 9).reshape(2, 9)
    return tokens, np.full((2, 4), 0.5)


def test_equal_tokens_pass():
    tokens, gaps = sequences()
    result = check_tokens(tokens.copy(), tokens, gaps, "float32")
    assert result.refused is None
    assert result.agreement == 1


def test_tokens_may_differ_only_after_a_near_tie_of_the_reference():
    tokens, gaps = sequences()
    other = tokens.copy()
    other[1, 6:] = 0  # new tokens are columns 5 to 8: differs from step 1 on
    assert "step 1" in check_tokens(other, tokens, gaps, "float32").refused
    gaps[1, 1] = 1e-5
    result = check_tokens(other, tokens, gaps, "float32")
    assert result.refused is None
    assert result.agreement == pytest.approx(5 / 8)
    gaps[1, 1] = 0.5
    assert check_tokens(other, tokens, gaps, "int8").refused is None


def test_a_changed_prompt_is_refused():
    tokens, gaps = sequences()
    other = tokens.copy()
    other[0, 0] = 99
    assert "prompt" in check_tokens(other, tokens, gaps, "int8").refused
    assert check_tokens(other[:, 1:], tokens, gaps, "int8").refused is not None
