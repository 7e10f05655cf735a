"""Device functions that several kernels share. Each is inlined where it is called; all arithmetic is in float32."""

import math

import triton
import triton.language as tl

LOG2_E = math.log2(math.e)  # exp(x) = exp2(x * LOG2_E)
MAX_HIDDEN = 8192  # longer LayerNorm rows spill registers; BERT-large needs 1024
MAX_HEAD_SIZE = 128  # wider heads spill registers

ACTIVATIONS = frozenset({"gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu", "tanh"})  # that `activate` knows

# float8 e4m3: a scale is max |v| / E4M3_MAX over the values that share it.
E4M3_MAX = 448.0
LEAST_MAX = 2.0**-60  # lower bound of max |v|: a row of zeros gets a scale with a finite inverse
GROUP_SIZE = 128  # columns that share a scale, where a row does not


@triton.jit
def gelu(v):
    """v/2 (1 + erf(v / sqrt 2)), the exact form (Hendrycks & Gimpel 2016)."""
    return 0.5 * v * (1.0 + tl.math.erf(v * 0.7071067811865476))


@triton.jit
def tanh(v):
    """(1 - e) / (1 + e) with e = exp(-2|v|): never overflows, but loses digits near 0, where a series takes over."""
    e = tl.exp(-2.0 * tl.abs(v))
    far = tl.where(v < 0.0, e - 1.0, 1.0 - e) / (1.0 + e)
    s = v * v
    near = v + v * s * (-1.0 / 3.0 + s * (2.0 / 15.0 + s * (-17.0 / 315.0 + s * (62.0 / 2835.0))))
    return tl.where(tl.abs(v) < 0.25, near, far)


@triton.jit
def activate(v, ACTIVATION: tl.constexpr):
    """One of ACTIVATIONS, elementwise. gelu_new and gelu_pytorch_tanh: v/2 (1 + tanh(sqrt(2/pi) (v + 0.044715 v^3)))."""
    if ACTIVATION == "gelu":
        v = gelu(v)
    elif ACTIVATION == "gelu_new" or ACTIVATION == "gelu_pytorch_tanh":
        v = v * tl.sigmoid(1.5957691216057308 * (v + 0.044715 * v * v * v))  # (1 + tanh u) / 2 is sigmoid(2u)
    elif ACTIVATION == "relu":
        v = tl.where(v < 0.0, 0.0, v)  # a NaN stays one
    elif ACTIVATION == "silu":
        v = v * tl.sigmoid(v)
    else:
        tl.static_assert(ACTIVATION == "tanh", "unknown activation")
        v = tanh(v)
    return v


@triton.jit
def layer_norm(
    x,  # [BLOCK] float32, zeros from H on
    inside,  # [BLOCK]: column < H
    weight,  # [BLOCK] float32
    bias,  # [BLOCK] float32
    eps,
    H: tl.constexpr,
):
    """(x - mean(x)) / sqrt(var(x) + eps) * weight + bias of one row. The variance is taken around the mean: E[x^2] - E[x]^2 would
    cancel where |mean| >> std."""
    mean = tl.sum(x, axis=0) / H
    centred = tl.where(inside, x - mean, 0.0)  # lanes past H hold -mean: keep them out of the sum
    variance = tl.sum(centred * centred, axis=0) / H
    return centred / tl.sqrt(variance + eps) * weight + bias
