"""The inputs of one call, copied into the fixed buffers that a recorded forward reads, in one launch.

The buffers are larger than the call: what is left over is filled so that it does nothing. Rows past the real ones embed id 0 at position
0 and belong to no sequence; sequences past the real ones begin and end where the last one ends.

Shape letters: T rows of the call, B sequences; in the buffers Tb >= T and Bb >= B.
"""

import torch
import triton
import triton.language as tl

BLOCK = 512

# A call's sizes and addresses differ every time: a binary for each kind of them would be compiled in the middle of serving.
SIZES = ("rows", "sequences", "row_places", "sequence_places")
GIVEN = ("ids_ptr", "positions_ptr", "types_ptr", "cu_seqlens_ptr", "first_rows_ptr")


@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=GIVEN)
def _stage_kernel(
    ids_ptr,  # [T] int64
    positions_ptr,  # [T] int64
    types_ptr,  # [T] int64; not read unless HAS_TYPES
    cu_seqlens_ptr,  # [B + 1] int32
    first_rows_ptr,  # [B] int64
    ids_out_ptr,  # [Tb] int64
    positions_out_ptr,  # [Tb] int64
    types_out_ptr,  # [Tb] int64
    cu_seqlens_out_ptr,  # [Bb + 1] int32
    first_rows_out_ptr,  # [Bb] int64
    rows,  # T
    sequences,  # B
    row_places,  # Tb
    sequence_places,  # Bb
    HAS_TYPES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    real, place = i < rows, i < row_places
    tl.store(ids_out_ptr + i, tl.load(ids_ptr + i, mask=real, other=0), mask=place)
    tl.store(positions_out_ptr + i, tl.load(positions_ptr + i, mask=real, other=0), mask=place)
    if HAS_TYPES:
        tl.store(types_out_ptr + i, tl.load(types_ptr + i, mask=real, other=0), mask=place)

    end = tl.load(cu_seqlens_ptr + sequences)
    bounds = tl.load(cu_seqlens_ptr + i, mask=i <= sequences, other=0)
    tl.store(cu_seqlens_out_ptr + i, tl.where(i <= sequences, bounds, end), mask=i <= sequence_places)
    first = tl.load(first_rows_ptr + i, mask=i < sequences, other=0)
    tl.store(first_rows_out_ptr + i, first, mask=i < sequence_places)


def stage(
    ids: torch.Tensor,  # [T] int64
    positions: torch.Tensor,  # [T] int64
    types: torch.Tensor | None,  # [T] int64
    cu_seqlens: torch.Tensor,  # [B + 1] int32
    first_rows: torch.Tensor,  # [B] int64
    ids_out: torch.Tensor,  # [Tb] int64, Tb >= T
    positions_out: torch.Tensor,  # [Tb] int64
    types_out: torch.Tensor | None,  # [Tb] int64, given where types is
    cu_seqlens_out: torch.Tensor,  # [Bb + 1] int32, Bb >= B
    first_rows_out: torch.Tensor,  # [Bb] int64
) -> None:
    """Copies each input to the front of its buffer and fills the rest with what does nothing. All contiguous."""
    row_places, sequence_places = ids_out.shape[0], first_rows_out.shape[0]
    _stage_kernel[(triton.cdiv(max(row_places, sequence_places + 1), BLOCK),)](
        ids,
        positions,
        ids if types is None else types,
        cu_seqlens,
        first_rows,
        ids_out,
        positions_out,
        ids_out if types_out is None else types_out,
        cu_seqlens_out,
        first_rows_out,
        ids.shape[0],
        first_rows.shape[0],
        row_places,
        sequence_places,
        HAS_TYPES=types is not None,
        BLOCK=BLOCK,
    )
