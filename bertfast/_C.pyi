# ruff: noqa: N999 (the name of the compiled module)
"""What csrc/bind_*.cpp registers. Addresses are data_ptr()s, 0 where an argument may be absent; sizes count elements."""

from collections.abc import Callable, Sequence
from typing import Any

BUILT_FROM: dict[str, str]  # the files of csrc/ by their path in the repository, with the SHA-256 of each: see host.py
ACTIVATIONS: dict[str, int]

def embed_layer_norm(
    input_ids: int,
    word_table: int,
    word_rows: int,
    position_ids: int,
    position_table: int,
    position_rows: int,
    type_ids: int,
    type_table: int,
    type_rows: int,
    weight: int,
    bias: int,
    eps: float,
    out: int,
    tokens: int,
    hidden: int,
    bfloat16: bool = False,
) -> None: ...
def linear(
    x: int, parts: Sequence[tuple[int, int, int]], activation: int, out: int, rows: int, inputs: int, bfloat16: bool = False
) -> None: ...
def int8_levels() -> int: ...
def int8_row_bytes(inputs: int) -> int: ...
def int8_linear(x: int, parts: Sequence[tuple[int, int, int, int]], activation: int, out: int, rows: int, inputs: int) -> None: ...
def int8_embed_layer_norm(
    input_ids: int,
    word_table: int,
    word_scales: int,
    word_width: int,
    word_rows: int,
    position_ids: int,
    position_table: int,
    position_rows: int,
    type_ids: int,
    type_table: int,
    type_rows: int,
    weight: int,
    bias: int,
    eps: float,
    out: int,
    tokens: int,
    hidden: int,
) -> None: ...
def add_layer_norm(
    x: int, residual: int, weight: int, bias: int, eps: float, out: int, rows: int, hidden: int, bfloat16: bool = False
) -> None: ...
def varlen_attention(
    q: int,
    q_stride: int,
    k: int,
    k_stride: int,
    v: int,
    v_stride: int,
    cu_seqlens_q: int,
    cu_seqlens_k: int,
    sequences: int,
    queries: int,
    keys: int,
    heads: int,
    head_size: int,
    causal: bool,
    scale: float,
    bfloat16_products: bool,
    out: int,
    bfloat16: bool = False,
) -> None: ...
def pack(x: int, rows: int, indices: int, out: int, tokens: int, row_bytes: int) -> None: ...
def unpack(x: int, indices: int, tokens: int, out: int, rows: int, columns: int, fill: float, bfloat16: bool = False) -> None: ...

MASK_BOOL: int
MASK_UINT8: int
MASK_INT8: int
MASK_INT16: int
MASK_INT32: int
MASK_INT64: int
MASK_FLOAT16: int
MASK_BFLOAT16: int
MASK_FLOAT32: int
MASK_FLOAT64: int

def pack_mask(
    mask: int, kind: int, rows: int, columns: int, row_stride: int, cu_seqlens: int, indices: int, positions: int
) -> tuple[int, int, int, bool]: ...
def mask_is_full(mask: int, kind: int, rows: int, columns: int, row_stride: int) -> bool: ...
def integer_range(values: int, kind: int, count: int) -> tuple[int, int]: ...
def pack_lengths(lengths: int, rows: int, cu_seqlens: int) -> tuple[int, int, int, bool]: ...
def plan_batches(lengths: int, count: int, max_tokens: int, max_rows: int, order: int) -> list[int]: ...
def isa() -> str: ...
def multiplies_bfloat16() -> bool: ...
def isas() -> list[tuple[str, bool, bool]]: ...
def use_isa(name: str) -> None: ...
def set_num_threads(threads: int) -> None: ...
def get_num_threads() -> int: ...
def set_default_threads(ask: Callable[[], int]) -> None: ...

class Watch:
    """Whether module dictionaries, classes and flags are what they were when the tree was walked."""

    def __init__(
        self,
        members: list[tuple[dict[str, Any], str, object]],
        absent: list[tuple[dict[str, Any], str]],
        sizes: list[tuple[Any, int]],
        classes: list[tuple[object, type]],
        attributes: list[tuple[type, str, object]],
        falsy: list[tuple[dict[str, Any], str]],
    ) -> None: ...
    def holds(self) -> bool: ...
    def quiet(self) -> bool: ...

class Pointers:
    """Where a model's parameters lie, and how: their addresses, lengths and whether rows lie one after the other."""

    def __init__(self, parameters: list[tuple[dict[str, Any], str]], exchange: object = None) -> None: ...
    def hold(self) -> bool: ...
    def addresses(self) -> list[int]: ...
    def exchanged(self) -> int: ...

REF_NONE: int
REF_CONSTANT: int
REF_SLOT: int
REF_BUFFER: int

def cut_into_bands(cu_seqlens: list[int], threads: int) -> list[int]: ...

class Plan:
    """A recorded forward; its methods add an op each, under the names of the op contract. Operands are (kind, value, column)."""

    def __init__(self, bfloat16: bool = False) -> None: ...
    def __len__(self) -> int: ...
    def add_buffer(self, rows: int, place: int, columns: int) -> int: ...
    def run(self, counts: list[int], slots: list[int]) -> None: ...

def write_cache(
    k: int,
    k_stride: int,
    v: int,
    v_stride: int,
    tokens: int,
    keys: int,
    key_strides: Sequence[int],
    values: int,
    value_strides: Sequence[int],
    shape: Sequence[int],
    rows: int,
    cells: int,
    bfloat16: bool = False,
) -> None: ...
def cached_attention(
    q: int,
    q_stride: int,
    queries: int,
    keys: int,
    key_strides: Sequence[int],
    values: int,
    value_strides: Sequence[int],
    shape: Sequence[int],
    rows: int,
    first: int,
    last: int,
    scale: float,
    out: int,
    bfloat16: bool = False,
) -> None: ...
def argmax(scores: int, rows: int, columns: int, out: int) -> None: ...

class SlotTable:
    def __init__(self, slots: int, cells: int) -> None: ...
    @property
    def slots(self) -> int: ...
    @property
    def cells(self) -> int: ...
    @property
    def running(self) -> list[int]: ...
    @property
    def lengths(self) -> list[int]: ...
    def admit(self, lengths: Sequence[int]) -> list[int]: ...
    def extend(self, count: int) -> None: ...
    def crop(self, count: int) -> None: ...
    def reorder(self, parents: Sequence[int]) -> list[list[int]]: ...
    def check_integrity(self) -> None: ...
