"""generate, as FlaxGenerationMixin of 4.37 had it: greedy, sampling from a key, beams.

Source: transformers 4.37's Flax generation, whose habits differ from PyTorch's: sequences always have max_length columns; running
beams never compete with finished ones at the end; min_length forbids the end one token longer.

Shape letters: B batch, K beams, R = B * K rows, S prompt length, M max_length, V vocabulary.
"""

import copy
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from bertfast import ops
from bertfast.batch.attention import MaskedAttention
from bertfast.compat import arrays
from bertfast.compat.dense import padded_batch
from bertfast.compat.engine import Engine
from bertfast.compat.flax import cache, inputs, random
from bertfast.compat.flax.processors import apply, processors, top, warpers
from bertfast.compat.outputs import Output, output
from bertfast.graph.encoder import encode

# Settings that have an effect, and their defaults in 4.37.
DEFAULTS: dict[str, Any] = {
    "max_length": 20, "max_new_tokens": None, "min_length": 0, "do_sample": False, "num_beams": 1, "early_stopping": False,
    "temperature": 1.0, "top_k": 50, "top_p": 1.0, "length_penalty": 1.0, "num_return_sequences": 1, "pad_token_id": None,
    "bos_token_id": None, "eos_token_id": None, "forced_bos_token_id": None, "forced_eos_token_id": None, "suppress_tokens": None,
    "begin_suppress_tokens": None, "forced_decoder_ids": None,
}  # fmt: skip

# Settings that 4.37's Flax generation accepted and did nothing with.
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
NEVER = -1.0e7  # 4.37's score of what must not win


@output
class FlaxGreedySearchOutput(Output):
    """sequences [B, M] int32."""

    sequences: Any = None


@output
class FlaxSampleOutput(Output):
    """sequences [B, M] int32."""

    sequences: Any = None


@output
class FlaxBeamSearchOutput(Output):
    """sequences [B * num_return_sequences, M] int32, and their scores."""

    sequences: Any = None
    scores: Any = None


class UnsupportedError(NotImplementedError, ValueError):
    """4.37's NotImplementedError, which is also about an argument."""


