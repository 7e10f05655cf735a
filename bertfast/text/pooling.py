"""Pooling of token vectors to one vector per text: the modes of sentence-transformers, under its names.

Rows are packed: the tokens of all texts back to back, no padding. Each text's rows are summed in order, so on the CPU a vector's
bits do not depend on the batch.

Shape letters: B texts, T tokens of all texts, H hidden.
"""

import torch
from torch import Tensor

MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")


def pool(rows: Tensor, lengths: Tensor, modes: tuple[str, ...], normalize: bool = False, unpooled: int = 0) -> Tensor:
    """The vectors of all `modes`, concatenated.

    rows [T, H] of any float dtype; lengths [B] int64 on the same device, each at least 1, their sum T.
    unpooled: tokens before each text's rows that are left out of `rows`; weightedmean counts them as positions.
    Returns [B, H * len(modes)] float32, of unit length if `normalize`. Raises ValueError for an unknown mode.
    """
    rows = rows.float()
    vectors = torch.cat([_pool(rows, lengths, mode, unpooled) for mode in modes], dim=1)
    return torch.nn.functional.normalize(vectors, dim=1) if normalize else vectors


def _pool(rows: Tensor, lengths: Tensor, mode: str, unpooled: int) -> Tensor:  # [T, H] -> [B, H]
    ends = lengths.cumsum(0)
    if mode == "cls":
        return rows[ends - lengths]
    if mode == "lasttoken":
        return rows[ends - 1]
    if mode == "max":
        return _reduce(rows, lengths, "max")
    if mode == "mean":
        return _reduce(rows, lengths, "mean")
    if mode == "mean_sqrt_len_tokens":
        return _reduce(rows, lengths, "sum") / lengths[:, None].float().sqrt()
    if mode == "weightedmean":  # token i of the input counts i + 1 times: SGPT (Muennighoff, 2022), equation 2
        starts = torch.repeat_interleave(ends - lengths, lengths)
        weights = torch.arange(1 + unpooled, len(rows) + 1 + unpooled, device=rows.device) - starts
        return _reduce(rows * weights[:, None], lengths, "sum") * (2 / (lengths * (lengths + 1 + 2 * unpooled)))[:, None]
    raise ValueError(f"pooling: got {mode!r}, expected one of {', '.join(MODES)}")


def _reduce(rows: Tensor, lengths: Tensor, how: str) -> Tensor:
    reduced: Tensor = torch.segment_reduce(rows, how, lengths=lengths, axis=0)
    return reduced
