"""Triton kernels, one op a file under the op's name: formula, shape letters, kernel, launcher.

A file imports torch, triton and math.py (shared device functions) alone, so that it can be read and lifted out by itself. Tiles are
arguments of the launchers: tuning.py chooses them by shape, bertfast.ops.cuda passes them.
"""
