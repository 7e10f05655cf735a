"""The settings of generate: 4.37's defaults, the config's values, the call's keywords, and which of them are valid.

Source: FlaxGenerationMixin of transformers 4.37.
"""

import copy
from types import SimpleNamespace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedConfig

# Settings with an effect, and their defaults in 4.37.
DEFAULTS: dict[str, object] = {
    "max_length": 20, "max_new_tokens": None, "min_length": 0, "do_sample": False, "num_beams": 1, "early_stopping": False,
    "temperature": 1.0, "top_k": 50, "top_p": 1.0, "length_penalty": 1.0, "num_return_sequences": 1, "pad_token_id": None,
    "bos_token_id": None, "eos_token_id": None, "forced_bos_token_id": None, "forced_eos_token_id": None, "suppress_tokens": None,
    "begin_suppress_tokens": None, "forced_decoder_ids": None,
}  # fmt: skip

# Settings that 4.37's Flax generation accepted without effect.
WITHOUT_EFFECT = frozenset(
    (
        *("repetition_penalty", "no_repeat_ngram_size", "encoder_repetition_penalty", "encoder_no_repeat_ngram_size", "min_new_tokens"),
        *("bad_words_ids", "force_words_ids", "constraints", "num_beam_groups", "diversity_penalty", "penalty_alpha", "use_cache"),
        *("typical_p", "epsilon_cutoff", "eta_cutoff", "renormalize_logits", "remove_invalid_values", "exponential_decay_length_penalty"),
        *("max_time", "sequence_bias", "guidance_scale", "low_memory", "num_assistant_tokens", "num_assistant_tokens_schedule"),
        *("output_attentions", "output_hidden_states", "output_scores", "return_dict_in_generate", "decoder_start_token_id"),
        *("generation_kwargs", "transformers_version"),
    )
)


def read_settings(
    config: "PreTrainedConfig", generation_config: "GenerationConfig | None", given: "GenerationConfig | None", kwargs: dict[str, object]
) -> SimpleNamespace:
    """The settings of one call, by precedence: kwargs, `given` (the call's GenerationConfig), the folder's, the model config's, defaults.

    Raises ValueError for an unknown setting.
    """
    unknown = [name for name, value in kwargs.items() if name not in DEFAULTS and name not in WITHOUT_EFFECT and value is not None]
    if unknown:
        raise ValueError(f"generate: unknown settings {unknown}")
    source = given if given is not None else generation_config
    if source is None or (given is None and getattr(source, "_from_model_config", False)):
        source = config  # a generation config derived from the model config does not override it
    settings = SimpleNamespace(default_length="max_length" not in kwargs)
    for name, default in DEFAULTS.items():
        value = getattr(source, name, None)
        # transformers 5 leaves None where 4.37 had a default.
        setattr(settings, name, kwargs[name] if name in kwargs else copy.copy(default if value is None else value))
    for name in ("eos_token_id", "pad_token_id"):
        value = getattr(settings, name)
        if isinstance(value, (list, tuple)):
            if len(value) != 1:
                raise ValueError(f"{name}: got {value}, expected one token")
            setattr(settings, name, value[0])
    if settings.pad_token_id is None:
        settings.pad_token_id = settings.eos_token_id
    return settings


def check_settings(config: "PreTrainedConfig", settings: SimpleNamespace, S: int) -> None:
    """Raises ValueError or KeyError, naming the setting, where a prompt of S tokens cannot be continued with these settings."""
    M = settings.max_length
    if not config.is_decoder:
        raise KeyError("cache: config.is_decoder is False, but generate needs the KV cache of a decoder")
    if not config.add_cross_attention:
        raise ValueError(
            "config.add_cross_attention: generate needs the KV cache, which the Flax classes have only if it is True "
            "(encoder_hidden_states may be omitted)"
        )
    if config.max_position_embeddings < M:
        raise ValueError(f"max_length: got {M}, but the model has {config.max_position_embeddings} positions")
    if settings.min_length is not None and settings.min_length > M:
        raise ValueError(f"min_length: got {settings.min_length}, which exceeds max_length {M}")
    if S > M or (S == M and S > 1 and settings.num_beams == 1):
        raise ValueError(f"max_length: got {M}, but input_ids has {S} tokens already; raise it or pass max_new_tokens")
    if settings.num_beams > 1 and settings.num_return_sequences > settings.num_beams:
        raise ValueError(f"num_return_sequences: got {settings.num_return_sequences}, expected at most num_beams {settings.num_beams}")
    if settings.pad_token_id is None:
        raise ValueError("pad_token_id: not set, but sequences are padded with it; set it or eos_token_id")
