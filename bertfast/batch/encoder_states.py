"""What cross-attention reads: the encoder's hidden states and mask, checked.

Shape letters: B batch, S length of the decoder's input, Se length of the encoder's, N heads, H hidden.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bertfast.batch.checks import check_device, check_embedding_dtype, describe
from bertfast.batch.masks import PackedMask, read_attention_mask, read_mask
from bertfast.runtime.config_access import setting

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


@dataclass(frozen=True, slots=True)
class CrossInputs:
    """The encoder's states, and which of them the decoder may see."""

    rows: Tensor  # [B * Se, H]
    length: int  # Se
    packed: PackedMask | None = None  # of a 2-D mask; None: all are real
    real: Tensor | None = None  # [B, Se] bool, where `packed` is not None
    visible: Tensor | None = None  # a 3-D or 4-D mask, as 4-D

    @property
    def shortest(self) -> int:
        return self.length if self.packed is None else self.packed.shortest


def read_cross_inputs(
    states: object, mask: object, B: int, S: int, config: "PreTrainedConfig", device: torch.device, dtype: torch.dtype
) -> CrossInputs | None:
    """encoder_hidden_states [B, Se, H] and encoder_attention_mask; None where there are no states, or (as in transformers) no decoder.

    Raises ValueError where they do not fit the model or the batch.
    """
    if states is None or not setting(config, "is_decoder"):
        return None
    if not config.add_cross_attention:
        raise ValueError("encoder_hidden_states: this model has no cross-attention layers; build it with config.add_cross_attention=True")
    H = config.hidden_size
    if not isinstance(states, Tensor) or states.dim() != 3 or states.shape[0] != B or states.shape[2] != H:
        raise ValueError(
            f"encoder_hidden_states: got {describe(states)}, expected a tensor [{B}, length, {H}], one sequence for each input"
        )
    check_embedding_dtype(states, "encoder_hidden_states", dtype)
    check_device(states, "encoder_hidden_states", device)
    Se = states.shape[1]
    rows = states.reshape(B * Se, H).contiguous()
    if mask is None:
        return CrossInputs(rows, Se)
    read = read_attention_mask(mask, "encoder_attention_mask", B, config.num_attention_heads, S, Se, device, dtype)
    if read.dim() == 4:
        return CrossInputs(rows, Se, visible=read)
    packed = read_mask(read, device)
    return CrossInputs(rows, Se) if packed is None else CrossInputs(rows, Se, packed, read.ne(0).to(device))
