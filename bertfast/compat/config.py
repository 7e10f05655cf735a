"""The config of a compat class, and the engine's copy of it.

transformers 5 reads old config.json files and keeps attributes that it does not use. A from_pretrained keyword overrides an attribute;
attributes that only 4.37 declared are listed here, so that they can be overridden too.
"""

import copy
from os import PathLike
from typing import TYPE_CHECKING

from bertfast.runtime.config_access import setting

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# Attributes of a 4.37 config, which transformers 5 may not declare.
_LEGACY = frozenset(
    (
        *("tf_legacy_loss", "position_embedding_type", "use_cache", "is_decoder", "add_cross_attention", "tie_word_embeddings"),
        *("output_attentions", "output_hidden_states", "return_dict", "classifier_dropout", "chunk_size_feed_forward"),
        *("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id", "max_length", "min_length", "do_sample"),
        *("early_stopping", "num_beams", "temperature", "top_k", "top_p", "repetition_penalty", "length_penalty"),
        *("no_repeat_ngram_size", "num_return_sequences", "forced_bos_token_id", "forced_eos_token_id", "suppress_tokens"),
        *("begin_suppress_tokens", "problem_type", "finetuning_task", "task_specific_params", "pruned_heads", "torchscript"),
    )
)


def read_config(
    given: "PreTrainedConfig | str | PathLike[str] | None", folder: str | PathLike[str], overrides: dict[str, object]
) -> "PreTrainedConfig":
    """The config of a from_pretrained call: `given` (a config or a path), else the folder's, with `overrides` applied.

    Pops config attributes from `overrides`; the rest is for from_pretrained.
    """
    from transformers import BertConfig, PreTrainedConfig

    config = copy.deepcopy(given) if isinstance(given, PreTrainedConfig) else BertConfig.from_pretrained(folder if given is None else given)
    for name in list(overrides):
        if name in _LEGACY or (hasattr(config, name) and name not in ("dtype", "torch_dtype", "name_or_path")):
            setattr(config, name, overrides.pop(name))
    return config


def engine_config(config: "PreTrainedConfig", activation: str, **changes: object) -> "PreTrainedConfig":
    """The torch class's config: the output flags, which the compat class handles itself, are off. changes: attributes to set."""
    copied = copy.deepcopy(config)
    for name in ("output_attentions", "output_hidden_states"):
        setattr(copied, name, False)
    copied._attn_implementation = "sdpa"
    copied.return_dict, copied.use_cache, copied.hidden_act = True, False, activation
    copied.position_embedding_type = "absolute"  # the TF and Flax classes ignored it
    if hasattr(copied, "dtype"):
        copied.dtype = None  # the folder's dtype must not decide how weights are loaded
    for name, value in changes.items():
        setattr(copied, name, value)
    return copied


def flag(argument: bool | None, config: "PreTrainedConfig", name: str, default: bool = False) -> bool:
    """An output flag: the call's argument, else the config's."""
    value = setting(config, name, default) if argument is None else argument
    return default if value is None else bool(value)
