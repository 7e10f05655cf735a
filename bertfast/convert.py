"""convert: a BERT folder of any format to a transformers folder, verified by running the model.

TF and Flax checkpoints, safetensors in their layouts, old PyTorch names and PyTorch's own files all become config.json and
model.safetensors. The other files of the folder (tokenizer, pooling, licence) are copied unchanged.
"""

import errno
import fcntl
import os
import shutil
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import IO, TYPE_CHECKING

import torch
from torch import Tensor

from bertfast import checkpoints
from bertfast.checkpoints import own_code
from bertfast.checkpoints.hub import local_folder
from bertfast.graph.family import FAMILIES
from bertfast.optimize import optimize
from bertfast.quantization import schemes

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

_WEIGHTS = (".h5", ".msgpack", ".safetensors", ".bin", ".ckpt", ".onnx", ".ot", ".pt", ".pth", ".index.json", ".gguf")
_CLAIM = ".converting"  # in a destination that is being written
_ALIASES = {"BertForCausalLM": "BertLMHeadModel"}


@dataclass(frozen=True)
class Converted:
    """The result of a conversion."""

    architecture: str  # transformers' class
    format: str  # of the source, see bertfast.checkpoints.folder.Format
    parameters: int  # number of values
    copied: tuple[str, ...]  # other files of the source
    unexpected: tuple[str, ...]  # weights of the source that the class does not have
    difference: float  # largest absolute difference of outputs between the model and the folder read back; 0
    cosine: float  # worst cosine between an output row of the source and of the folder; below 1 only if quantized


def convert(
    source: str | PathLike[str], destination: str | PathLike[str], architecture: str | None = None, quantization: str | None = None
) -> Converted:
    """Write the BERT in the folder `source`, or of that name on the Hub, to the folder `destination`, which must be new or empty.

    architecture: the transformers class of the model. Default: the config's, else inferred from the weights.
    quantization: "int8" writes quantized weights, which only bertfast's classes read (see bertfast.quantization).

    Raises ValueError where the source is damaged, is no BERT or lacks weights of that class, for an unknown architecture or
    quantization, and where the written folder does not give the same outputs; FileNotFoundError where the source has no weights;
    FileExistsError where the destination is not empty; OSError where a folder cannot be read or written. Nothing is left of a
    conversion that fails; what one that was killed leaves, the next one to that folder removes.
    """
    source, destination = local_folder(source), Path(destination)
    if quantization is not None:
        schemes.check_saved(quantization)
    checkpoint = checkpoints.detect(source)
    if checkpoint is None:
        raise FileNotFoundError(f"{source}: contains no model.safetensors, pytorch_model.bin, tf_model.h5 or flax_model.msgpack")
    with _claimed(destination):
        model, info, name = _load(source, checkpoint, architecture)
        parameters = sum(p.numel() for p in model.parameters())
        original = None
        if quantization is not None:
            original = _outputs(model)
            model = optimize(model, quantization=quantization, keep_padding=True)
        model.save_pretrained(destination)
        expected = _outputs(model)
        copied = _copy_other_files(source, destination)
        reloaded, report = type(model).from_pretrained(destination, output_loading_info=True, **_options(model))
        difference = max(float((a - b).abs().max()) for a, b in zip(expected, _outputs(reloaded), strict=True))
        if report["missing_keys"] or difference:
            raise ValueError(f"{destination}: its outputs differ from those of {source} by {difference:g}; this is a bug, please report it")
    cosine = 1.0 if original is None else min(_worst_cosine(a, b) for a, b in zip(original, expected, strict=True))
    return Converted(name, checkpoint.format, parameters, copied, tuple(sorted(info["unexpected_keys"])), difference, cosine)


