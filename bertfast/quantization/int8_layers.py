"""Layers whose weights are int8: what takes the place of nn.Linear and nn.Embedding in a quantized model.

Each is an nn.Module with a forward of its own, so that transformers' forward runs on a quantized model as well; the graph
(bertfast.graph.encoder) asks them for the same ops. The integers lie in buffers, once: in the panels that the kernels read. Files and state
dicts hold them row by row, which every instruction set can read, under

    <layer>.weight_int8      [F, Kp] int8
    <layer>.weight_scales    [F, Kp / 64] float32
    <layer>.bias             [F] float32, of linear layers

Shape letters: K inputs and F outputs of a linear layer, words and hidden size of an embedding table; Kp = K rounded up to 64, R rows.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bertfast import ops
from bertfast.ops import Ops, reference
from bertfast.ops.int8 import GROUP_SIZE, HADAMARD_BLOCK, dequantize

RELOAD_HINT = "load the float model again (from_pretrained without quantization=, from a folder that is not quantized)"


class QuantizedLayer(nn.Module):
    """What the quantized layers have in common: what they refuse."""

    scheme = "int8"

    def __getattr__(self, name: str) -> Any:
        if name == "weight":  # an AttributeError, so that hasattr is answered
            raise AttributeError(
                f"this {type(self).__name__} has no float weight: it is {self.scheme}. dequantized() gives its values; "
                f"to change them, {RELOAD_HINT}"
            )
        return super().__getattr__(name)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "QuantizedLayer":
        probe = fn(torch.empty(0))  # what .to, .half, .cuda and their like would make of the scales
        if probe.dtype != torch.float32:
            raise RuntimeError(
                f"a model in {self.scheme} cannot become {probe.dtype}: it computes in int8 and float32. For another dtype, {RELOAD_HINT}"
            )
        if probe.device.type not in ("cpu", "meta"):
            raise RuntimeError(f"a model in {self.scheme} cannot move to {probe.device}: it runs on CPUs. For a GPU, {RELOAD_HINT}")
        out: QuantizedLayer = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch's own
        return out


class Int8Table(QuantizedLayer):
    """A matrix of int8, turned and with a scale for every 128 columns: see bertfast.ops.int8.

    As built it holds zeros row by row, for a state dict to be read into; `pack` gives them the form that the kernels read.
    """

    def __init__(self, rows: int, columns: int, width: int) -> None:
        super().__init__()
        self._shape, self.width = (rows, columns), width
        padded = -(-columns // HADAMARD_BLOCK) * HADAMARD_BLOCK
        self._set_rows(torch.zeros(rows, padded, dtype=torch.int8), torch.zeros(rows, -(-columns // GROUP_SIZE)))

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
        """Takes the values of these rows. Panels stay where they lie: a decoder may read them too."""
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

    def weights(self) -> ops.Int8Weight:
        """The buffers of a packed layer, as the op takes them."""
        return ops.Int8Weight(self.panels, self.panel_scales, *self._shape)

    def rows(self) -> tuple[Tensor, Tensor]:
        """weight_int8 and weight_scales, whatever form they are kept in."""
        if not self.packed:
            return self.weight_int8, self.weight_scales
        return ops.unpack_int8(self.weights())

    def dequantized(self) -> Tensor:  # [F, K] float32
        return dequantize(*self.rows(), self._shape[1])

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.packed:
            destination[prefix + "weight_int8"], destination[prefix + "weight_scales"] = self.rows()

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        weight = self.weights() if self.packed else None
        self.unpack()
        super()._load_from_state_dict(state_dict, prefix, *args)
        if weight is not None:
            rows = self.rows()
            self._set_panels(weight)
            self._replace(*rows)


class Int8Linear(Int8Table):
    """nn.Linear in int8, its inputs quantized on the way: see bertfast.ops.int8_linear."""

    tied = False  # to the word embeddings, whose integers it reads

    def __init__(self, inputs: int, features: int, bias: bool = True) -> None:
        super().__init__(features, inputs, HADAMARD_BLOCK)
        self.in_features, self.out_features = inputs, features
        self.register_parameter("bias", nn.Parameter(torch.zeros(features)) if bias else None)

    @classmethod
    @torch.no_grad()
    def of(cls, linear: Any) -> "Int8Linear":
        """`linear` (float32) in int8; its bias is shared."""
        layer = cls(linear.in_features, linear.out_features, bias=False)
        layer.bias = linear.bias
        layer.fill(linear.weight)
        layer.pack()
        return layer.train(linear.training)

    @torch.no_grad()
    def tie(self, words: "Int8Embedding") -> None:
        """Reads the integers of the word embeddings, [F, K] as well, from now on. They are kept once, in panels that suit both, and a state
        dict and a file hold them as the embeddings' alone."""
        words.unpack()
        words.width = HADAMARD_BLOCK
        words.pack()
        self._set_panels(words.weights())
        self.tied = True

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        if self.tied:
            nn.Module._save_to_state_dict(self, destination, prefix, keep_vars)
        else:
            super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        if self.tied:
            nn.Module._load_from_state_dict(self, state_dict, prefix, *args)
        else:
            super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, x: Tensor) -> Tensor:  # [..., K] -> [..., F] float32
        if x.shape[-1] != self.in_features:
            raise ValueError(f"x: got shape {tuple(x.shape)}, expected [..., {self.in_features}], the inputs of this layer")
        if torch.compiler.is_dynamo_compiling():  # a break in its graph; the plain definition would be hundreds of nodes a layer
            return _unseen(self, x)
        return self.compute(x, ops if kernels_can_run() else reference)

    def compute(self, x: Tensor, O: Ops) -> Tensor:
        rows = x.to(torch.float32).reshape(-1, self.in_features).contiguous()
        return self.project(rows, [self], O).view(*x.shape[:-1], self.out_features)

    @staticmethod
    def project(x: Tensor, layers: Sequence["Int8Linear"], O: Ops, activation: str | None = None) -> Tensor:  # [R, K] -> [R, sum F]
        """What bertfast.graph.encoder.linear does for layers of this kind."""
        weights, biases = [layer.weights() for layer in layers], [layer.bias for layer in layers]
        out: Tensor = without_derivative("int8", lambda: O.int8_linear(x, weights, biases, activation), x, *biases)
        return out

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


