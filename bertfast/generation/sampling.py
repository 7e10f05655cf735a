"""One token of each row of scores."""

import torch
from torch import Tensor

from bertfast.runtime.native import _C


def next_tokens(scores: Tensor, members: Tensor | None, B: int, do_sample: bool) -> Tensor:  # [A, V] -> [A]
    if not do_sample:
        return argmax(scores)
    probabilities = scores.softmax(dim=-1)
    if members is None:
        return sample_rows(probabilities)
    # Rows that have left still draw, so that those that run meet the random numbers they would have met.
    everybody = probabilities.new_ones(B, probabilities.shape[1]).index_copy(0, members, probabilities)
    return sample_rows(everybody).index_select(0, members)


def sample_rows(probabilities: Tensor) -> Tensor:  # [B, V] -> [B]
    """One sample a row: torch.multinomial's, from the same random numbers."""
    if probabilities.device.type != "cuda":
        return torch.multinomial(probabilities, num_samples=1).squeeze(1)
    return exponential_race(probabilities)  # multinomial may look at the probabilities on the host first


def exponential_race(probabilities: Tensor) -> Tensor:  # [B, V] -> [B]
    """What multinomial does for one sample: of exponential clocks that tick at these rates, which rings first."""
    return (probabilities / torch.empty_like(probabilities).exponential_(1)).argmax(dim=-1)


def argmax(scores: Tensor) -> Tensor:  # [A, V] -> [A]
    """scores.argmax(dim=-1); on the CPU without torch's threads, which would go on spinning beside the next step."""
    if scores.device.type != "cpu" or scores.dtype != torch.float32 or not scores.is_contiguous():
        return scores.argmax(dim=-1)
    out = torch.empty(len(scores), dtype=torch.int64)
    _C.argmax(scores.data_ptr(), scores.shape[0], scores.shape[1], out.data_ptr())
    return out