@contextmanager
def _claimed(destination: Path) -> Iterator[None]:
    """Within: the folder, new or empty, belongs to this conversion alone. An exception removes it. Raises FileExistsError.

    A conversion holds a lock on a file in its folder. Where that file is there without a lock, its conversion was killed, and what it left
    is removed.
    """
    taken = FileExistsError(f"{destination}: not an empty folder; name a new one")
    if destination.exists() and not destination.is_dir():
        raise taken
    destination.mkdir(parents=True, exist_ok=True)
    claim = destination / _CLAIM
    names = os.listdir(destination)
    if names and _CLAIM not in names:
        raise taken
    with os.fdopen(os.open(claim, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666), "wb") as stream:
        if not _locked(stream, claim, may_be_left=_CLAIM in names):
            raise taken
        others = [path for path in destination.iterdir() if path != claim]
        if others and _CLAIM not in names:  # another conversion ended since
            claim.unlink()
            raise taken
        _remove(others)
        try:
            yield
        except BaseException:
            _remove(path for path in destination.iterdir() if path != claim)
            claim.unlink(missing_ok=True)  # last: a folder with it can be converted to again
            destination.rmdir()
            raise
        claim.unlink()


def _locked(stream: IO[bytes], claim: Path, *, may_be_left: bool) -> bool:
    """Locks a claim; False where another conversion has it, or has removed it meanwhile."""
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.EINVAL):
            raise
        return not may_be_left  # a file system without locks: it may be another's
    return claim.exists() and os.path.samestat(os.fstat(stream.fileno()), os.lstat(claim))


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _load(
    source: Path, checkpoint: checkpoints.Checkpoint, architecture: str | None
) -> tuple["PreTrainedModel", dict[str, Collection[str]], str]:
    import transformers

    family = FAMILIES[own_code.read_bert_config(source, FAMILIES)["model_type"]]
    config = family.config.from_pretrained(source)
    if (scheme := schemes.scheme_in_config(config, str(source))) is not None:
        raise ValueError(f"{source}: it is quantized to {scheme} already; convert the original model")
    named = architecture or next(iter(getattr(config, "architectures", None) or ()), None) or _infer_class(checkpoint, config)
    name = named.removeprefix("TF").removeprefix("Flax")
    name = _ALIASES.get(name, name)
    cls = getattr(transformers, name, None)
    if not name.startswith("Bert") or not isinstance(cls, type) or not hasattr(cls, "from_pretrained"):
        raise ValueError(f"architecture: {named!r} is not a BERT class of transformers; name one, such as BertModel")
    model, info = checkpoints.load_foreign(
        cls.from_pretrained, family, source, checkpoint, config=config, output_loading_info=True, dtype="auto"
    )
    missing = sorted(info["missing_keys"])
    if missing and name == "BertModel" and all(key.startswith("pooler.") for key in missing):
        # A bare model saved without pooler, such as a sentence encoder.
        model, info = checkpoints.load_foreign(
            cls.from_pretrained, family, source, checkpoint,
            config=config, output_loading_info=True, dtype="auto", add_pooling_layer=False,
        )  # fmt: skip
    elif missing:
        raise ValueError(
            f"{source}: no weights for {', '.join(missing[:4])}{' ...' if len(missing) > 4 else ''} of {name}, which would be random; "
            "name another architecture"
        )
    return model, info, name


def _infer_class(checkpoint: checkpoints.Checkpoint, config: "PreTrainedConfig") -> str:
    """The class whose heads these weights have. Raises ValueError for a classifier, which may be of tokens or of texts."""
    weights = checkpoints.read_weights(checkpoint)
    has = {name.split(".")[0] if not name.startswith("cls.") else name[: name.index(".", 4)] for name in weights}
    if "cls.predictions" in has:
        return "BertForPreTraining" if "cls.seq_relationship" in has else "BertLMHeadModel" if config.is_decoder else "BertForMaskedLM"
    if "qa_outputs" in has:
        return "BertForQuestionAnswering"
    if "classifier" in has:
        raise ValueError("architecture: these weights classify tokens or texts, and config.architectures is not set; name the class")
    return "BertModel"


def _options(model: "PreTrainedModel") -> dict[str, bool]:
    options = {"add_pooling_layer": False} if type(model).__name__ == "BertModel" and model.pooler is None else {}
    return options if schemes.scheme_of(model) is None else {**options, "keep_padding": True}


@torch.no_grad()
def _outputs(model: "PreTrainedModel") -> list[Tensor]:
    """Outputs for fixed token ids, one row padded. Converts the model to float32."""
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


def _copy_other_files(source: Path, destination: Path) -> tuple[str, ...]:
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
