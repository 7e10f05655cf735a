"""From token vectors to one vector a text: the poolings that sentence-transformers defines, by its names.

Rows are packed: the tokens of one text after those of the other, no padding. Each text's rows are added up one after
the other, so a vector has the same bits whatever else is in the batch (on the CPU).

Shape letters: B texts, T rows of all texts together, H hidden.
"""

import torch
from torch import Tensor

MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")


def pool(rows: Tensor, lengths: Tensor, modes: tuple[str, ...], normalize: bool = False) -> Tensor:
    """The poolings named by `modes`, side by side.

    rows [T, H] in any float dtype, lengths [B] int64 on the same device, each at least 1, T in all.
    Returns [B, H * len(modes)] float32, each row of length 1 if `normalize`.
    """
    rows = rows.float()
    vectors = torch.cat([_pool(rows, lengths, mode) for mode in modes], dim=1)
    return torch.nn.functional.normalize(vectors, dim=1) if normalize else vectors


def _pool(rows: Tensor, lengths: Tensor, mode: str) -> Tensor:  # [T, H] -> [B, H]
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
    if mode == "weightedmean":  # token i counts i + 1 times: SGPT (Muennighoff, 2022), equation 2
        starts = torch.repeat_interleave(ends - lengths, lengths)
        weights = torch.arange(1, len(rows) + 1, device=rows.device) - starts
        return _reduce(rows * weights[:, None], lengths, "sum") * (2 / (lengths * (lengths + 1)))[:, None]
    raise ValueError(f"pooling {mode!r}, expected one of {', '.join(MODES)}")


def _reduce(rows: Tensor, lengths: Tensor, how: str) -> Tensor:
    reduced: Tensor = torch.segment_reduce(rows, how, lengths=lengths, axis=0)
    return reduced