class Generation:
    """generate and its helpers; mixed into FlaxBertForCausalLM."""

    config: Any
    generation_config: Any = None

    def can_generate(self) -> bool:
        return True

    def _load_generation_config(self, folder: Any) -> None:
        from transformers import GenerationConfig

        try:
            self.generation_config = GenerationConfig.from_pretrained(folder)
        except OSError:
            self.generation_config = None

    def prepare_inputs_for_generation(self, input_ids: Any, max_length: int, attention_mask: Any = None) -> dict[str, Any]:
        """The cache, the mask over all of max_length, and position_ids of a first step."""
        kind = arrays.kind_of((input_ids, attention_mask))
        ids = arrays.to_torch(input_ids, "input_ids")
        mask, positions = full_mask(ids, attention_mask, max_length)
        return {
            "past_key_values": self.init_cache(ids.shape[0], max_length),  # type: ignore[attr-defined]  # FlaxBertPreTrainedModel's
            "attention_mask": arrays.from_torch(mask.to(torch.int32), kind),
            "position_ids": arrays.from_torch(positions.to(torch.int32), kind),
        }

    def update_inputs_for_generation(self, model_outputs: Any, model_kwargs: dict[str, Any]) -> dict[str, Any]:
        """model_kwargs for the next step: the cache of the last one's output, positions one further."""
        model_kwargs["past_key_values"] = model_outputs["past_key_values"]
        model_kwargs["position_ids"] = model_kwargs["position_ids"][:, -1:] + 1
        return model_kwargs

    def generate(
        self,
        input_ids: Any,  # [B, S]
        generation_config: Any = None,  # transformers' GenerationConfig; else the folder's, else what the config says
        prng_key: Any = None,  # a seed or a key of jax.random, for do_sample; None: 0
        trace: bool = True,  # without effect: nothing is traced
        params: Mapping[str, Any] | None = None,
        logits_processor: Any = None,  # a list of f(input_ids, scores, length) -> scores, on NumPy arrays
        attention_mask: Any = None,  # [B, S]
        **kwargs: Any,  # settings, by GenerationConfig's names
    ) -> Any:
        """Sequences that continue input_ids: FlaxGreedySearchOutput, FlaxSampleOutput or FlaxBeamSearchOutput.

        `sequences` always has max_length columns, filled with pad_token_id. Raises ValueError for a setting that does not exist, or
        lengths that do not fit; NotImplementedError for beams with do_sample.
        """
        model: Any = self
        arrays.refuse_tracing(f"{type(self).__name__}.generate", (input_ids, attention_mask))
        settings = self._settings(generation_config, kwargs)
        kind = arrays.kind_of((input_ids, attention_mask))
        ids = arrays.to_torch(input_ids, "input_ids")
        if ids.dim() != 2 or ids.numel() == 0 or ids.is_floating_point():
            raise ValueError(f"input_ids: got {ids.dtype} of shape {tuple(ids.shape)}, expected integers [batch, length]")
        ids = ids.to(model._device, torch.int64)
        S = ids.shape[1]
        if settings.max_new_tokens is not None:
            settings.max_length = settings.max_new_tokens + S
        elif settings.default_length and settings.max_length == 20:
            warnings.warn("max_length: 20 by default; pass max_new_tokens or max_length to generate", UserWarning, stacklevel=2)
        self._check(settings, S)
        beams = int(settings.num_beams)
        if settings.do_sample and beams > 1:
            raise UnsupportedError("do_sample: sampling with num_beams above 1 does not exist in Flax's generation")
        rows = ids.repeat_interleave(beams, dim=0)
        mask = None if attention_mask is None else arrays.to_torch(attention_mask, "attention_mask").to(model._device)
        with torch.no_grad():
            engine = model._engine_on(params)
            session = Session(model, engine, rows, None if mask is None else mask.repeat_interleave(beams, dim=0), settings.max_length)
            process = processors(settings, S) + _custom(logits_processor, session)
            if beams > 1:
                found = beam_search(session, ids, settings, process)
                return FlaxBeamSearchOutput(*(arrays.from_torch(t, kind) for t in found))
            key = random.read_key(0 if prng_key is None else prng_key, "prng_key") if settings.do_sample else None
            sequences = arrays.from_torch(search(session, ids, settings, process, key), kind)
        return FlaxSampleOutput(sequences) if settings.do_sample else FlaxGreedySearchOutput(sequences)

    def _settings(self, given: Any, kwargs: dict[str, Any]) -> SimpleNamespace:
        unknown = [name for name, value in kwargs.items() if name not in DEFAULTS and name not in WITHOUT_EFFECT and value is not None]
        if unknown:
            raise ValueError(f"generate: {unknown} are not used by the model (a misspelt setting shows up here too)")
        source = given if given is not None else self.generation_config
        if source is None or (given is None and getattr(source, "_from_model_config", False)):
            source = self.config  # written from the model's config, so that the config has the last word
        settings = SimpleNamespace(default_length="max_length" not in kwargs)
        for name, default in DEFAULTS.items():
            value = getattr(source, name, None)
            # transformers 5 leaves unset what 4.37 gave a default; what is None by default stays None.
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

    def _check(self, settings: SimpleNamespace, S: int) -> None:
        config, M = self.config, settings.max_length
        if not config.is_decoder:
            raise KeyError("cache: config.is_decoder is False, and generation needs the KV cache of a decoder")
        if not config.add_cross_attention:
            raise ValueError(
                "config.add_cross_attention: generation needs the KV cache, which these classes keep only where it is True "
                "(encoder_hidden_states may be left out)"
            )
        if config.max_position_embeddings < M:
            raise ValueError(f"max_length: got {M}, and the model has {config.max_position_embeddings} positions")
        if settings.min_length is not None and settings.min_length > M:
            raise ValueError(f"min_length: got {settings.min_length}, which is larger than max_length {M}")
        if S > M or (S == M and S > 1 and settings.num_beams == 1):
            raise ValueError(f"max_length: got {M}, and input_ids has {S} tokens already; raise it, or pass max_new_tokens")
        if settings.num_beams > 1 and settings.num_return_sequences > settings.num_beams:
            raise ValueError(f"num_return_sequences: got {settings.num_return_sequences}, expected at most num_beams {settings.num_beams}")
        if settings.pad_token_id is None:
            raise ValueError("pad_token_id: sequences are filled with it; set it, or eos_token_id")


