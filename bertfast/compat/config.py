"""A config as 4.37 had it, and the engine's copy of it.

transformers 5 still reads the old config.json files and keeps attributes that it has no use for. A keyword given to
from_pretrained overrides an attribute; those that only 4.37 knew are listed here, so that they too end up in the config.
"""

import copy
from typing import Any

from bertfast.runtime.config_access import setting

# Attributes of a 4.37 config that transformers 5 no longer declares.
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


def read_config(given: Any, folder: Any, overrides: dict[str, Any]) -> Any:
    """The config of a from_pretrained call: `given` (an object, or a path), or the folder's, with overrides.

    Takes out of `overrides` what is an attribute of the config; the rest is left for from_pretrained.
    """
    from transformers import BertConfig, PreTrainedConfig

    config = copy.deepcopy(given) if isinstance(given, PreTrainedConfig) else BertConfig.from_pretrained(folder if given is None else given)
    for name in list(overrides):
        if name in _LEGACY or (hasattr(config, name) and name not in ("dtype", "torch_dtype", "name_or_path")):
            setattr(config, name, overrides.pop(name))
    return config


def engine_config(config: Any, activation: str, **changes: Any) -> Any:
    """The config that the torch class is built with: what the face reads from its own config must not act twice."""
    ours = copy.deepcopy(config)
    for name in ("output_attentions", "output_hidden_states"):
        setattr(ours, name, False)
    ours._attn_implementation = "sdpa"
    ours.return_dict, ours.use_cache, ours.hidden_act = True, False, activation
    ours.position_embedding_type = "absolute"  # the TF and Flax classes never looked at it
    if hasattr(ours, "dtype"):
        ours.dtype = None  # else the folder's would decide what the weights are loaded as
    for name, value in changes.items():
        setattr(ours, name, value)
    return ours


def flag(asked: bool | None, config: Any, name: str, default: bool = False) -> bool:
    """An output flag: the call's, else the config's."""
    value = setting(config, name, default) if asked is None else asked
    return default if value is None else bool(value)
