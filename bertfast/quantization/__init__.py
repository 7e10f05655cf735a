"""Quantized models: the layers (int8_layers, fp8_layers), what is replaced by them (int8, fp8), and loading (loading).

schemes.py is what the public classes, optimize, convert and the command line use. Imports graph, checkpoints and ops; engine and everything
above may import it.
"""
