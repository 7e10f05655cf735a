"""Sum of the three embeddings of a token and its LayerNorm, in one pass.

    out[t] = LayerNorm(word[input_ids[t]] + token_type[token_type_ids[t]] + position[position_ids[t]])

One program takes one token: three rows in, one out. A kernel cannot raise, so an id out of range is clamped to its table and
written to `report`, which the host reads after its next synchronisation. `report` lies in pinned host memory: the device writes
it only when an id is wrong, and the host reads it without a copy.

Shape letters: T tokens (packed, no padding), H hidden, V / P / Y rows of the word, position and token-type tables.
Definition and contract: bertfast/ops/reference.py, bertfast/ops/__init__.py.
"""

import torch
import triton
import triton.language as tl

from .math import MAX_HIDDEN, layer_norm

REPORTED = ("input_ids", "position_ids", "token_type_ids")  # row i of the report is about REPORTED[i]
REPORT_COLUMNS = 3  # 1 where an id was out of range, that id, the rows of its table


@triton.jit
def _checked_id(ids_ptr, rows, report_ptr):
    value = tl.load(ids_ptr)
    rows = tl.full([], rows, tl.int64)
    wrong = (value < 0) | (value >= rows)
    tl.store(report_ptr + 1, value, mask=wrong)
    tl.store(report_ptr + 2, rows, mask=wrong)
    tl.store(report_ptr, tl.full([], 1, tl.int64), mask=wrong)
    return tl.minimum(tl.maximum(value, 0), rows - 1)


@triton.jit
def _embed_layer_norm_kernel(
    input_ids_ptr,  # [T] int64
    word_ptr,  # [V, H]
    position_ids_ptr,  # [T] int64
    position_ptr,  # [P, H]
    token_type_ids_ptr,  # [T] int64; not read unless HAS_TYPES
    token_type_ptr,  # [Y, H]
    weight_ptr,  # [H]
    bias_ptr,  # [H]
    out_ptr,  # [T, H]
    report_ptr,  # [3, 3] int64
    word_rows,  # V
    position_rows,  # P
    token_type_rows,  # Y
    eps,
    H: tl.constexpr,
    BLOCK: tl.constexpr,  # the power of two that holds H
    HAS_TYPES: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    word = _checked_id(input_ids_ptr + token, word_rows, report_ptr)
    position = _checked_id(position_ids_ptr + token, position_rows, report_ptr + 3)
    token_type = tl.full([], 0, tl.int64)
    if HAS_TYPES:
        token_type = _checked_id(token_type_ids_ptr + token, token_type_rows, report_ptr + 6)

    col = tl.arange(0, BLOCK)
    inside = col < H
    x = tl.load(word_ptr + word * H + col, mask=inside, other=0.0).to(tl.float32)
    x += tl.load(token_type_ptr + token_type * H + col, mask=inside, other=0.0).to(tl.float32)
    x += tl.load(position_ptr + position * H + col, mask=inside, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + col, mask=inside, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + col, mask=inside, other=0.0).to(tl.float32)

    out = layer_norm(x, inside, weight, bias, eps, H)
    tl.store(out_ptr + token * H + col, out.to(out_ptr.dtype.element_ty), mask=inside)


def embed_layer_norm(
    input_ids: torch.Tensor,  # [T] int64
    word_weight: torch.Tensor,  # [V, H]
    position_ids: torch.Tensor,  # [T] int64
    position_weight: torch.Tensor,  # [P, H]
    token_type_ids: torch.Tensor | None,  # [T] int64, or None: type 0 everywhere
    token_type_weight: torch.Tensor,  # [Y, H]
    weight: torch.Tensor,  # [H]
    bias: torch.Tensor,  # [H]
    eps: float,
    *,
    report: torch.Tensor,  # [3, 3] int64: see REPORTED; on the device, or pinned on the host
    num_warps: int,
) -> torch.Tensor:  # [T, H], dtype of the tables
    """LayerNorm(word + token type + position). Ids out of range are clamped, and the last one seen is left in `report`."""
    tokens, H = input_ids.shape[0], word_weight.shape[1]
    if H > MAX_HIDDEN:
        raise ValueError(f"embed_layer_norm: H={H}, expected at most {MAX_HIDDEN}; use bertfast.ops.reference")
    out = word_weight.new_empty(tokens, H)
    if out.numel() == 0:
        return out
    _embed_layer_norm_kernel[(tokens,)](
        input_ids,
        word_weight,
        position_ids,
        position_weight,
        input_ids if token_type_ids is None else token_type_ids,
        token_type_weight,
        weight,
        bias,
        out,
        report,
        word_weight.shape[0],
        position_weight.shape[0],
        token_type_weight.shape[0],
        eps,
        H=H,
        BLOCK=triton.next_power_of_2(H),
        HAS_TYPES=token_type_ids is not None,
        num_warps=num_warps,
    )
    return out
