"""The losses of TFBertForTokenClassification and TFBertForQuestionAnswering.

Source: transformers 4.37. Unlike PyTorch's, span losses are not averaged over the batch, all negative labels are ignored, and positions
are not clamped.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from bertfast.compat.arrays import to_torch


def token_classification(logits: Tensor, labels: object, legacy: bool) -> Tensor:  # [B, S, C] -> [1], or [active] with legacy
    """Mean cross entropy over the non-negative labels, shape [1]; NaN where there are none.

    legacy (config.tf_legacy_loss): one loss per active label; active are all but -1 if any label is -1, else all but -100.
    Raises ValueError, naming labels, for a wrong shape, dtype or class.
    """
    classes = logits.shape[-1]
    if classes == 1 and (legacy or logits.shape[1] != 1):  # 4.37 computed it for single-token rows: 0
        raise ValueError("labels: a token loss needs at least two classes, but config.num_labels is 1")
    read = to_torch(labels, "labels").to(logits.device)
    if read.dtype == torch.bool or read.is_complex():
        raise ValueError(f"labels: got {read.dtype}, expected numbers")
    fits = read.numel() == logits[..., 0].numel() if legacy else read.shape == logits.shape[:-1]
    if not fits:
        raise ValueError(f"labels: got shape {tuple(read.shape)}, expected {tuple(logits.shape[:-1])}, one label per token")
    scores, values = logits.reshape(-1, classes), read.reshape(-1)
    if legacy:
        active = values.ne(-1) if bool(values.eq(-1).any()) else values.ne(-100)
        scores, values = scores[active], values[active]
        return F.cross_entropy(scores, checked_indices(values, "labels", classes), reduction="none")
    counts = values.ge(0)
    each = F.cross_entropy(scores, checked_indices(values.clamp(min=0), "labels", classes), reduction="none")
    return ((each * counts).sum() / counts.sum()).reshape(1)


def question_answering(start_logits: Tensor, end_logits: Tensor, starts: object, ends: object) -> Tensor:  # [B, S] each -> [B]
    """(cross entropy of the start + cross entropy of the end) / 2, per example. Raises ValueError, naming the argument."""
    losses = []
    for name, logits, positions in (("start_positions", start_logits, starts), ("end_positions", end_logits, ends)):
        read = to_torch(positions, name).to(logits.device)
        if tuple(read.shape) not in ((logits.shape[0],), (logits.shape[0], 1)):
            raise ValueError(f"{name}: got shape {tuple(read.shape)}, expected ({logits.shape[0]},), one per example")
        losses.append(F.cross_entropy(logits, checked_indices(read.reshape(-1), name, logits.shape[1]), reduction="none"))
    return (losses[0] + losses[1]) / 2


def checked_indices(values: Tensor, name: str, end: int) -> Tensor:
    indices = values.to(torch.int64)  # as TF: a fraction is truncated
    if indices.numel():
        low, high = (int(v) for v in torch.aminmax(indices))
        if low < 0 or high >= end:
            raise ValueError(f"{name}: got {low if low < 0 else high}, expected 0 <= {name} < {end}")
    return indices
