"""Which calls on a GPU a CUDA graph can hold, why others run eagerly, and how often."""

import os
from collections import Counter

import torch

from bertfast import ops
from bertfast.engine.call import ForwardCall
from bertfast.runtime.model_types import BaseModel, Model

MAX_ROWS = 8192  # above, each kernel runs longer than the next takes to launch

_reasons: Counter[str] = Counter()


def count_reason(reason: str) -> None:
    _reasons[reason] += 1


def eager_reasons() -> dict[str, int]:
    """Why calls ran without a CUDA graph, and how often: for `bertfast info`."""
    return dict(_reasons)


def why_eager_trial(model: Model) -> str | None:
    """Calls a model on a GPU with a small batch: None where a CUDA graph was replayed, else why it ran eagerly."""
    before = eager_reasons()
    base = model.base_model
    with torch.no_grad():
        base(torch.zeros(2, 8, dtype=torch.int64, device=base.device), use_cache=False)
    new = [reason for reason, count in eager_reasons().items() if count > before.get(reason, 0)]
    return "; ".join(new) or None


def why_eager(call: ForwardCall) -> str | None:
    """Why this call runs eagerly; None where a CUDA graph can hold it."""
    rows = call.batch.rows
    attention = rows.varlen
    if (reason := why_model_eager(call.base)) is not None:
        return reason
    if attention is None or call.batch.pad_mask is not None:
        return "attention under a mask, or on a KV cache"
    if rows.cross_attention is not None:
        return "cross-attention"
    if attention.key_rows is not None:
        return "padding is kept"
    if rows.words is not None:
        return "inputs_embeds is given"
    if rows.input_ids.shape[0] == 0:
        return "an empty batch"
    if rows.input_ids.shape[0] > MAX_ROWS:
        return f"more than {MAX_ROWS} rows, whose kernels hide their launches"
    return None


def why_model_eager(base: BaseModel) -> str | None:
    """Why no call of this model can be captured now; None where one may. base: the model without a head."""
    config, weight = base.config, base.embeddings.position_embeddings.weight
    if not ops.has_kernels(weight.device, weight.dtype):
        return f"{weight.dtype} runs on the reference ops; use float32, float16 or bfloat16"
    if os.environ.get("BERTFAST_CUDA_GRAPHS") == "0":
        return "BERTFAST_CUDA_GRAPHS=0"
    if config.hidden_size > 8192 or config.hidden_size > 128 * config.num_attention_heads:
        return "a hidden size above 8192 or a head size above 128 runs on the reference ops"
    if weight.is_cuda and torch.cuda.is_current_stream_capturing():
        return "the caller captures a CUDA graph"
    return None


def kernel_settings(model: Model) -> tuple[object, ...]:
    """What else decides which kernels run: torch's switches and the model's own."""
    matmul = torch.backends.cuda.matmul
    return (
        getattr(matmul, "fp32_precision", None),
        matmul.allow_fp16_reduced_precision_reduction,
        matmul.allow_bf16_reduced_precision_reduction,
        torch.are_deterministic_algorithms_enabled(),
        model.batch_invariant,
    )
