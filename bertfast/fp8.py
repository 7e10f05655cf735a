"""Alias: pickles of version 0.1 name the fp8 layers here."""

from bertfast.quantization.fp8_layers import Fp8LayerNorm, Fp8Linear

__all__ = ["Fp8LayerNorm", "Fp8Linear"]
