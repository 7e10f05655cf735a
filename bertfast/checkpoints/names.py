"""Parameter names of TF and Flax to PyTorch's, and back.

The trees are equal; they differ in the separator, the last word, and the layout of a dense layer's matrix:

    PyTorch                                  TF                                             Flax
    encoder.layer.0.output.dense.weight      encoder/layer_._0/output/dense/kernel:0        encoder/layer/0/output/dense/kernel
    embeddings.LayerNorm.weight, .bias       embeddings/LayerNorm/gamma:0, beta:0           embeddings/LayerNorm/scale, bias
    embeddings.word_embeddings.weight        embeddings/word_embeddings/weight:0            embeddings/word_embeddings/embedding
    embeddings.position_embeddings.weight    embeddings/position_embeddings/embeddings:0    embeddings/position_embeddings/embedding

A kernel is [in, out], PyTorch's weight [out, in]; embedding tables and vectors are equal. TF writes `mlm___cls` where two layers
share PyTorch's level `cls`.
"""

import re

_TF_LAST = {"kernel": "weight", "gamma": "weight", "beta": "bias", "embeddings": "weight"}
_FLAX_LAST = {"kernel": "weight", "scale": "weight", "embedding": "weight"}


def from_tf(name: str) -> tuple[str, bool]:
    """PyTorch's name of a TF variable (without its Keras model name), and whether its matrix is transposed."""
    levels = re.sub(r"_\._(\d+)", r"/\1", name.removesuffix(":0")).split("/")
    levels = [level.rpartition("___")[2] for level in levels if level]
    last = levels[-1] if levels else ""
    return ".".join([*levels[:-1], _TF_LAST.get(last, last)]), last == "kernel"


def from_flax(path: str) -> tuple[str, bool]:
    """PyTorch's name of a Flax leaf, its levels joined by `.` or `/`, and whether its matrix is transposed."""
    levels = path.replace("/", ".").split(".")
    last = levels[-1]
    return ".".join([*levels[:-1], _FLAX_LAST.get(last, last)]), last == "kernel"


def modernized(name: str) -> str:
    """The current name of a parameter from an old PyTorch file, where LayerNorm had gamma and beta."""
    return re.sub(r"LayerNorm\.(gamma|beta)$", lambda match: "LayerNorm." + _TF_LAST[match[1]], name)


def to_flax(name: str) -> tuple[tuple[str, ...], bool]:
    """The levels of a PyTorch parameter in Flax's nested dict, and whether its matrix is transposed."""
    *levels, last = name.split(".")
    if last != "weight":
        return (*levels, last), False
    if levels[-1] == "LayerNorm":
        return (*levels, "scale"), False
    if levels[-1].endswith("_embeddings"):
        return (*levels, "embedding"), False
    return (*levels, "kernel"), True


def to_tf(name: str) -> tuple[str, bool]:
    """The TF variable of a PyTorch parameter, below the Keras model name, and whether its matrix is transposed."""
    *levels, last = name.split(".")
    if levels[-1] == "LayerNorm":
        last = {"weight": "gamma", "bias": "beta"}[last]
    elif last == "weight" and levels[-1].endswith("_embeddings"):
        last = "weight" if levels[-1] == "word_embeddings" else "embeddings"
    elif last == "weight":
        last = "kernel"
    return re.sub(r"\blayer/(\d+)/", r"layer_._\1/", "/".join([*levels, last])) + ":0", last == "kernel"
