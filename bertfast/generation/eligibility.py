"""Which generate() calls our loops cover, and which lengths a model can generate."""

from typing import TYPE_CHECKING

from torch import Tensor
from transformers.cache_utils import DynamicCache
from transformers.generation import GenerationMixin, logits_process

from bertfast.batch.inputs import CheckedArguments
from bertfast.cache import objects as kv_cache
from bertfast.engine import eligibility
from bertfast.runtime.config_access import is_causal
from bertfast.runtime.model_types import Model

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel

# Processors that treat each row by itself, so that finished rows may leave their batch.
ROW_BY_ROW = frozenset(
    getattr(logits_process, f"{name}LogitsProcessor", None) or getattr(logits_process, f"{name}LogitsWarper", None)
    for name in (
        *("MinLength", "MinNewTokensLength", "RepetitionPenalty", "NoRepeatNGram", "NoBadWords", "SequenceBias", "SuppressTokens"),
        *("SuppressTokensAtBegin", "ForcedBOSToken", "ForcedEOSToken", "ExponentialDecayLengthPenalty"),
        *("Temperature", "TopK", "TopP", "TopH", "MinP", "Typical", "Epsilon", "Eta"),
    )
) | {logits_process.InfNanRemoveLogitsProcessor, logits_process.LogitNormalization}  # fmt: skip


def is_row_by_row(processor: logits_process.LogitsProcessor, B: int) -> bool:
    return type(processor) in ROW_BY_ROW and not any(isinstance(t, Tensor) and t.dim() and len(t) == B for t in vars(processor).values())


LOOP_ARGUMENTS = frozenset(("attention_mask", "position_ids", "token_type_ids", "use_cache", "logits_to_keep", *kv_cache.CACHE_NAMES))


# Hooks that our loop bypasses; a model that overrides one takes transformers' loop.
BYPASSED_HOOKS = ("_prefill", "prepare_inputs_for_generation", "_update_model_kwargs_for_generation")


def check_length(model: Model, generation_config: "GenerationConfig", arguments: CheckedArguments) -> None:
    """ValueError, before anything runs, where a sequence would need more positions than the model has or more than its cache holds.

    The last token is returned but never read, so it needs neither.
    """
    max_length, mask = generation_config.max_length, arguments.get("attention_mask")
    positions, cache = arguments.get("position_ids"), kv_cache.given_cache(arguments)
    limit = model.config.max_position_embeddings
    if max_length is None or positions is None:
        return
    new = max_length - positions.shape[-1]
    reached = int(positions.max()) + new
    if reached > limit:
        prompt = positions.shape[-1] if mask is None else int(mask.sum(dim=-1).max())
        raise ValueError(
            f"max_length={max_length}: a prompt of {prompt} tokens and {new} new ones need {reached} positions, expected at most "
            f"max_position_embeddings={limit}; ask for fewer tokens (max_new_tokens) or shorten the prompt"
        )
    capacity = cache.get_max_length() if cache is not None and hasattr(cache, "get_max_length") and len(cache) else -1
    if 0 <= capacity < max_length - 1:
        raise ValueError(
            f"max_length={max_length}: {max_length - 1} tokens have to be cached, but the cache holds {capacity}; "
            "make it longer (max_cache_len)"
        )


def why_reference_loop(
    model: Model,
    own: type["PreTrainedModel"],
    input_ids: Tensor,
    config: "GenerationConfig",
    synced_gpus: bool,
    arguments: CheckedArguments,
) -> str | None:
    """Why a generate() call takes transformers' loop; None where ours covers it. own: our class; config: the generation config."""
    reason = eligibility.why_reference(model, {})
    if reason is not None:
        return reason
    if type(model).forward is not own.forward or model._forward_hooks or model._forward_pre_hooks:
        return "the model has hooks, or a subclass's forward"
    if any(getattr(type(model), name) is not getattr(GenerationMixin, name) or name in vars(model) for name in BYPASSED_HOOKS):
        return f"the model overrides one of {', '.join(BYPASSED_HOOKS)}"
    if not is_causal(model.config):
        return "the model is not a causal decoder; set config.is_decoder=True"
    if synced_gpus or config.is_assistant or config.prefill_chunk_size is not None or config.compile_config is not None:
        return "synced_gpus, an assistant model, prefill_chunk_size or compile_config is set"
    unread = sorted(name for name, value in arguments.items() if value is not None and name not in LOOP_ARGUMENTS)
    if unread:
        return f"arguments that only a forward reads: {', '.join(unread)}"
    if not arguments.get("use_cache") or arguments.get("logits_to_keep") != 1:
        return "use_cache or logits_to_keep was changed"
    return why_cache_or_prompt(model, input_ids, config, arguments)


def why_cache_or_prompt(model: Model, input_ids: Tensor, config: "GenerationConfig", arguments: CheckedArguments) -> str | None:
    cache = kv_cache.given_cache(arguments)
    if type(cache) is not DynamicCache or cache.get_seq_length() or getattr(cache, "_is_user_defined", False) or cache.offloading:
        return "the caller passed a cache"
    mask = arguments.get("attention_mask")
    if input_ids.shape[1] == 0:
        return "the prompt is empty"
    if mask is not None and (mask.dim() != 2 or mask.shape != input_ids.shape or not mask[:, -1].all()):
        return "the prompts are padded on the right; pad them on the left"
    if config.return_dict_in_generate and (config.output_attentions or config.output_hidden_states or model.keep_padding):
        return "attentions or hidden states are returned, or keep_padding is set"
    return None
