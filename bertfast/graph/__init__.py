"""The model graph: encoder, heads and losses as calls of the ops, and the entry of each model family (family.py).

Imports ops, batch and runtime. Quantization, cache, engine, generation, compat and the public classes may import it.
"""
