"""How far a subject's outputs may be from transformers' in float32 for it to be timed."""

from dataclasses import asdict, dataclass

import numpy as np

LARGEST = 1e-3  # float32: the largest difference, relative to the largest value where that is above 1
COSINE = 0.999  # bfloat16 and float16: the worst row's cosine
NEAR = 1e-3  # float32: two scores closer than this may swap ranks


@dataclass(frozen=True)
class Check:
    """`largest` difference, worst `cosine` of a row and relative `rms` error over all compared rows; for generation the share of equal
    tokens. `refused`: why the subject is not timed. `inexact`: timed although it fails the float32 limit."""

    largest: float | None
    cosine: float | None
    agreement: float | None = None
    refused: str | None = None
    inexact: bool = False
    rms: float | None = None  # root mean square difference over the reference's root mean square; the worst output

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def check(outputs: dict[str, np.ndarray], reference: dict[str, np.ndarray], mask: np.ndarray | None, dtype: str) -> Check:
    """Compares every output of the reference, at attended positions where the output has positions. int8 and fp8 pass with any error, but
    not with a missing output, another shape, inf or nan."""
    largest, cosine, rms = 0.0, 1.0, 0.0
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
        if not np.isfinite(wanted).all():  # every comparison with nan is false: all would pass
            return _refuse(f"the reference's {name} holds inf or nan")
        scale = max(1.0, float(np.abs(wanted).max()))
        largest = max(largest, float(np.abs(rows - wanted).max()) / scale)
        cosine = min(cosine, _worst_cosine(rows, wanted))
        rms = max(rms, float(np.sqrt(((rows - wanted) ** 2).mean() / max((wanted**2).mean(), 1e-300))))
    exact = largest <= LARGEST
    if dtype == "float32" and not exact:
        return Check(largest, cosine, rms=rms, refused=f"differs by {largest:.1e}, at most {LARGEST:.0e} is allowed in float32")
    if dtype in ("bfloat16", "float16") and cosine < COSINE:
        return Check(largest, cosine, rms=rms, refused=f"cosine {cosine:.5f}, at least {COSINE} is required in {dtype}")
    return Check(largest, cosine, rms=rms, inexact=not exact)


def check_tokens(sequences: np.ndarray, reference: np.ndarray, gaps: np.ndarray, dtype: str) -> Check:
    """Compares greedy tokens. sequences, reference: [B, S + new]; gaps [B, new]: the reference's best score minus its second best. A
    float32 row may differ from the reference only from a step on whose gap is at most NEAR."""
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
        return _refuse("the sequences do not begin with the prompt")
    return Check(None, None, agreement, inexact=agreement < 1)


@dataclass(frozen=True)
class Expected:
    """What the reference computed for one workload. `gaps` for generation only; `seconds`: how long its call took."""

    outputs: dict[str, np.ndarray]
    mask: np.ndarray | None = None
    gaps: np.ndarray | None = None
    seconds: float = 0.0

    def check(self, outputs: dict[str, np.ndarray], dtype: str) -> Check:
        """KeyError where a generation has no sequences."""
        if self.gaps is not None:
            return check_tokens(outputs["sequences"], self.outputs["sequences"], self.gaps, dtype)
        return check(outputs, self.outputs, self.mask, dtype)


def _refuse(reason: str) -> Check:
    return Check(None, None, refused=reason)


def _rows(array: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """[rows, C] in float64: the attended positions of [B, S, C] and [B, S], all of other shapes."""
    array = array.astype(np.float64)
    if mask is not None and array.shape[:2] == mask.shape:
        array = array[mask.astype(bool)]
    return array.reshape(len(array), -1) if array.ndim > 1 else array[:, None]


def _worst_cosine(a: np.ndarray, b: np.ndarray) -> float:
    if a.shape[1] < 8:  # the cosine of two numbers means nothing: compare all rows as one
        a, b = a.reshape(1, -1), b.reshape(1, -1)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(((a * b).sum(1) / np.maximum(norms, 1e-300)).min())
