"""The op contract with operands of wrong dtypes, shapes, strides and values: the reference op's result, or ValueError or TypeError.

No input changes, and no op writes outside of its result: results are allocated between guard bytes.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from bertfast import _C, ops
from bertfast.ops import reference
from bertfast.ops.int8 import Int8Weight
from tests.accuracy import SLACK, worst_error
from tests.fuzz.case import Case, Target

GUARD = 4096  # bytes on each side of a result
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
OTHER_DTYPES = (torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.int32, torch.bool, torch.float16, torch.int8)
INT8_TOLERANCE = 1e-4  # of the largest value: the same integers, sums in another order
ACTIVATIONS = (None, *ops.ACTIVATIONS)


@contextmanager
def guarded() -> Iterator[None]:
    """Within: tensors of `new_empty` and `empty_like` lie between guard bytes, which must be the same at the end."""
    made: list[tuple[Tensor, int]] = []
    new_empty, empty_like = Tensor.new_empty, torch.empty_like

    def allocated(shape: Any, dtype: torch.dtype) -> Tensor:
        size = torch.Size(shape).numel() * dtype.itemsize
        whole = torch.full((GUARD * 2 + -(-size // 64) * 64,), 0xA5, dtype=torch.uint8)
        made.append((whole, size))
        return whole[GUARD : GUARD + size].view(dtype).view(shape)

    def guarded_new_empty(self: Tensor, *shape: Any, **options: Any) -> Tensor:
        sizes = shape[0] if shape and isinstance(shape[0], (tuple, list, torch.Size)) else shape
        return allocated(sizes, options.get("dtype", self.dtype))

    Tensor.new_empty, torch.empty_like = guarded_new_empty, lambda t, **options: allocated(t.shape, t.dtype)
    try:
        yield
    finally:
        Tensor.new_empty, torch.empty_like = new_empty, empty_like
    for whole, size in made:
        assert bool((whole[:GUARD] == 0xA5).all()) and bool((whole[GUARD + size :] == 0xA5).all()), "wrote outside of its result"


def strided(t: Tensor, dim: int) -> Tensor:
    return t.repeat_interleave(2, dim=dim).transpose(0, dim)[::2].transpose(0, dim)


def another_value(t: Tensor, n: int) -> Tensor:
    """An integer tensor with one value that is odd."""
    if t.is_floating_point() or t.dtype == torch.uint8 or not t.numel():
        return t
    odd = [-1, 2**31 - 1, 2**40, 99, -(2**62), 3] if t.dtype == torch.int64 else [-1, 99, 2**30, 2]
    return t.reshape(-1).index_fill(0, torch.tensor([n % t.numel()]), odd[n % len(odd)]).view(t.shape)


EDITS: dict[str, Callable[[Any, int], Any]] = {  # of one operand; n: any number
    "dtype": lambda t, n: t.to(OTHER_DTYPES[n % len(OTHER_DTYPES)]),
    "transposed": lambda t, n: t.transpose(0, -1) if t.dim() > 1 else t,
    "strided": lambda t, n: strided(t, n % t.dim()) if t.dim() else t,
    "slice of columns": lambda t, n: torch.cat([t, t], dim=-1)[..., : t.shape[-1]] if t.dim() else t,
    "expanded": lambda t, n: t[:1].expand(t.shape) if t.dim() and len(t) else t,
    "flipped": lambda t, n: t.flip(0) if t.dim() else t,
    "shorter": lambda t, n: t.narrow(n % t.dim(), 0, max(t.shape[n % t.dim()] - 1, 0)) if t.dim() else t,
    "longer": lambda t, n: torch.cat([t, t[:1]]) if t.dim() else t,
    "another dimension": lambda t, n: t[None] if n % 2 else t.reshape(-1),
    "empty": lambda t, n: t[:0] if t.dim() else t,
    "value": lambda t, n: another_value(t, n),
    "large": lambda t, n: t * 2.0 ** (10 + n % 20) if t.is_floating_point() else t,
    "requires grad": lambda t, n: t.clone().requires_grad_() if t.is_floating_point() else t,
    "misaligned": lambda t, n: torch.cat([t.reshape(-1)[:1], t.reshape(-1)])[1:].view(t.shape) if t.numel() else t,
    "none": lambda t, n: None,
}  # fmt: skip
NUMBERS = [0, -1, 1, 2, 3, 2**31, 2**40, 2**62, -(2**63)]


@dataclass(frozen=True)
class OpCall(Case):
    op: str
    dtype: str
    sizes: tuple[int, ...]  # T, H, K and F, B or rows of tables, heads
    seed: int
    edits: tuple[tuple[int, str, int], ...] = ()  # operand, an edit of EDITS or "number", n

    def operands(self) -> tuple[list[Any], dict[str, Any]]:
        torch.manual_seed(self.seed)
        args, options = BUILD[self.op](DTYPES[self.dtype], *self.sizes)
        for at, kind, n in self.edits:
            at %= len(args)
            if kind == "number" and isinstance(args[at], int):
                args[at] = NUMBERS[n % len(NUMBERS)]
            elif isinstance(args[at], Tensor) and kind != "number":
                args[at] = EDITS[kind](args[at], n)
            elif isinstance(args[at], list) and args[at] and isinstance(args[at][0], Tensor) and kind != "number":
                args[at] = [EDITS[kind](args[at][0], n), *args[at][1:]]
        return args, options

    def check(self) -> str:
        args, options = self.operands()
        before = [bytes_of(t) for t in tensors_of(args)]
        given = copy.copy(args)
        if self.op == "write_cache" and all(isinstance(t, Tensor) for t in args):  # its results are operands
            given[2:4] = [t.detach().clone() for t in args[2:4]]
            before[2:4] = [bytes_of(t) for t in args[2:4]]
        _C.set_num_threads(1 + self.seed % 2)
        try:
            with guarded():
                actual = getattr(ops, self.op)(*given, **options)
        except (ValueError, TypeError, IndexError, AttributeError) as error:
            # AttributeError: None or a number where the contract is typed a Tensor
            assert not isinstance(error, AttributeError) or "'NoneType'" in str(error) or "'int'" in str(error), f"{error!r}"
            assert self.edits, f"refused valid operands: {error}"
            return f"refused: {type(error).__name__}"
        assert before == [bytes_of(t) for t in tensors_of(args)], "an operand changed"
        expected = self.expected(args, options)
        if self.op == "write_cache":
            assert all(torch.equal(a, b) for a, b in zip(given[2:4], expected, strict=True)), "the cache differs from the reference op's"
        else:
            self.compare(actual, expected, args, options)
        return "accepted" if not self.edits else "accepted, edited"

    def expected(self, args: list[Any], options: dict[str, Any]) -> Any:
        if self.op == "write_cache":
            caches = [t.detach().clone() for t in args[2:4]]
            reference.write_cache(args[0], args[1], *caches, *args[4:])
            return caches
        more = {"qmax": _C.int8_levels()} if self.op == "int8_linear" else {}
        return getattr(reference, self.op)(*args, **options, **more)

    def compare(self, actual: Tensor, expected: Tensor, args: list[Any], options: dict[str, Any]) -> None:
        assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype), (
            f"{actual.shape} {actual.dtype}, expected {expected.shape} {expected.dtype}"
        )
        if self.op in ("pack", "unpack"):
            assert torch.equal(actual, expected), "differs from the reference op"
            return
        if not expected.isfinite().all():
            return
        if self.op.startswith("int8"):
            off = (actual - expected).abs().max().item() if expected.numel() else 0.0
            assert off <= INT8_TOLERANCE * max(1.0, expected.abs().max().item() if expected.numel() else 1.0), f"off by {off}"
            return
        wide = {d: getattr(reference, self.op)(*converted(args, d), **options) for d in (torch.float32, torch.float64)}
        if actual.dtype in (torch.float32, torch.bfloat16) and wide[torch.float64].abs().le(torch.finfo(actual.dtype).max / 4).all():
            truth, yardstick = wide[torch.float64], wide[torch.float32].to(actual.dtype)
            assert actual.isfinite().all(), "inf or nan"
            if truth.numel():
                # The kernel tests' yardstick, with more room: of few values, the reference op's error may be 0 by luck.
                allowed = SLACK * worst_error(yardstick, truth) + 8 * torch.finfo(actual.dtype).eps * truth.abs().max().item()
                off = worst_error(actual, truth)
                assert off <= allowed, f"worst error {off:.2e}, allowed {allowed:.2e}"


def converted(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, (list, tuple)) and not isinstance(value, Int8Weight):
        return [converted(v, dtype) for v in value]
    return value.detach().to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def tensors_of(args: list[Any]) -> Iterator[Tensor]:
    for arg in args:
        if isinstance(arg, Tensor):
            yield arg
        elif isinstance(arg, list):
            yield from (t for t in arg if isinstance(t, Tensor))


def bytes_of(t: Tensor) -> bytes:
    return bytes(t.detach().flatten().clone().view(torch.uint8).tolist()) if t.numel() else b""


def vectors(dtype: torch.dtype, *shapes: tuple[int, ...]) -> list[Tensor]:
    return [torch.randn(shape).to(dtype) for shape in shapes]


def bounds(total: int, sequences: int) -> Tensor:
    cuts = torch.randint(0, total + 1, (max(sequences - 1, 0),)).sort().values
    return torch.cat([torch.tensor([0]), cuts, torch.tensor([total])]).int() if sequences else torch.tensor([0], dtype=torch.int32)


def embedding(dtype: torch.dtype, T: int, H: int, K: int, B: int, N: int) -> tuple[list[Any], dict[str, Any]]:
    ids = [torch.randint(0, rows, (T,)) for rows in (B + 1, K + 1, N + 1)]
    tables = vectors(dtype, (B + 1, H), (K + 1, H), (N + 1, H), (H,), (H,))
    types = ids[2] if B % 2 else None
    return [ids[0], tables[0], ids[1], tables[1], types, tables[2], tables[3], tables[4], 1e-12], {}


def int8_embedding(dtype: torch.dtype, T: int, H: int, K: int, B: int, N: int) -> tuple[list[Any], dict[str, Any]]:
    args, _ = embedding(torch.float32, T, H, K, B, N)
    q, scales = ops.quantize_weight(args[1])
    args[1] = ops.pack_int8(q, scales, H, [1, 64][N % 2])
    return args, {}


def linear(dtype: torch.dtype, T: int, H: int, K: int, B: int, N: int) -> tuple[list[Any], dict[str, Any]]:
    x, weight, bias = vectors(dtype, (T, K), (H, K), (H,))
    return [x, weight, bias if B % 2 else None, ACTIVATIONS[N % len(ACTIVATIONS)]], {}


def linear_concat(dtype: torch.dtype, T: int, H: int, K: int, B: int, N: int) -> tuple[list[Any], dict[str, Any]]:
    return [
        vectors(dtype, (T, K))[0],
        vectors(dtype, *[(H + i, K) for i in range(N)]),
        [b if B % 2 else None for b in vectors(dtype, *[(H + i,) for i in range(N)])],
    ], {}


def int8_linear(dtype: torch.dtype, T: int, H: int, K: int, B: int, N: int) -> tuple[list[Any], dict[str, Any]]:
    x, *more = vectors(torch.float32, (T, K), *[(H + i, K) for i in range(N)])
    weights = [ops.pack_int8(*ops.quantize_weight(w), K) for w in more]
    return [
        x,
        weights,
        [b if B % 2 else None for b in vectors(torch.float32, *[(H + i,) for i in range(N)])],
        ACTIVATIONS[B % len(ACTIVATIONS)],
    ], {}


def add_layer_norm(dtype: torch.dtype, T: int, H: int, K: int, B: int, N: int) -> tuple[list[Any], dict[str, Any]]:
    x, residual, weight, bias = vectors(dtype, (T, H), (T, H), (H,), (H,))
    return [x, residual if B % 2 else None, weight, bias, [1e-12, 1e-5, 0.5][N % 3]], {}


def varlen_attention(dtype: torch.dtype, T: int, H: int, K: int, B: int, N: int) -> tuple[list[Any], dict[str, Any]]:
    H = max(H, 1)
    q, k, v = vectors(dtype, (T, N, H), (K, N, H), (K, N, H))
    if T == K:
        q, k, v = torch.cat([q, k, v], dim=1).view(T, 3, N, H).unbind(1)
    cu_q, cu_k = bounds(T, B), bounds(K, B)
    if B == 0:
        q, k, v = q[:0], k[:0], v[:0]
    longest = [int(cu.diff().max()) if len(cu) > 1 else 0 for cu in (cu_q, cu_k)]
    return [q, k, v, cu_q, cu_k, *longest], {"causal": bool(B % 2), "scale": None if N % 2 else 0.3}


def cache(dtype: torch.dtype, H: int, K: int, B: int, N: int) -> list[Tensor]:
    return [torch.randn(B + 2, N, K + 3, max(H, 1)).to(dtype)[1:, :, 1 : K + 2] for _ in range(2)]


def write_cache(dtype: torch.dtype, T: int, H: int, K: int, B: int, N: int) -> tuple[list[Any], dict[str, Any]]:
    keys, values = cache(dtype, H, K, B, N)
    T = min(T, (B + 1) * (K + 1))
    k, v = vectors(dtype, (T, N, max(H, 1)), (T, N, max(H, 1)))
    cells = torch.randperm((B + 1) * (K + 1))[:T]
    return [k, v, keys, values, cells // (K + 1), cells % (K + 1)], {}


def cached_attention(dtype: torch.dtype, T: int, H: int, K: int, B: int, N: int) -> tuple[list[Any], dict[str, Any]]:
    keys, values = cache(dtype, H, K, B, N)
    last = torch.randint(0, K + 2, (T,))
    first = (last * torch.rand(T)).long() if N % 2 else None
    return [*vectors(dtype, (T, N, max(H, 1))), keys, values, torch.randint(0, B + 1, (T,)), first, last], {}


def pack(dtype: torch.dtype, T: int, H: int, K: int, B: int, N: int) -> tuple[list[Any], dict[str, Any]]:
    return [*vectors(dtype, (K + 1, H)), torch.randint(0, K + 1, (T,))], {}


def unpack(dtype: torch.dtype, T: int, H: int, K: int, B: int, N: int) -> tuple[list[Any], dict[str, Any]]:
    return [*vectors(dtype, (T, H)), torch.randperm(T + K)[:T], T + K], {"fill": [0.0, -1e4, float("inf")][N % 3]}


BUILD: dict[str, Callable[..., tuple[list[Any], dict[str, Any]]]] = {
    "embed_layer_norm": embedding, "int8_embed_layer_norm": int8_embedding, "linear": linear, "linear_concat": linear_concat,
    "int8_linear": int8_linear, "add_layer_norm": add_layer_norm, "varlen_attention": varlen_attention, "write_cache": write_cache,
    "cached_attention": cached_attention, "pack": pack, "unpack": unpack,
}  # fmt: skip

small = st.one_of(st.integers(0, 9), st.sampled_from([1, 16, 17, 31, 64, 65, 130]))
sizes = st.tuples(small, small, small, st.integers(0, 6), st.integers(1, 4))
edits = st.lists(st.tuples(st.integers(0, 8), st.sampled_from([*EDITS, "number"]), st.integers(0, 200)), max_size=2).map(tuple)
TARGET = Target(
    st.builds(OpCall, st.sampled_from(sorted(BUILD)), st.sampled_from([*DTYPES, "float32", "bfloat16"]), sizes, st.integers(0, 999), edits),
    batch=200,
)
