"""The checks of the op contract: ValueError, naming the op and the argument. Backends rely on them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from bertfast.ops.activations import ACTIVATIONS
from bertfast.ops.fp8 import GROUP_SIZE as FP8_GROUP_SIZE
from bertfast.ops.fp8 import Fp8Rows, Fp8Weight, Rows
from bertfast.ops.int8 import GROUP_SIZE, HADAMARD_BLOCK, Int8Weight


def check_linear(op: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    check(x.dim() == 2 and weight.dim() == 2, op, "x must be [T, K] and weight [F, K], got {} and {}", x.shape, weight.shape)
    check(x.shape[1] == weight.shape[1], op, "x {} and weight {} differ in K", x.shape, weight.shape)
    if bias is not None:
        check(bias.shape == weight.shape[:1], op, "bias {} does not match weight {}", bias.shape, weight.shape)
    check_operands(op, x, weight=weight, bias=bias)


def check_embedding(
    op: str, input_ids: Tensor, position_ids: Tensor, token_type_ids: Tensor | None, tables: dict[str, Tensor], weight: Tensor, bias: Tensor
) -> None:
    check(input_ids.dim() == 1, op, "input_ids must be [T], got {}", input_ids.shape)
    for name, ids in (("input_ids", input_ids), ("position_ids", position_ids), ("token_type_ids", token_type_ids)):
        if ids is not None:
            check(ids.dtype == torch.int64, op, "{} must be int64, got {}", name, ids.dtype)
            check(ids.is_contiguous(), op, "{} must be contiguous, got strides {}", name, ids.stride())
            check(ids.shape == input_ids.shape, op, "{} {} does not match input_ids {}", name, ids.shape, input_ids.shape)
            check(ids.device == weight.device, op, "{} is on {}, weight on {}", name, ids.device, weight.device)
    for name, table in tables.items():
        check(table.dim() == 2, op, "{} must be [rows, H], got {}", name, table.shape)
        check(table.shape[1:] == weight.shape, op, "{} {} does not match H of weight {}", name, table.shape, weight.shape)
    check(bias.shape == weight.shape, op, "bias {} does not match weight {}", bias.shape, weight.shape)


def check_activation(op: str, activation: str | None) -> None:
    check(activation is None or activation in ACTIVATIONS, op, "activation {!r}, expected one of {}", activation, [*ACTIVATIONS])


def check_norm(op: str, x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor) -> None:
    check(x.dim() == 2, op, "x must be [T, H], got {}", x.shape)
    if residual is not None:
        check(residual.shape == x.shape, op, "residual {} does not match x {}", residual.shape, x.shape)
    check(weight.shape == x.shape[1:], op, "weight {} does not match H={}", weight.shape, x.shape[1])
    check(bias.shape == x.shape[1:], op, "bias {} does not match H={}", bias.shape, x.shape[1])
    check_operands(op, x, residual=residual, weight=weight, bias=bias)


def check_fp8_linear(op: str, x: Rows, weights: Sequence[Fp8Weight], biases: Sequence[Tensor | None]) -> None:
    values = x.values if isinstance(x, Fp8Rows) else x
    check(values.dim() == 2 and values.is_contiguous(), op, "x must be a contiguous [T, K], got {}", values.shape)
    check(x.dtype in (torch.float16, torch.bfloat16), op, "x is {}, expected torch.float16 or torch.bfloat16", x.dtype)
    check(len(weights) == len(biases) > 0, op, "{} weights and {} biases", len(weights), len(biases))
    K, kind = values.shape[1], weights[0].scaled_by
    for weight, bias in zip(weights, biases, strict=True):
        F = weight.values.shape[0]
        check(weight.values.shape == (F, K), op, "x {} and weight {} differ in K", values.shape, weight.values.shape)
        scales = (K // FP8_GROUP_SIZE if kind == "group" else 1, F)
        check(weight.scales.shape == scales, op, "scales {}, expected {}", weight.scales.shape, scales)
        check(weight.values.device == values.device, op, "a weight is on {}, x on {}", weight.values.device, values.device)
        if bias is not None:
            check(bias.shape == (F,), op, "bias {} does not match a weight of {} features", bias.shape, F)
            check(bias.dtype == x.dtype and bias.device == values.device, op, "bias is {} on {}", bias.dtype, bias.device)
    check_no_grad(op, x if isinstance(x, Tensor) else x.unquantized, *biases)


def check_int8_weight(op: str, weight: Int8Weight, width: int) -> None:
    panels, blocks, groups = -(-weight.features // width), -(-weight.inputs // HADAMARD_BLOCK), -(-weight.inputs // GROUP_SIZE)
    check(weight.panels.shape == (panels, blocks * HADAMARD_BLOCK // 4, width, 4), op, "panels {}: use pack_int8", weight.panels.shape)
    check(weight.scales.shape == (panels, groups, width), op, "scales {}: use pack_int8", weight.scales.shape)
    check(weight.panels.dtype == torch.uint8 and weight.panels.is_contiguous(), op, "panels are damaged: use pack_int8")


def check_varlen(op: str, q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor) -> None:
    check(q.dim() == 3, op, "q must be [Tq, N, D], got {}", q.shape)
    check(k.shape == v.shape, op, "k {} does not match v {}", k.shape, v.shape)
    check(k.dim() == 3 and k.shape[1:] == q.shape[1:], op, "k {} does not match N and D of q {}", k.shape, q.shape)
    check(q.shape[2] > 0, op, "q {} has heads of size 0", q.shape)
    check_token_rows(op, q=q, k=k, v=v)
    for name, t in (("k", k), ("v", v)):
        check(t.device == q.device and t.dtype == q.dtype, op, "{} is {} on {}, q is {} on {}", name, t.dtype, t.device, q.dtype, q.device)
    check(cu_seqlens_q.shape == cu_seqlens_k.shape, op, "cu_seqlens_q {}, cu_seqlens_k {}", cu_seqlens_q.shape, cu_seqlens_k.shape)
    for name, cu in (("cu_seqlens_q", cu_seqlens_q), ("cu_seqlens_k", cu_seqlens_k)):
        check(cu.dtype == torch.int32 and cu.dim() == 1, op, "{} must be [B + 1] int32, got {} {}", name, cu.shape, cu.dtype)
        check(cu.device == q.device and cu.is_contiguous() and len(cu) > 0, op, "{} must lie contiguous on {}", name, q.device)
    check_no_grad(op, q, k, v)


def check_cache(op: str, x: Tensor, keys: Tensor, values: Tensor, **per_token: Tensor) -> None:
    check(x.dim() == 3, op, "the first operand must be [T, N, D], got {}", x.shape)
    T, N, D = x.shape
    check(keys.dim() == 4 and keys.shape[1] == N and keys.shape[3] == D, op, "keys {} do not match N={} and D={}", keys.shape, N, D)
    check(values.shape == keys.shape, op, "values {} do not match keys {}", values.shape, keys.shape)
    for name, t in (("keys", keys), ("values", values)):
        check(t.numel() == 0 or t.stride(3) == 1, op, "the last dimension of {} must be contiguous, got strides {}", name, t.stride())
        same = t.dtype == x.dtype and t.device == x.device
        check(same, op, "{} are {} on {}, expected {} on {}", name, t.dtype, t.device, x.dtype, x.device)
    for name, t in per_token.items():
        check(t.shape == (T,) and t.dtype == torch.int64, op, "{} must be [{}] int64, got {} {}", name, T, t.shape, t.dtype)
        check(t.device == x.device and t.is_contiguous(), op, "{} must lie contiguous on {}", name, x.device)


def check_token_rows(op: str, **operands: Tensor) -> None:
    for name, t in operands.items():
        stride = t.stride()
        check(t.numel() == 0 or stride[1:] == (t.shape[2], 1), op, "rows of {} must be contiguous, got strides {}", name, stride)


def check_rows(op: str, x: Tensor, indices: Tensor) -> None:
    check(x.dim() == 2 and x.is_contiguous(), op, "x must be a contiguous matrix, got {} with strides {}", x.shape, x.stride())
    check(indices.dim() == 1 and indices.is_contiguous(), op, "indices must be a contiguous vector, got {}", indices.shape)
    check(indices.dtype == torch.int64, op, "indices must be int64, got {}", indices.dtype)
    check(indices.device == x.device, op, "indices are on {}, x on {}", indices.device, x.device)
    check_no_grad(op, x)


def check_operands(op: str, x: Tensor, **others: Tensor | None) -> None:
    """All contiguous, of x's device and dtype; none that autograd would have to record."""
    device, dtype = x.device, x.dtype
    check(x.is_contiguous(), op, "the first operand must be contiguous, got strides {}", x.stride())
    for name, t in others.items():
        if t is not None:
            check(t.is_contiguous(), op, "{} must be contiguous, got strides {}", name, t.stride())
            check(t.dtype == dtype and t.device == device, op, "{} is {} on {}, expected {} on {}", name, t.dtype, t.device, dtype, device)
    check_no_grad(op, x, *others.values())


def check_no_grad(op: str, *operands: Tensor | None) -> None:
    if torch.is_grad_enabled():
        for t in operands:
            if t is not None and t.requires_grad:
                raise ValueError(f"{op}: the kernels do not differentiate; call it under torch.no_grad(), or bertfast.ops.reference.{op}")


def check(ok: bool, op: str, message: str, *values: object) -> None:
    if not ok:
        raise ValueError(f"{op}: " + message.format(*(tuple(v) if isinstance(v, tuple) else v for v in values)))