def full_mask(ids: Tensor, mask: Any, length: int) -> tuple[Tensor, Tensor]:
    """A mask of 0 and 1 over `length` columns, ones behind the prompt, and the prompt's positions: a left pad's is -1."""
    full = torch.ones(ids.shape[0], length, dtype=torch.int64, device=ids.device)
    if mask is None:
        return full, torch.arange(ids.shape[1], device=ids.device).expand(ids.shape)
    read = inputs.as_int32(mask, "attention_mask", ids.device)
    if read.dim() != 2 or read.shape[0] != ids.shape[0] or read.shape[1] > length:
        raise ValueError(f"attention_mask: got shape {tuple(read.shape)}, expected {tuple(ids.shape)}")
    full[:, : read.shape[1]] = read
    return full, read.cumsum(dim=1) - 1


class Session:
    """The model on its cache, a step at a time."""

    def __init__(self, model: Any, engine: Engine, prompt: Tensor, mask: Tensor | None, length: int) -> None:
        self.engine, self.config = engine, model.config
        self.buffers = model._new_buffers(prompt.shape[0], length, engine.device)
        full, self.positions = full_mask(prompt, mask, length)
        self.mask = full.ne(0)
        self.prompt = prompt
        self.index = 0

    def step(self, tokens: Tensor) -> Tensor:  # [R, s] -> float32 [R, V], the scores behind the last
        read = inputs.Inputs(
            (tokens.shape[0], tokens.shape[1]), tokens, None, self.positions, self.mask,
            inputs.within(tokens, self.config.vocab_size) and inputs.within(self.positions, self.config.max_position_embeddings),
        )  # fmt: skip
        written, visible = cache.cached_step(self.buffers, self.index, read, self.config, False)
        embeddings = self.engine.bert.embeddings
        ids, words, positions, types = inputs.looked_up(read, embeddings, self.config)
        attention = MaskedAttention(tokens.shape[0], inputs.additive(visible), memory=written)
        rows = encode(self.engine.bert, padded_batch(read.shape, embeddings, ids, words, types, positions, attention).rows)
        last = rows.view(*read.shape, -1)[:, -1].contiguous()
        self.buffers = written.buffers
        self.index += tokens.shape[1]
        self.positions = self.positions[:, -1:] + 1
        return self.engine.module.family.lm_logits(self.engine.module, last, ops).float()

    def reorder(self, rows: Tensor) -> None:
        self.buffers = self.buffers.reordered(rows)


def search(session: Session, ids: Tensor, settings: Any, process: Any, key: Any) -> Tensor:  # -> [B, M] int32
    """Greedy, or with a key a draw a step; a row that has met eos goes on with pads."""
    (B, S), M = ids.shape, settings.max_length
    sequences = torch.full((B, M), settings.pad_token_id, dtype=torch.int64, device=ids.device)
    sequences[:, :S] = ids
    finished = torch.zeros(B, dtype=torch.bool, device=ids.device)
    warp = warpers(settings) if key is not None else []
    tokens = ids
    for length in range(S, M):
        if bool(finished.all()):
            break
        scores = apply(warp, length, apply(process, length, session.step(tokens)))
        if key is not None:
            now, key = random.split(key)
            scores = scores + torch.from_numpy(random.gumbel(now, tuple(scores.shape))).to(scores.device)
        chosen = scores.argmax(dim=1).masked_fill(finished, settings.pad_token_id)
        if settings.eos_token_id is not None:
            finished = finished | chosen.eq(settings.eos_token_id)
        sequences[:, length] = chosen
        tokens = chosen[:, None]
    return sequences.to(torch.int32)


@dataclass(slots=True)
class Beams:
    """K running and K finished hypotheses of each of B prompts, the best first."""

    running: Tensor  # [B, K, M]
    running_scores: Tensor  # [B, K] sums of log probabilities
    done: Tensor  # [B, K, M]
    done_scores: Tensor  # [B, K] sums over a power of the length
    is_done: Tensor  # [B, K] bool


