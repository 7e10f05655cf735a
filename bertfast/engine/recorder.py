"""The ops, computed and recorded: what builds a CPU plan.

The graph runs once with a Recorder in the place of `bertfast.ops`. An op that it does not know is computed, and the forward stays op by op.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from bertfast import ops
from bertfast.engine.arena import Buffer
from bertfast.engine.plan_builder import Operand, PlanBuilder, storage
from bertfast.engine.plan_inputs import RowCount
from bertfast.ops import OPS, Fp8Rows, Fp8Weight, Int8Weight, Rows
from bertfast.ops.cpu import activation_code
from bertfast.ops.fp8 import Scales
from bertfast.runtime.native import _C

QUANTIZING_OPS = ("embed_layer_norm", "add_layer_norm", "int8_linear")  # ops of a plan that can quantize their result


@dataclass(slots=True)
class Recorder(PlanBuilder):
    """The op contract (bertfast.ops.protocol.Ops)."""

    def embed_layer_norm(
        self, input_ids: Tensor, word_weight: Tensor, position_ids: Tensor, position_weight: Tensor,
        token_type_ids: Tensor | None, token_type_weight: Tensor, weight: Tensor, bias: Tensor, eps: float,
    ) -> Tensor:  # fmt: skip
        tables = position_ids, position_weight, token_type_ids, token_type_weight, weight, bias
        return self._embed(ops.embed_layer_norm(input_ids, word_weight, *tables, eps), input_ids, word_weight, *tables, eps)

    def int8_embed_layer_norm(
        self, input_ids: Tensor, words: Int8Weight, position_ids: Tensor, position_weight: Tensor,
        token_type_ids: Tensor | None, token_type_weight: Tensor, weight: Tensor, bias: Tensor, eps: float,
    ) -> Tensor:  # fmt: skip
        tables = position_ids, position_weight, token_type_ids, token_type_weight, weight, bias
        return self._embed(ops.int8_embed_layer_norm(input_ids, words, *tables, eps), input_ids, words, *tables, eps)

    def _embed(
        self, out: Tensor, input_ids: Tensor, table: Tensor | Int8Weight, position_ids: Tensor, positions: Tensor,
        type_ids: Tensor | None, types: Tensor, weight: Tensor, bias: Tensor, eps: float,
    ) -> Tensor:  # fmt: skip
        words, scales, width = (table.panels, table.scales, table.width) if isinstance(table, Int8Weight) else (table, None, 0)
        known = table.features if isinstance(table, Int8Weight) else len(table)
        given = words.data_ptr() not in self.weights
        self.add("embed_layer_norm", out, RowCount.ROWS, out.shape[1],
            input_ids=input_ids, words=words, word_scales=scales, word_width=width, word_rows=RowCount.EMBEDDED_ROWS if given else known,
            position_ids=position_ids, positions=positions, position_rows=positions.shape[0],
            type_ids=type_ids, types=types, type_rows=types.shape[0],
            weight=weight, bias=bias, eps=eps, rows=RowCount.ROWS, hidden=out.shape[1], quantized=None,
        )  # fmt: skip
        return out

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None = None) -> Tensor:
        return self._linear(ops.linear(x, weight, bias, activation), x, [weight], [bias], activation)

    def linear_concat(self, x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> Tensor:
        return self._linear(ops.linear_concat(x, weights, biases), x, weights, biases, None)

    def _linear(self, out: Tensor, x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None], activation: str | None) -> Tensor:
        rows = self.rows_of(x)
        self.add("linear", out, rows, out.shape[1],
            x=x, x_stride=self.stride_of(x), parts=[(w, b, w.shape[0]) for w, b in zip(weights, biases, strict=True)],
            activation=activation_code(activation), rows=rows, inputs=x.shape[1],
        )  # fmt: skip
        return out

    def int8_linear(
        self, x: Tensor, weights: Sequence[Int8Weight], biases: Sequence[Tensor | None], activation: str | None = None
    ) -> Tensor:
        out = ops.int8_linear(x, weights, biases, activation)
        rows = self.rows_of(x)
        self.add("int8_linear", out, rows, out.shape[1],
            x=self._quantized_rows(x), parts=[(w.panels, w.scales, b, w.features) for w, b in zip(weights, biases, strict=True)],
            activation=activation_code(activation), rows=rows, inputs=x.shape[1], quantized=None,
        )  # fmt: skip
        return out

    def add_layer_norm(self, x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        out = ops.add_layer_norm(x, residual, weight, bias, eps)
        rows = self.rows_of(x)
        self.add("add_layer_norm", out, rows, out.shape[1],
            x=x, residual=residual, weight=weight, bias=bias, eps=eps, rows=rows, hidden=x.shape[1], quantized=None,
        )  # fmt: skip
        return out

    def varlen_attention(
        self, q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor,
        max_seqlen_q: int, max_seqlen_k: int, causal: bool = False, scale: float | None = None, bfloat16_products: bool = False,
    ) -> Tensor:  # fmt: skip
        out = ops.varlen_attention(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, causal, scale, bfloat16_products)
        N, D = q.shape[1:]
        if D > 256:
            self.trouble = self.trouble or f"attention of head size {D}"
        rows = self.rows_of(q)
        self.add("varlen_attention", out, rows, N * D,
            q=q, q_stride=self.stride_of(q), k=k, k_stride=self.stride_of(k), v=v, v_stride=self.stride_of(v),
            cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_seqlens_k, q_rows=rows, k_rows=self.rows_of(k), sequences=RowCount.SEQUENCES,
            heads=N, head_size=D, scale=D**-0.5 if scale is None else scale, causal=causal,
            bfloat16_products=bfloat16_products,
        )  # fmt: skip
        return out

    def pack(self, x: Tensor, indices: Tensor) -> Tensor:
        out = ops.pack(x, indices)
        rows = self.rows_of(indices)
        self.add("pack", out, rows, out.shape[1], x=x, indices=indices, from_rows=self.rows_of(x), rows=rows, columns=x.shape[1])
        return out

    def unpack(self, x: Tensor, indices: Tensor, rows: int, fill: float = 0.0) -> Tensor:
        out = ops.unpack(x, indices, rows, fill)
        self.add("unpack", out, RowCount.PADDED_ROWS, out.shape[1],
            x=x, indices=indices, from_rows=self.rows_of(x), rows=RowCount.PADDED_ROWS, columns=x.shape[1], fill=fill,
        )  # fmt: skip
        return out

    def write_cache(self, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, rows: Tensor, positions: Tensor) -> None:
        ops.write_cache(k, v, keys, values, rows, positions)
        self.add_without_result("write_cache",
            k=k, k_stride=self.stride_of(k), v=v, v_stride=self.stride_of(v), **strides(keys, values), cache_rows=rows, positions=positions,
            rows=self.rows_of(k),
        )  # fmt: skip

    def cached_attention(
        self, q: Tensor, keys: Tensor, values: Tensor, rows: Tensor, first: Tensor | None, last: Tensor, scale: float | None = None
    ) -> Tensor:
        out = ops.cached_attention(q, keys, values, rows, first, last, scale)
        N, D = q.shape[1:]
        self.add("cached_attention", out, self.rows_of(q), N * D,
            q=q, q_stride=self.stride_of(q), **strides(keys, values), cache_rows=rows, first=first, last=last,
            scale=D**-0.5 if scale is None else scale, rows=self.rows_of(q),
        )  # fmt: skip
        return out

    def _quantized_rows(self, x: Tensor) -> Tensor:
        """A placeholder for the rows of x in int8, quantized once: by the op that makes x where that op can, else by an op of their own."""
        buffer = self.buffers.get(storage(x))
        whole = buffer is not None and x.storage_offset() == 0 and x.shape[1] == buffer.columns
        key = storage(x) if whole else None
        if key in self.int8_rows:
            return self.int8_rows[key]
        rows, columns = self.rows_of(x), _C.int8_row_bytes(x.shape[1]) // 4
        out = x.new_empty(x.shape[0], columns)
        maker, operands = self.calls[buffer.first] if buffer is not None and whole else ("", {})
        parts = operands.get("parts")
        if buffer is not None and maker in QUANTIZING_OPS and (not isinstance(parts, list) or len(parts) == 1):
            operands["quantized"] = out
            self.buffers[storage(out)] = Buffer(rows, columns, buffer.first, buffer.first)
            self.alive.append(out)
        else:
            self.add("int8_quantize", out, rows, columns, x=x, x_stride=self.stride_of(x), rows=rows, inputs=x.shape[1])
        if key is not None:
            self.int8_rows[key] = out
        return out

    # fp8 has no CPU kernels.

    def fp8_linear(
        self, x: Rows, weights: Sequence[Fp8Weight], biases: Sequence[Tensor | None], activation: str | None = None,
        quantize: Scales | None = None,
    ) -> Rows:  # fmt: skip
        out: Rows = self._unrecorded("fp8_linear")(x, weights, biases, activation, quantize)
        return out

    def fp8_add_layer_norm(self, x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Fp8Rows:
        out: Fp8Rows = self._unrecorded("fp8_add_layer_norm")(x, residual, weight, bias, eps)
        return out

    def _unrecorded(self, name: str) -> Callable[..., Any]:
        """An op that plans do not hold: computed, and no plan is made."""

        def compute(*args: object, **kwargs: object) -> object:
            self.trouble = self.trouble or f"the op {name}, which plans do not hold"
            return getattr(ops, name)(*args, **kwargs)

        return compute

    if not TYPE_CHECKING:  # hidden from mypy, which holds the class to Ops

        def __getattr__(self, name: str) -> Callable[..., Any]:
            if name not in OPS:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            return self._unrecorded(name)


def strides(keys: Tensor, values: Tensor) -> dict[str, Operand]:
    """The operands that describe a KV cache."""
    key_strides, value_strides = keys.stride()[:3], values.stride()[:3]
    return {"keys": keys, "key_strides": key_strides, "values": values, "value_strides": value_strides, "shape": tuple(keys.shape)}
