"""bertfast.quantization.schemes"""
