"""The config of sentence-transformers' Transformer module: what it says of the text before the model."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from bertfast.checkpoints.json_files import read_json, shown

# sentence-transformers reads the first that is there.
FILES = [f"sentence_{kind}_config.json" for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")]
_AS_EXPECTED: dict[str, tuple[Any, ...]] = {  # values under which token vectors are the encoder's last hidden states
    "transformer_task": (None, "feature-extraction"),
    "module_output_name": (None, "token_embeddings"),
    "query_length": (None,),
    "document_length": (None,),
    "query_expansion": (None, False),
}
_ARGUMENTS = ("model_args", "model_kwargs", "config_args", "config_kwargs", "tokenizer_args", "processor_kwargs")
_HARMLESS = frozenset(  # they change no vector, beyond rounding
    ("trust_remote_code", "revision", "attn_implementation", "dtype", "torch_dtype", "device_map", "use_safetensors", "use_fast")
)
T = TypeVar("T")


@dataclass(frozen=True)
class TransformerConfig:
    max_seq_length: int | None = None
    lower_case: bool = False

    @classmethod
    def read(cls, folder: Path, otherwise: str) -> "TransformerConfig":
        """Of the model's folder. Raises ValueError, naming the file, where it is damaged or asks for what is not supported.

        otherwise: what to do then, in words.
        """
        file = next((folder / name for name in FILES if (folder / name).exists()), folder / FILES[0])
        config = read_json(file, dict) or {}
        for key, expected in _AS_EXPECTED.items():
            if config.get(key) not in expected:
                raise ValueError(f"{file}: {key} is {shown(config[key])}, expected {expected[-1]!r}. {otherwise}")
        modalities = typed(config, "modality_config", dict, file) or {}
        if modalities.get("text", {"method": "forward"}) not in _FORWARD:
            raise ValueError(f"{file}: modality_config runs the text through {shown(modalities['text'])}. {otherwise}")
        if processing := typed(config, "processing_kwargs", dict, file):
            raise ValueError(f"{file}: processing_kwargs is {shown(processing)}, expected none. {otherwise}")
        length = typed(config, "max_seq_length", int, file)
        for key in _ARGUMENTS:
            arguments = {name: value for name, value in (typed(config, key, dict, file) or {}).items() if name not in _HARMLESS}
            if key in ("tokenizer_args", "processor_kwargs") and "model_max_length" in arguments:
                length = typed(arguments, "model_max_length", int, file)
                del arguments["model_max_length"]
            if arguments:
                raise ValueError(f"{file}: {key} has {', '.join(arguments)}, which is not supported. {otherwise}")
        return cls(length, bool(typed(config, "do_lower_case", bool, file)))


_FORWARD = ({"method": "forward"}, {"method": "forward", "method_output_name": "last_hidden_state"})


def typed(config: dict[str, Any], key: str, kind: type[T], file: Path) -> T | None:
    """config[key], None where it is absent or null. Raises ValueError, naming the file, for another type than `kind`."""
    value = config.get(key)
    if value is not None and type(value) is not kind:
        raise ValueError(f"{file}: {key} is {shown(value)}, expected {'an' if kind is int else 'a'} {kind.__name__}")
    return value
