"""The public path of Embedder, which lies in bertfast.text."""

from bertfast.text.embedder import Embedder

__all__ = ["Embedder"]