@torch.compiler.disable  # type: ignore[untyped-decorator]  # torch's own
def _unseen(layer: Int8Linear, x: Tensor) -> Tensor:
    return layer.compute(x, ops)


class Int8Embedding(Int8Table):
    """nn.Embedding in int8: rows that are turned back as they are gathered."""

    def __init__(self, words: int, hidden: int, padding_idx: int | None = None) -> None:
        super().__init__(words, hidden, 1)
        self.num_embeddings, self.embedding_dim, self.padding_idx = words, hidden, padding_idx

    @classmethod
    @torch.no_grad()
    def of(cls, embedding: Any) -> "Int8Embedding":
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

    def embed(self, input_ids: Tensor, O: Ops, *others: Any) -> Tensor:
        """What graph.embed does for a table of this kind; others: the arguments of embed_layer_norm from position_ids on."""
        out: Tensor = O.int8_embed_layer_norm(input_ids, self.weights(), *others)
        return out

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}"


def without_derivative(scheme: str, run: Callable[[], Any], *inputs: Tensor | None) -> Any:
    """run(), which reads `inputs`; where one of them requires grad, a result whose backward says that there is none."""
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs):
        return _NoDerivative.apply(scheme, run, *inputs)  # type: ignore[no-untyped-call]  # torch's own
    return run()


class _NoDerivative(torch.autograd.Function):
    @staticmethod
    def forward(scheme: str, run: Callable[[], Any], *inputs: Tensor | None) -> Any:
        return run()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.scheme = inputs[0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise RuntimeError(
            f"backward through an {ctx.scheme} layer: rounding has no derivative, so a quantized model cannot be trained. "
            f"To train, {RELOAD_HINT}"
        )


def kernels_can_run() -> bool:
    """Whether a call may read tensors by their addresses. torch.export, tracers and function transforms look on; for them it is the
    plain definition that runs."""
    return not (
        torch.compiler.is_compiling()
        or torch._C._is_tracing()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._len_torch_dispatch_stack()
    )
