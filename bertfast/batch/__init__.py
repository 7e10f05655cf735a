"""From a caller's padded tensors to the rows that the graph computes on, and back.

inputs.py reads and checks, padding.py decides what becomes of padding, layout.py lays the rows out. Used by graph, cache, engine,
generation and compat; imports ops and runtime.
"""
