"""How far from transformers in float32 a subject may be before its time means nothing."""

from dataclasses import asdict, dataclass

import numpy as np

LARGEST = 1e-3  # float32: the largest difference, relative to the largest value where that is above 1
COSINE = 0.999  # bfloat16 and float16: the worst row's cosine
NEAR = 1e-3  # two scores closer than this may change places in float32


@dataclass(frozen=True)
class Check:
    """`largest` difference and worst `cosine` over all compared rows; when generating, the share of equal tokens. `refused` says why it is
    not timed; `inexact` marks what is timed although it failed the float32 gate."""

    largest: float | None
    cosine: float | None
    agreement: float | None = None
    refused: str | None = None
    inexact: bool = False

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def check(outputs: dict[str, np.ndarray], reference: dict[str, np.ndarray], mask: np.ndarray | None, dtype: str) -> Check:
    """Compares every output of the reference, at attended positions where it has positions. int8 passes whatever it loses, but not with
    a missing output, another shape, or something that is not a number."""
    largest, cosine = 0.0, 1.0
    if not reference:
        return _refuse("the reference has no outputs to compare with")
    for name, expected in reference.items():
        actual = outputs.get(name)
        if actual is None:
            return _refuse(f"{name} is missing")
        if actual.shape != expected.shape:
            return _refuse(f"{name} is {actual.shape}, expected {expected.shape}")
        rows, wanted = _rows(actual, mask), _rows(expected, mask)
        if not np.isfinite(rows).all():
            return _refuse(f"{name} holds inf or nan")
        if not np.isfinite(wanted).all():  # which no difference to it would be: everything would pass
            return _refuse(f"the reference's {name} holds inf or nan")
        scale = max(1.0, float(np.abs(wanted).max()))
        largest = max(largest, float(np.abs(rows - wanted).max()) / scale)
        cosine = min(cosine, _worst_cosine(rows, wanted))
    exact = largest <= LARGEST
    if dtype == "float32" and not exact:
        return Check(largest, cosine, refused=f"differs by {largest:.1e}, at most {LARGEST:.0e} allowed in float32")
    if dtype in ("bfloat16", "float16") and cosine < COSINE:
        return Check(largest, cosine, refused=f"cosine {cosine:.5f}, at least {COSINE} demanded in {dtype}")
    return Check(largest, cosine, inexact=not exact)


def check_tokens(sequences: np.ndarray, reference: np.ndarray, gaps: np.ndarray, dtype: str) -> Check:
    """Greedy tokens. sequences and reference: [B, S + new]; gaps [B, new]: by how much the reference's best score led at each step. A
    float32 row may part from the reference only at a step that was nearly a tie; after that it goes its own way."""
    if sequences.shape != reference.shape:
        return _refuse(f"sequences are {sequences.shape}, expected {reference.shape}")
    new = gaps.shape[1]
    equal = sequences[:, -new:] == reference[:, -new:]
    agreement = float(equal.mean())
    for row in range(len(equal)):
        if dtype == "float32" and not equal[row].all():
            step = int(np.argmin(equal[row]))
            if gaps[row, step] > NEAR:
                reason = f"row {row} takes another token at step {step}, where the best score led by {gaps[row, step]:.1e}"
                return Check(None, None, agreement, refused=reason)
    if not (sequences[:, :-new] == reference[:, :-new]).all():
        return _refuse("the prompt does not come back")
    return Check(None, None, agreement, inexact=agreement < 1)


def _refuse(reason: str) -> Check:
    return Check(None, None, refused=reason)


def _rows(array: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """[rows, C] in float64: attended positions of [B, S, C] and [B, S], everything of other shapes."""
    array = array.astype(np.float64)
    if mask is not None and array.shape[:2] == mask.shape:
        array = array[mask.astype(bool)]
    return array.reshape(len(array), -1) if array.ndim > 1 else array[:, None]


def _worst_cosine(a: np.ndarray, b: np.ndarray) -> float:
    if a.shape[1] < 8:  # of a row of two numbers a cosine says nothing: take the whole column
        a, b = a.reshape(1, -1), b.reshape(1, -1)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(((a * b).sum(1) / np.maximum(norms, 1e-300)).min())
