"""Alias: pickles of version 0.1 name the layers of a KV cache here."""

from bertfast.cache.layers import GrowingLayer as Layer

__all__ = ["Layer"]
