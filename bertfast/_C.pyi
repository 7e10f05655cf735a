# ruff: noqa: N999 (the name of the compiled module)
"""What csrc/bindings registers. Addresses are data_ptr()s, 0 for an absent argument; sizes count elements."""

from collections.abc import Callable, Mapping, Sequence, Sized
from typing import TypeAlias

BUILT_FROM: dict[str, str]  # SHA-256 of each file of csrc/, by its path in the repository: see runtime/native.py
ACTIVATIONS: dict[str, int]  # the `activation` argument of linear, by its name in config.hidden_act

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
def update_default_threads(threads: int) -> None: ...
def end_openmp_threads_before_forks() -> bool: ...

class Watch:
    """Whether module dictionaries, classes and flags are unchanged since the module tree was audited."""

    def __init__(
        self,
        members: Sequence[tuple[Mapping[str, object], str, object]],
        absent: Sequence[tuple[Mapping[str, object], str]],
        sizes: Sequence[tuple[Sized, int]],
        classes: Sequence[tuple[object, type]],
        attributes: Sequence[tuple[type, str, object]],
        falsy: Sequence[tuple[Mapping[str, object], str]],
    ) -> None: ...
    def holds(self) -> bool: ...
    def quiet(self) -> bool: ...

class Pointers:
    """What plans rely on of a model's parameters: addresses, sizes, strides, dtypes, devices."""

    def __init__(self, parameters: Sequence[tuple[Mapping[str, object], str]], exchange: object = None) -> None: ...
    def hold(self) -> bool: ...
    def addresses(self) -> list[int]: ...
    def exchanged(self) -> int: ...

_Ref: TypeAlias = tuple[int, int, int]  # kind, value, column

REF_NONE: int
REF_CONSTANT: int
REF_SLOT: int
REF_BUFFER: int

def cut_into_bands(cu_seqlens: list[int], threads: int) -> list[int]: ...

class Plan:
    """A recorded forward; the methods named as ops each add one."""

    def __init__(self, bfloat16: bool = False) -> None: ...
    def __len__(self) -> int: ...
    def add_buffer(self, rows: int, place: int, columns: int) -> int: ...
    # rows, word_rows of a table in a slot, q_rows, ... are indices of row counts.
    def embed_layer_norm(
        self,
        input_ids: _Ref,
        words: _Ref,
        word_scales: _Ref,
        word_width: int,
        word_rows: int,
        position_ids: _Ref,
        positions: _Ref,
        position_rows: int,
        type_ids: _Ref,
        types: _Ref,
        type_rows: int,
        weight: _Ref,
        bias: _Ref,
        eps: float,
        out: _Ref,
        quantized: _Ref,
        rows: int,
        hidden: int,
    ) -> None: ...
    def add_layer_norm(
        self, x: _Ref, residual: _Ref, weight: _Ref, bias: _Ref, eps: float, out: _Ref, quantized: _Ref, rows: int, hidden: int
    ) -> None: ...
    def linear(
        self, x: _Ref, x_stride: int, parts: Sequence[tuple[_Ref, _Ref, int]], activation: int, out: _Ref, rows: int, inputs: int
    ) -> None: ...
    def int8_quantize(self, x: _Ref, x_stride: int, out: _Ref, rows: int, inputs: int) -> None: ...
    def int8_linear(
        self, x: _Ref, parts: Sequence[tuple[_Ref, _Ref, _Ref, int]], activation: int, out: _Ref, quantized: _Ref, rows: int, inputs: int
    ) -> None: ...
    def varlen_attention(
        self,
        q: _Ref,
        q_stride: int,
        k: _Ref,
        k_stride: int,
        v: _Ref,
        v_stride: int,
        cu_seqlens_q: _Ref,
        cu_seqlens_k: _Ref,
        q_rows: int,
        k_rows: int,
        sequences: int,
        heads: int,
        head_size: int,
        scale: float,
        causal: bool,
        bfloat16_products: bool,
        out: _Ref,
    ) -> None: ...
    def pack(self, x: _Ref, indices: _Ref, out: _Ref, from_rows: int, rows: int, columns: int) -> None: ...
    def unpack(self, x: _Ref, indices: _Ref, out: _Ref, from_rows: int, rows: int, columns: int, fill: float) -> None: ...
    def write_cache(
        self,
        k: _Ref,
        k_stride: int,
        v: _Ref,
        v_stride: int,
        keys: _Ref,
        key_strides: Sequence[int],
        values: _Ref,
        value_strides: Sequence[int],
        shape: Sequence[int],
        cache_rows: _Ref,
        positions: _Ref,
        rows: int,
    ) -> None: ...
    def cached_attention(
        self,
        q: _Ref,
        q_stride: int,
        keys: _Ref,
        key_strides: Sequence[int],
        values: _Ref,
        value_strides: Sequence[int],
        shape: Sequence[int],
        cache_rows: _Ref,
        first: _Ref,
        last: _Ref,
        scale: float,
        rows: int,
        out: _Ref,
    ) -> None: ...
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
    positions: int,
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
    """Which rows of a KV cache (slots) are in use, and how many of their positions are filled."""

    def __init__(self, slots: int, positions: int) -> None: ...
    @property
    def slots(self) -> int: ...
    @property
    def positions(self) -> int: ...
    @property
    def running(self) -> list[int]: ...
    @property
    def lengths(self) -> list[int]: ...
    def admit(self, lengths: Sequence[int]) -> list[int]: ...
    def extend(self, count: int) -> None: ...
    def crop(self, count: int) -> None: ...
    def reorder(self, parents: Sequence[int]) -> list[list[int]]: ...
    def check_integrity(self) -> None: ...
