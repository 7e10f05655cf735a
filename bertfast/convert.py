"""A model folder of any format into a plain transformers folder, checked by running it.

TF's and Flax's checkpoints, safetensors in their layouts, old names and PyTorch's own files all become config.json and
model.safetensors, with every other file of the folder (tokenizer, pooling, licence) beside them as it was.
"""

import shutil
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bertfast import checkpoints
from bertfast.optimize import optimize
from bertfast.quantization import schemes as quantizing

_WEIGHTS = (".h5", ".msgpack", ".safetensors", ".bin", ".ckpt", ".onnx", ".ot", ".pt", ".pth", ".index.json", ".gguf")
_OTHER_NAMES = {"BertForCausalLM": "BertLMHeadModel"}


@dataclass(frozen=True)
class Converted:
    """What a conversion did."""

    architecture: str  # transformers' class
    format: str  # of the source
    parameters: int
    copied: tuple[str, ...]  # files beside the weights
    unexpected: tuple[str, ...]  # weights of the source that the class does not have
    difference: float  # largest, between the outputs of the model that was written and of the one that was read again
    cosine: float  # the worst between rows of the source's outputs and of the folder's: below 1 where it is quantized


def convert(
    source: str | PathLike[str], destination: str | PathLike[str], architecture: str | None = None, quantization: str | None = None
) -> Converted:
    """Writes the BERT in the folder `source` to the folder `destination`, which must not hold anything yet.

    architecture: transformers' class for it; without it the one the config names, else what the weights look like.
    quantization: "int8" writes it quantized, for bertfast's classes alone to read (bertfast.quantization.schemes).

    Raises ValueError where the source is damaged, is no BERT, or lacks weights of that class (they would be random numbers), and where
    the folder that was written does not give the same outputs; OSError where a folder cannot be read or written.
    """
    source, destination = Path(source), Path(destination)
    if quantization is not None:
        quantizing.check_saved(quantization)
    checkpoint = checkpoints.detect(source)
    if checkpoint is None:
        raise FileNotFoundError(f"{source}: no model.safetensors, pytorch_model.bin, tf_model.h5 or flax_model.msgpack there")
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise FileExistsError(f"{destination}: not an empty folder; name one that does not exist yet")
    model, info, name = _load(source, checkpoint, architecture)
    parameters = sum(p.numel() for p in model.parameters())
    original = None
    if quantization is not None:
        original = _outputs(model)
        model = optimize(model, quantization=quantization, keep_padding=True)
    try:
        model.save_pretrained(destination)
        expected = _outputs(model)
        copied = _copy_others(source, destination)
        again, reread = type(model).from_pretrained(destination, output_loading_info=True, **_options(model))
        difference = max(float((a - b).abs().max()) for a, b in zip(expected, _outputs(again), strict=True))
        if reread["missing_keys"] or difference:
            raise ValueError(f"{destination}: written, but it gives other outputs than {source} (by {difference:g}); please report this")
    except BaseException:
        shutil.rmtree(destination, ignore_errors=True)  # empty before; half a model is worse than none
        raise
    cosine = 1.0 if original is None else min(_worst_cosine(a, b) for a, b in zip(original, expected, strict=True))
    return Converted(name, checkpoint.format, parameters, copied, tuple(sorted(info["unexpected_keys"])), difference, cosine)


def _load(source: Path, checkpoint: checkpoints.Checkpoint, architecture: str | None) -> tuple[Any, dict[str, Any], str]:
    import transformers

    config = transformers.AutoConfig.from_pretrained(source)
    if (scheme := quantizing.scheme_in_config(config, str(source))) is not None:
        raise ValueError(f"{source}: it is in {scheme} already; convert the model that it was made from")
    if config.model_type != "bert":
        raise ValueError(f"{source}: its config says model_type {config.model_type!r}, expected 'bert'")
    named = architecture or next(iter(getattr(config, "architectures", None) or ()), None) or _guess(checkpoint, config)
    name = named.removeprefix("TF").removeprefix("Flax")
    name = _OTHER_NAMES.get(name, name)
    cls = getattr(transformers, name, None)
    if not name.startswith("Bert") or not isinstance(cls, type) or not hasattr(cls, "from_pretrained"):
        raise ValueError(f"architecture: {named!r} is no BERT class of transformers; name one, such as BertModel")
    loaded: Any = checkpoints.load_foreign(
        cls.from_pretrained, transformers.BertConfig, source, checkpoint, config=config, output_loading_info=True, dtype="auto"
    )
    model, info = loaded
    missing = sorted(info["missing_keys"])
    if missing and name == "BertModel" and all(key.startswith("pooler.") for key in missing):
        # A bare model that was saved without its pooler, as sentence encoders are.
        model, info = checkpoints.load_foreign(
            cls.from_pretrained, transformers.BertConfig, source, checkpoint,
            config=config, output_loading_info=True, dtype="auto", add_pooling_layer=False,
        )  # fmt: skip
    elif missing:
        raise ValueError(
            f"{source}: no weights for {', '.join(missing[:4])}{' ...' if len(missing) > 4 else ''} of {name}, which would be random "
            "numbers; name another architecture"
        )
    return model, info, name


def _guess(checkpoint: checkpoints.Checkpoint, config: Any) -> str:
    """The class that these weights look like."""
    weights = checkpoints.read_weights(checkpoint)
    has = {name.split(".")[0] if not name.startswith("cls.") else name[: name.index(".", 4)] for name in weights}
    if "cls.predictions" in has:
        return "BertForPreTraining" if "cls.seq_relationship" in has else "BertLMHeadModel" if config.is_decoder else "BertForMaskedLM"
    if "qa_outputs" in has:
        return "BertForQuestionAnswering"
    if "classifier" in has:
        raise ValueError("architecture: a classifier of tokens or of texts, and the config does not say which; name the class")
    return "BertModel"


def _options(model: Any) -> dict[str, Any]:
    options = {"add_pooling_layer": False} if type(model).__name__ == "BertModel" and model.pooler is None else {}
    return options if quantizing.scheme_of(model) is None else {**options, "keep_padding": True}


@torch.no_grad()
def _outputs(model: Any) -> list[Tensor]:
    """Outputs for fixed token ids, a row of them padded. Leaves the model in float32."""
    config = model.config
    length = min(16, config.max_position_embeddings)
    shape = (2, 3, length) if type(model).__name__ == "BertForMultipleChoice" else (2, length)
    ids = torch.randint(config.vocab_size, shape, generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[-1, ..., length // 2 :] = 0
    outputs = model.float().eval()(input_ids=ids, attention_mask=mask)
    return [value for value in outputs.values() if isinstance(value, Tensor)]


def _worst_cosine(a: Tensor, b: Tensor) -> float:
    return float(torch.cosine_similarity(a.double().flatten(0, -2), b.double().flatten(0, -2), dim=-1).min())


def _copy_others(source: Path, destination: Path) -> tuple[str, ...]:
    copied = []
    for path in sorted(source.iterdir()):
        if path.name.startswith(".") or path.name.endswith(_WEIGHTS) or path.name == "config.json" or (destination / path.name).exists():
            continue
        if path.is_dir():
            shutil.copytree(path, destination / path.name)
        else:
            shutil.copy(path, destination)
        copied.append(path.name)
    return tuple(copied)
