"""Triton kernels, one op a file: formula, shape letters, kernel, launcher.

Each file imports torch and triton alone, so that it can be lifted out and read by itself. What depends on the shape or
the chip is handed to its launcher; bertfast.kernels.tuning holds those numbers, bertfast.ops.cuda joins the two.
"""
