"""Tasks from text: the public path of bertfast.text."""

from bertfast.text.embedder import Embedder

__all__ = ["Embedder"]
