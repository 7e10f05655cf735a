"""What quantized layers of all schemes have in common."""

from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor, nn

from bertfast.ops import Fp8Weight, Int8Weight
from bertfast.ops.derivative import RELOAD_HINT


class QuantizedLayer(nn.Module):
    """A layer without a float weight. The graph and the ops read its `kernel_weight`; its own forward serves transformers' forward."""

    scheme: ClassVar[str]

    @property
    def kernel_weight(self) -> Int8Weight | Fp8Weight:
        raise NotImplementedError

    def dequantized(self) -> Tensor:
        """The values of the weight, [F, K] float32."""
        raise NotImplementedError

    def check_conversion(self, fn: Callable[[Tensor], Tensor]) -> None:
        """RuntimeError if fn, of .to, .float, .cpu or the like, would change the layer to a dtype or device that its scheme lacks."""
        raise NotImplementedError

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "QuantizedLayer":
        self.check_conversion(fn)
        converted: QuantizedLayer = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch's own
        return converted

    def __getattr__(self, name: str) -> Any:
        if name == "weight":  # an AttributeError, so that hasattr is answered
            raise AttributeError(
                f"this {type(self).__name__} has no float weight: it is {self.scheme}. dequantized() gives its values; "
                f"to change them, {RELOAD_HINT}"
            )
        return super().__getattr__(name)
