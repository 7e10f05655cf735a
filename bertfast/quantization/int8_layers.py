"""int8 layers, which replace nn.Linear and nn.Embedding.

Each is an nn.Module with a forward of its own, so that transformers' forward runs on a quantized model too. The integers are stored once,
in buffers, in the panels that the kernels read. Files and state dicts hold them row-major, the same for every instruction set:

    <layer>.weight_int8      [F, K'] int8
    <layer>.weight_scales    [F, ceil(K / 128)] float32
    <layer>.bias             [F] float32, of linear layers

Shape letters: K inputs and F outputs of a linear layer, or columns and rows of an embedding table; K' = K rounded up to 64, R rows.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bertfast import ops
from bertfast.graph.projections import linear
from bertfast.ops import Ops, reference
from bertfast.ops.derivative import RELOAD_HINT
from bertfast.ops.int8 import GROUP_SIZE, HADAMARD_BLOCK, dequantize
from bertfast.quantization.layer import QuantizedLayer

__all__ = ["Int8Embedding", "Int8Linear", "Int8Table", "QuantizedLayer", "kernels_can_run"]


class Int8Table(QuantizedLayer):
    """An int8 matrix, rotated, with a scale for every 128 columns: see bertfast.ops.int8.

    A new one holds zeros, row-major, for a state dict to be loaded into; `pack` lays them out in the kernels' panels.
    """

    scheme = "int8"

    def __init__(self, rows: int, columns: int, width: int) -> None:
        super().__init__()
        self._shape, self.width = (rows, columns), width
        padded = -(-columns // HADAMARD_BLOCK) * HADAMARD_BLOCK
        self._set_rows(torch.zeros(rows, padded, dtype=torch.int8), torch.zeros(rows, -(-columns // GROUP_SIZE)))

    def check_conversion(self, fn: Callable[[Tensor], Tensor]) -> None:
        probe = fn(torch.empty(0))  # as fn would convert the scales
        if probe.dtype != torch.float32:
            raise RuntimeError(
                f"a model in int8 cannot become {probe.dtype}: it computes in int8 and float32. For another dtype, {RELOAD_HINT}"
            )
        if probe.device.type not in ("cpu", "meta"):
            raise RuntimeError(f"a model in int8 cannot move to {probe.device}: it runs on CPUs. For a GPU, {RELOAD_HINT}")

    @property
    def packed(self) -> bool:
        return "panels" in self._buffers

    def pack(self) -> None:
        if not self.packed:
            self._set_panels(ops.pack_int8(self.weight_int8, self.weight_scales, self._shape[1], self.width))

    def unpack(self) -> None:
        if self.packed:
            self._set_rows(*self.rows())

    def _set_rows(self, integers: Tensor, scales: Tensor) -> None:
        self._drop("panels", "panel_scales")
        self.register_buffer("weight_int8", integers)
        self.register_buffer("weight_scales", scales)

    def _set_panels(self, weight: ops.Int8Weight) -> None:
        self._drop("weight_int8", "weight_scales")
        self.register_buffer("panels", weight.panels, persistent=False)
        self.register_buffer("panel_scales", weight.scales, persistent=False)

    def _drop(self, *names: str) -> None:
        for name in names:
            if name in self._buffers:
                delattr(self, name)

    def _replace(self, integers: Tensor, scales: Tensor) -> None:
        """Takes these values. Panels are overwritten in place: a tied decoder reads them too."""
        if self.packed:
            made = ops.pack_int8(integers, scales, self._shape[1], self.width)
            self.panels.copy_(made.panels)
            self.panel_scales.copy_(made.scales)
        else:
            self._set_rows(integers, scales)

    @torch.no_grad()
    def fill(self, weight: Tensor) -> None:
        """Takes the values of weight [F, K] float32."""
        self._replace(*ops.quantize_weight(weight.detach().float().contiguous()))

    @property
    def kernel_weight(self) -> ops.Int8Weight:
        """The buffers of a packed layer."""
        return ops.Int8Weight(self.panels, self.panel_scales, *self._shape)

    def rows(self) -> tuple[Tensor, Tensor]:
        """weight_int8 and weight_scales, from either form."""
        if not self.packed:
            return self.weight_int8, self.weight_scales
        return ops.unpack_int8(self.kernel_weight)

    def dequantized(self) -> Tensor:  # [F, K] float32
        return dequantize(*self.rows(), self._shape[1])

    def _save_to_state_dict(self, destination: dict[str, Tensor], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.packed:
            destination[prefix + "weight_int8"], destination[prefix + "weight_scales"] = self.rows()

    def _load_from_state_dict(self, state_dict: Mapping[str, Tensor], prefix: str, *args: Any) -> None:
        for name, dtype in (("weight_int8", torch.int8), ("weight_scales", torch.float32)):
            given = state_dict.get(prefix + name)
            if isinstance(given, Tensor) and given.dtype != dtype:  # torch would cast it
                args[-1].append(f"{prefix}{name} is {given.dtype}, expected {dtype}")
                return
        weight = self.kernel_weight if self.packed else None
        self.unpack()
        super()._load_from_state_dict(state_dict, prefix, *args)
        if weight is not None:
            rows = self.rows()
            self._set_panels(weight)
            self._replace(*rows)


class Int8Linear(Int8Table):
    """nn.Linear in int8, which quantizes its inputs: see bertfast.ops.int8_linear."""

    tied = False  # shares the integers of the word embeddings

    def __init__(self, inputs: int, features: int, bias: bool = True) -> None:
        super().__init__(features, inputs, HADAMARD_BLOCK)
        self.in_features, self.out_features = inputs, features
        self.register_parameter("bias", nn.Parameter(torch.zeros(features)) if bias else None)

    @classmethod
    @torch.no_grad()
    def of(cls, layer: nn.Linear) -> "Int8Linear":
        """`layer` (float32) in int8; the bias is shared."""
        made = cls.zeros_like(layer)
        made.fill(layer.weight)
        made.pack()
        return made.train(layer.training)

    @classmethod
    def zeros_like(cls, layer: nn.Linear) -> "Int8Linear":
        """Zeros of the shape of `layer`, whose bias is shared: in a language-model head it is tied to another one."""
        made = cls(layer.in_features, layer.out_features, bias=False)
        made.bias = layer.bias
        return made

    @torch.no_grad()
    def tie(self, words: "Int8Embedding") -> None:
        """Shares the integers of the word embeddings, [F, K] too. They are stored once, in panels that suit both; state dicts and files
        hold them under the embeddings alone."""
        words.unpack()
        words.width = HADAMARD_BLOCK
        words.pack()
        self._set_panels(words.kernel_weight)
        self.tied = True

    def _save_to_state_dict(self, destination: dict[str, Tensor], prefix: str, keep_vars: bool) -> None:
        if self.tied:
            nn.Module._save_to_state_dict(self, destination, prefix, keep_vars)
        else:
            super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, state_dict: Mapping[str, Tensor], prefix: str, *args: object) -> None:
        if self.tied:
            nn.Module._load_from_state_dict(self, state_dict, prefix, *args)
        else:
            super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, x: Tensor) -> Tensor:  # [..., K] -> [..., F] float32
        if x.shape[-1] != self.in_features:
            raise ValueError(f"x: got shape {tuple(x.shape)}, expected [..., {self.in_features}], the inputs of this layer")
        if torch.compiler.is_dynamo_compiling():  # break its graph: the reference op would be hundreds of nodes a layer
            return _untraced(self, x)
        return self.compute(x, ops if kernels_can_run() else reference)

    def compute(self, x: Tensor, O: Ops) -> Tensor:
        rows = x.to(torch.float32).reshape(-1, self.in_features).contiguous()
        return linear(rows, [self], O).view(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


@torch.compiler.disable  # type: ignore[untyped-decorator]  # torch's own
def _untraced(layer: Int8Linear, x: Tensor) -> Tensor:
    return layer.compute(x, ops)


class Int8Embedding(Int8Table):
    """nn.Embedding in int8, whose rows are dequantized as they are gathered."""

    bfloat16_attention = True  # an encoder's attention may round to bfloat16: int8 is coarser

    def __init__(self, words: int, hidden: int, padding_idx: int | None = None) -> None:
        super().__init__(words, hidden, 1)
        self.num_embeddings, self.embedding_dim, self.padding_idx = words, hidden, padding_idx

    @classmethod
    @torch.no_grad()
    def of(cls, embedding: nn.Embedding) -> "Int8Embedding":
        """`embedding` (float32) in int8."""
        layer = cls(embedding.num_embeddings, embedding.embedding_dim, embedding.padding_idx)
        layer.fill(embedding.weight)
        layer.pack()
        return layer.train(embedding.training)

    def forward(self, ids: Tensor) -> Tensor:  # [...] int64 -> [..., H] float32
        if not self.packed:
            return dequantize(F.embedding(ids, self.weight_int8), F.embedding(ids, self.weight_scales), self.embedding_dim)
        panel, word = ids // self.width, ids % self.width
        unsigned = self.panels[panel, :, word].flatten(-2)
        return dequantize(unsigned.to(torch.float32) - 128, self.panel_scales[panel, :, word], self.embedding_dim)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}"


def kernels_can_run() -> bool:
    """Whether a call may read tensors by their addresses: not under torch.export, tracers and function transforms, where the reference ops
    run."""
    return not (
        torch.compiler.is_compiling()
        or torch._C._is_tracing()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._len_torch_dispatch_stack()
    )
