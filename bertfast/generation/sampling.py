"""The next token of each sequence from its scores.

Shape letters: A unfinished sequences, B sequences of the batch, V vocabulary.
"""

import torch
from torch import Tensor

from bertfast.runtime.native import _C


def next_tokens(scores: Tensor, members: Tensor | None, B: int, do_sample: bool) -> Tensor:  # [A, V] -> [A]
    """members: the row of the batch that each sequence is, [A]; None for all of them in order."""
    if not do_sample:
        return argmax(scores)
    probabilities = scores.softmax(dim=-1)
    if members is None:
        return sample_rows(probabilities)
    # Dropped sequences draw too: the others then get the random numbers that transformers' loop gives them.
    whole_batch = probabilities.new_ones(B, probabilities.shape[1]).index_copy(0, members, probabilities)
    return sample_rows(whole_batch).index_select(0, members)


def sample_rows(probabilities: Tensor) -> Tensor:  # [B, V] -> [B]
    """One sample a row: torch.multinomial's, from the same random numbers."""
    if probabilities.device.type != "cuda":
        return torch.multinomial(probabilities, num_samples=1).squeeze(1)
    return exponential_race(probabilities)  # multinomial may check its input on the host, which waits for the device


def exponential_race(probabilities: Tensor) -> Tensor:  # [B, V] -> [B]
    """torch.multinomial's algorithm for one sample: the argmax of p / Exp(1) noise."""
    return (probabilities / torch.empty_like(probabilities).exponential_(1)).argmax(dim=-1)


def argmax(scores: Tensor) -> Tensor:  # [A, V] -> [A]
    """scores.argmax(dim=-1); on the CPU without torch's threads, which would spin into the next step."""
    if scores.device.type != "cpu" or scores.dtype != torch.float32 or not scores.is_contiguous():
        return scores.argmax(dim=-1)
    out = torch.empty(len(scores), dtype=torch.int64)
    _C.argmax(scores.data_ptr(), scores.shape[0], scores.shape[1], out.data_ptr())
    return out