def beam_search(session: Session, ids: Tensor, settings: Any, process: Any) -> tuple[Tensor, Tensor]:
    """Sequences [B * num_return_sequences, M] int32, and their scores."""
    (B, S), M, K = ids.shape, settings.max_length, int(settings.num_beams)
    empty = torch.full((B, K, M), settings.pad_token_id, dtype=torch.int64, device=ids.device)
    running = empty.clone()
    running[:, :, :S] = ids[:, None]
    scores = torch.full((B, K), NEVER, device=ids.device)
    state = Beams(running, scores.clone(), empty, scores, torch.zeros(B, K, dtype=torch.bool, device=ids.device))
    state.running_scores[:, 0] = 0.0  # all beams start alike: only the first may grow
    length, tokens = S, session.prompt
    while length == S or (length < M and may_improve(state, length - S, M - S, settings)):
        origin = grow(state, session.step(tokens), length, S, settings, process)
        session.reorder((origin + K * torch.arange(B, device=ids.device)[:, None]).reshape(-1))
        tokens = state.running[:, :, min(length, M - 1)].reshape(B * K, 1)
        length += 1
    any_done = state.is_done.any(dim=1)
    sequences = torch.where(any_done[:, None, None], state.done, state.running)
    scores = torch.where(any_done[:, None], state.done_scores, state.running_scores)
    n = int(settings.num_return_sequences)
    return sequences[:, :n].reshape(B * n, M).to(torch.int32), scores[:, :n].reshape(B * n)


def may_improve(state: Beams, generated: int, longest: int, settings: Any) -> bool:
    """Whether some prompt's best running hypothesis could still beat its worst finished one."""
    if settings.early_stopping is True and bool(state.is_done.all()):
        return False
    penalty = settings.length_penalty
    reach = longest if settings.early_stopping == "never" and penalty > 0 else generated
    best = state.running_scores[:, :1] / float(reach) ** penalty
    worst = torch.where(state.is_done, state.done_scores.amin(dim=1, keepdim=True), NEVER)
    return bool((best > worst).any())


def grow(state: Beams, scores: Tensor, length: int, S: int, settings: Any, process: Any) -> Tensor:
    """Appends a token to every running hypothesis; returns which one each grew out of, [B, K]."""
    B, K, M = state.running.shape
    log_probs = apply(process, length, torch.log_softmax(scores, dim=1))
    V = log_probs.shape[1]
    total = log_probs.view(B, K, V) + state.running_scores[:, :, None]
    # 2 K candidates: even if K of them end here, K run on.
    values, picked = top(total.reshape(B, K * V), 2 * K)
    parents, tokens = picked // V, picked % V
    grown = take(state.running, parents)
    grown[:, :, min(length, M - 1)] = tokens
    ends = torch.zeros_like(tokens, dtype=torch.bool) if settings.eos_token_id is None else tokens.eq(settings.eos_token_id)

    alive = values + ends * NEVER
    state.running_scores, order = top(alive, K)
    state.running = take(grown, order)

    full = state.is_done.all(dim=1, keepdim=True) if settings.early_stopping is True else torch.zeros_like(ends[:, :1])
    final = values / float(length + 1 - S) ** settings.length_penalty + (~ends | full) * NEVER
    merged = torch.cat([state.done_scores, final], dim=1)
    state.done_scores, best = top(merged, K)
    state.done = take(torch.cat([state.done, grown], dim=1), best)
    state.is_done = torch.cat([state.is_done, ends], dim=1).gather(1, best)
    return parents.gather(1, order)


def take(sequences: Tensor, rows: Tensor) -> Tensor:  # [B, n, M], [B, k] -> [B, k, M]
    return sequences.gather(1, rows[:, :, None].expand(-1, -1, sequences.shape[2]))


def _custom(given: Any, session: Session) -> list[Any]:
    """The caller's own processors, on NumPy arrays."""
    found = given if isinstance(given, (list, tuple)) else [] if given is None else [given]

    def adapted(f: Any) -> Any:
        def process(length: int, scores: Tensor) -> Tensor:
            out = f(arrays.to_numpy(session.prompt), arrays.to_numpy(scores), length)
            return arrays.to_torch(out, "logits_processor").to(scores.device, torch.float32)

        return process

    return [adapted(f) for f in found]
