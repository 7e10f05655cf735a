"""Copy the inputs of a call into the fixed buffers that a CUDA graph reads, in one launch.

The buffers may be larger than the call. Rows past T get id 0 at position 0 and belong to no sequence; sequences past B are empty, at the
end of the last one.

Shape letters: T rows of the call, B sequences; in the buffers Tb >= T and Bb >= B.
"""

import torch
import triton
import triton.language as tl

BLOCK = 512

# Not specialised on: sizes and alignments differ from call to call, and a new binary would be compiled while serving.
SIZES = ("rows", "sequences", "buffer_rows", "buffer_sequences")
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
    buffer_rows,  # Tb
    buffer_sequences,  # Bb
    HAS_TYPES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    real, inside = i < rows, i < buffer_rows
    tl.store(ids_out_ptr + i, tl.load(ids_ptr + i, mask=real, other=0), mask=inside)
    tl.store(positions_out_ptr + i, tl.load(positions_ptr + i, mask=real, other=0), mask=inside)
    if HAS_TYPES:
        tl.store(types_out_ptr + i, tl.load(types_ptr + i, mask=real, other=0), mask=inside)

    end = tl.load(cu_seqlens_ptr + sequences)
    bounds = tl.load(cu_seqlens_ptr + i, mask=i <= sequences, other=0)
    tl.store(cu_seqlens_out_ptr + i, tl.where(i <= sequences, bounds, end), mask=i <= buffer_sequences)
    first = tl.load(first_rows_ptr + i, mask=i < sequences, other=0)
    tl.store(first_rows_out_ptr + i, first, mask=i < buffer_sequences)


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
    """Copies each input to the front of its buffer and pads the rest as above. All contiguous."""
    buffer_rows, buffer_sequences = ids_out.shape[0], first_rows_out.shape[0]
    _stage_kernel[(triton.cdiv(max(buffer_rows, buffer_sequences + 1), BLOCK),)](
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
        buffer_rows,
        buffer_sequences,
        HAS_TYPES=types is not None,
        BLOCK=BLOCK,
    )
