"""Alias: pickles of version 0.1 name the int8 layers here."""

from bertfast.quantization.int8_layers import Int8Embedding, Int8Linear

__all__ = ["Int8Embedding", "Int8Linear"]
