"""The varlen attention of a batch whose recording asks for it."""

from bertfast.batch.attention import VarlenAttention
from bertfast.batch.packed import PackedBatch


def varlen_of(batch: PackedBatch) -> VarlenAttention:
    """The self-attention of a batch that plan_key, why_eager or pack_prompts accepted."""
    attention = batch.rows.attention
    assert isinstance(attention, VarlenAttention), f"got {type(attention).__name__}, expected VarlenAttention"
    return attention
