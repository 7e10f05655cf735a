"""FlaxBertModel, FlaxBertForPreTraining and FlaxBertForCausalLM.

Source of the behaviour: the classes of these names in transformers 4.37.
"""

from collections.abc import Mapping
from os import PathLike
from typing import Any, ClassVar

import torch
from torch import Tensor

from bertfast import checkpoints
from bertfast.batch.attention import MaskedAttention
from bertfast.compat import arrays
from bertfast.compat.config import engine_config, flag, read_config
from bertfast.compat.dense import Dropout, padded_batch
from bertfast.compat.engine import Engine, EngineOutput, seeded
from bertfast.compat.flax import cache, inputs, random
from bertfast.compat.flax.generation import Generation
from bertfast.compat.flax.weights import Layout, Path, Tree, Weights, cannot_change, cast, snapshot
from bertfast.compat.outputs import Output, output
from bertfast.runtime.config_access import setting

ACTIVATIONS = {"gelu": "gelu", "relu": "relu", "silu": "silu", "swish": "swish", "gelu_new": "gelu_new", "quick_gelu": "quick_gelu"}
_KEPT = 2  # sets of other weights that stay converted


@output
class FlaxBaseModelOutputWithPoolingAndCrossAttentions(Output):
    """last_hidden_state [B, S, H], pooler_output [B, H], hidden_states, past_key_values, attentions, cross_attentions."""

    last_hidden_state: Any = None
    pooler_output: Any = None
    hidden_states: Any = None
    past_key_values: Any = None
    attentions: Any = None
    cross_attentions: Any = None


# What 4.37 called the output of a model without cross-attention in its documentation; its code returned the one above.
FlaxBaseModelOutputWithPooling = FlaxBaseModelOutputWithPoolingAndCrossAttentions


@output
class FlaxBertForPreTrainingOutput(Output):
    """prediction_logits [B, S, V], seq_relationship_logits [B, 2], hidden_states, attentions."""

    prediction_logits: Any = None
    seq_relationship_logits: Any = None
    hidden_states: Any = None
    attentions: Any = None


@output
class FlaxCausalLMOutputWithCrossAttentions(Output):
    """logits [B, S, V], past_key_values, hidden_states, attentions, cross_attentions."""

    logits: Any = None
    past_key_values: Any = None
    hidden_states: Any = None
    attentions: Any = None
    cross_attentions: Any = None


class FlaxBertPreTrainedModel:
    """What the three classes have in common.

    keep_padding: compute padded positions as 4.37 did in every call. Without it a call whose mask leaves tokens out may return zeros at
    their positions, as bertfast's torch classes do.
    """

    base_model_prefix = "bert"
    torch_class: ClassVar[str]
    output_class: ClassVar[type[Output]]
    cache_prefix: ClassVar[tuple[str, ...]] = ("bert",)
    keep_padding: bool = False

    def __init__(
        self,
        config: Any,
        input_shape: tuple[int, ...] = (1, 1),
        seed: int = 0,
        dtype: Any = torch.float32,
        _do_init: bool = True,
        gradient_checkpointing: bool = False,
        **kwargs: Any,
    ) -> None:
        """A model with random weights of this seed (its own draw, not JAX's); _do_init=False: without weights, for calls with params=."""
        self._set_up(config, input_shape, seed, dtype, _do_init)
        if _do_init:
            self._own(self._random(seed))

    def _set_up(self, config: Any, input_shape: tuple[int, ...], seed: int, dtype: Any, initialised: bool) -> None:
        if config.hidden_act not in ACTIVATIONS:
            raise KeyError(f"config.hidden_act: {config.hidden_act!r} is none of Flax's activations: {', '.join(sorted(ACTIVATIONS))}")
        if config.hidden_size % config.num_attention_heads:
            raise ValueError(
                f"config.hidden_size: {config.hidden_size} has to be a multiple of config.num_attention_heads: {config.num_attention_heads}"
            )
        self.config, self.input_shape, self.seed, self.dtype = config, input_shape, seed, dtype
        self.name_or_path = getattr(config, "name_or_path", "")
        self.key = random.read_key(seed, "seed")  # for init_weights(model.key, model.input_shape)
        self._dtype = arrays.torch_dtype(dtype)
        self._initialised = initialised
        self._layout = Layout(self._torch_module)
        self._weights: Weights | None = None
        self._tree: Tree | None = None  # the caller's view of the weights, once he has asked for it
        self._others: list[Weights] = []  # on params= whose leaves cannot change, the newest last
        self._device = torch.device("cpu")

    @classmethod
    def _torch_class(cls) -> Any:
        import bertfast

        return getattr(bertfast, cls.torch_class)

    def _engine_config(self) -> Any:
        return _engine_config(self.config)

    def _torch_module(self) -> Any:
        return self._torch_class()(self._engine_config())

    def _random(self, seed: int) -> Weights:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed & (2**63 - 1))
            return Weights.of_module(self._layout, self._torch_module().to(self._device), self._dtype)

    def _own(self, weights: Weights) -> None:
        self._weights, self._tree = weights, None

    # Loading and saving

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | PathLike[str],
        dtype: Any = torch.float32,
        *model_args: Any,
        config: Any = None,
        from_pt: bool = False,
        _do_init: bool = True,
        input_shape: tuple[int, ...] = (1, 1),
        seed: int = 0,
        gradient_checkpointing: bool = False,
        output_loading_info: bool = False,
        keep_padding: bool = False,
        **kwargs: Any,
    ) -> Any:
        """The model in a local folder: flax_model.msgpack, safetensors in any layout, pytorch_model.bin or tf_model.h5.

        dtype: what is computed in, and the dtype of the outputs; the weights keep theirs. _do_init=False: returns (model, params), the
        model without weights of its own. Of several files Flax's own comes first; from_pt=True prefers PyTorch's. Other keywords
        override attributes of the config. Raises OSError where the folder has no weights, ValueError for a damaged file.
        """
        folder = checkpoints.folder_of(pretrained_model_name_or_path, kwargs)
        checkpoint = checkpoints.detect(folder, "pt" if from_pt else "flax")
        if checkpoint is None:
            raise OSError(f"{folder}: no flax_model.msgpack, model.safetensors, pytorch_model.bin or tf_model.h5 there")
        config = read_config(config, folder, kwargs)
        model: Any = cls.__new__(cls)
        model._set_up(config, input_shape, seed, dtype, _do_init)
        module, info = checkpoints.load_foreign(
            cls._torch_class().from_pretrained, type(config), folder, checkpoint,
            config=_engine_config(config), adjust=_ignore_tied_decoder, dtype="auto", output_loading_info=True, **kwargs,
        )  # fmt: skip
        config.name_or_path = model.name_or_path = str(folder)
        model.keep_padding = keep_padding
        model._load_generation_config(folder)
        weights = Weights.of_module(model._layout, module, model._dtype)
        if _do_init:
            model._own(weights)
            return (model, info) if output_loading_info else model
        model._others.append(weights)
        tree = model._layout.tree(weights.leaves)
        return (model, tree, info) if output_loading_info else (model, tree)

    def save_pretrained(self, save_directory: str | PathLike[str], params: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        """Writes config.json and model.safetensors, which this class, 4.37's and every PyTorch class read."""
        leaves = self._layout.leaves(params if params is not None else self.params)
        tensors = [self._layout.tensor(entry, leaf) for entry, leaf in zip(self._layout.entries, leaves, strict=True)]
        self._layout.module(tensors).save_pretrained(save_directory, **kwargs)  # type: ignore[operator]  # transformers'
        self.config.architectures = [self.torch_class]
        self.config.save_pretrained(save_directory)

    def _load_generation_config(self, folder: Any) -> None:
        return None

    def to(self, device: Any) -> Any:
        """Moves the model's own weights to a torch device; outputs still come back as the arrays that went in."""
        self._device = torch.device(device)
        self._others.clear()
        if self._weights is not None:
            weights = self._weights
            self._own(Weights(self._layout, weights.leaves, Engine(weights.engine.module.to(self._device))))
        return self

    # Weights

    @property
    def params(self) -> Tree:
        """The weights as a nested dict of arrays: read-only NumPy ones, or what was set. Replace a leaf, or the whole tree."""
        if self._weights is None:
            raise ValueError(
                "`params` cannot be accessed from model when the model is created with `_do_init=False`: call init_weights, keep what it "
                "returns outside the model, and pass it to the call as params="
            )
        if self._tree is None:
            self._tree = self._layout.tree(self._weights.leaves)
        return self._tree

    @params.setter
    def params(self, tree: Mapping[str, Any]) -> None:
        if not self._initialised:
            raise ValueError(
                "`params` cannot be set from model when the model is created with `_do_init=False`: keep them outside the model, and pass "
                "them to the call as params="
            )
        leaves = snapshot(self._layout, tree)
        self._own(Weights.of_leaves(self._layout, leaves, self._dtype, self._device))

    @property
    def required_params(self) -> set[Path]:
        return {entry.path for entry in self._layout.entries}

    def init_weights(self, rng: Any, input_shape: tuple[int, ...] = (1, 1), params: Mapping[str, Any] | None = None) -> Tree:
        """A tree of random weights from a seed or key; with params: that tree, what it lacks filled in."""
        fresh = self._layout.tree(self._random(random.seed_of(random.read_key(rng, "rng"))).leaves)
        return fresh if params is None else _filled(params, fresh)

    def to_bf16(self, params: Mapping[str, Any], mask: Mapping[str, Any] | None = None) -> Tree:
        """The tree with its floating leaves in bfloat16; mask: a tree of bools, True for the leaves to cast."""
        return cast(params, torch.bfloat16, mask)

    def to_fp16(self, params: Mapping[str, Any], mask: Mapping[str, Any] | None = None) -> Tree:
        """The same in float16."""
        return cast(params, torch.float16, mask)

    def to_fp32(self, params: Mapping[str, Any], mask: Mapping[str, Any] | None = None) -> Tree:
        """The same in float32."""
        return cast(params, torch.float32, mask)

    def enable_gradient_checkpointing(self) -> None:
        """Accepted: it trades time for memory in a backward, and this class has none."""

    def _engine_on(self, tree: Mapping[str, Any] | None) -> Engine:
        """The engine on the given tree, or on the model's own."""
        if not tree:
            tree = self.params if self._tree is not None or self._weights is None else None
        if tree is None:
            assert self._weights is not None, "params raises otherwise"
            return self._weights.engine
        leaves = self._layout.leaves(tree)
        for weights in (*([self._weights] if self._weights is not None else []), *self._others):
            if weights.same(leaves):
                return weights.engine
        weights = Weights.of_leaves(self._layout, leaves, self._dtype, self._device)
        if all(map(cannot_change, leaves)):
            self._others[:] = [*self._others, weights][-_KEPT:]
        return weights.engine

    # Calling

    def __call__(
        self,
        input_ids: Any,  # [B, S]
        attention_mask: Any = None,  # [B, S] (or 1 in place of either, or [S]): seen where int(mask) > 0, in a decoder where it is not 0
        token_type_ids: Any = None,  # [B, S]
        position_ids: Any = None,  # [B, S]
        head_mask: Any = None,  # [L, N], cast to int, multiplies the attention probabilities
        encoder_hidden_states: Any = None,  # [B, Se, H]; ignored without config.add_cross_attention
        encoder_attention_mask: Any = None,  # [B, Se], > 0 attends
        params: Mapping[str, Any] | None = None,  # the weights of this call
        dropout_rng: Any = None,  # a seed or key
        train: bool = False,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        past_key_values: Any = None,  # of init_cache, or of the output of the step before
    ) -> Any:
        """Raises ValueError or TypeError for an argument that 4.37 refused; the message names it."""
        values = {
            "input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids, "position_ids": position_ids,
            "head_mask": head_mask, "encoder_hidden_states": encoder_hidden_states, "encoder_attention_mask": encoder_attention_mask,
        }  # fmt: skip
        arrays.refuse_tracing(type(self).__name__, values.values())
        attentions = flag(output_attentions, self.config, "output_attentions")
        hidden = flag(output_hidden_states, self.config, "output_hidden_states")
        kind = arrays.kind_of(values.values())
        with torch.no_grad():
            engine = self._engine_on(params)
            dropout = self._dropout(train, dropout_rng, engine.device)
            stepped = past_key_values if setting(self.config, "add_cross_attention") else None
            result, next_cache = self._result(engine, values, attentions, hidden, dropout, stepped, kind)
        return self._output(result, next_cache, kind, flag(return_dict, self.config, "return_dict", True))

    def _result(
        self, engine: Engine, values: dict[str, Any], attentions: bool, hidden: bool, dropout: Dropout | None, past: Any, kind: arrays.Kind
    ) -> tuple[EngineOutput, Any]:
        """The outputs, and the cache tree after the call (None without one)."""
        config, device = self.config, engine.device
        read = inputs.read_inputs(values, config, device)
        head_masks = inputs.read_head_mask(values["head_mask"], config, device, engine.dtype)
        encoder = None
        if values["encoder_hidden_states"] is not None and setting(config, "add_cross_attention"):
            encoder = inputs.read_encoder(
                values["encoder_hidden_states"], values["encoder_attention_mask"], config, read.shape[0], device, engine.dtype
            )
        if past is not None and setting(config, "is_decoder"):
            buffers, index = cache.read_tree(past, config.num_hidden_layers, self.cache_prefix, engine.dtype, device)
            step, visible = cache.cached_step(buffers, index, read, config, attentions)
            batch = self._batch(engine, read, visible, head_masks, attentions, dropout, encoder, step)
            result = engine.encoded(batch, hidden, dropout)
            return result, cache.tree(step.buffers, index + read.shape[1], kind, self.cache_prefix)
        mask = None if read.attention_mask is None else inputs.read_mask(read.attention_mask, "attention_mask", read.shape)
        if dropout is None and head_masks is None and not attentions and read.in_range:
            plain = self._plain(engine, read, mask, encoder, hidden)
            if plain is not None:
                return plain, past
        seen: Tensor | None = None if mask is None else mask[:, None, None, :]
        if config.is_decoder:
            S = read.shape[1]
            lower = torch.ones(S, S, dtype=torch.bool, device=device).tril()
            seen = lower if seen is None else seen & lower
        batch = self._batch(engine, read, seen, head_masks, attentions, dropout, encoder, None)
        return engine.encoded(batch, hidden, dropout), past

    def _plain(
        self, engine: Engine, read: inputs.Inputs, mask: Tensor | None, encoder: tuple[Tensor, Tensor | None] | None, hidden: bool
    ) -> EngineOutput | None:
        """The call on the torch class, where that means the same by it; else None."""
        arguments: dict[str, Any] = {"input_ids": read.input_ids}
        if read.token_type_ids is not None:
            arguments["token_type_ids"] = read.token_type_ids
        if read.position_ids is not None:
            arguments["position_ids"] = read.position_ids
        padded = mask is not None and not read.whole and not (mask.shape == read.shape and bool(mask.all()))
        if padded:
            assert mask is not None
            if mask.shape != read.shape or not bool(mask.any(dim=1).all()):
                return None
            # Causal, a left pad sees nothing, and what that gives is Flax's own: here it would be looked at.
            if self.config.is_decoder and (self.keep_padding or (engine.head.pooled and not bool(mask[:, 0].all()))):
                return None
            arguments["attention_mask"] = mask
        if encoder is not None:
            states, real = encoder
            if not self.config.is_decoder or (real is not None and (real.shape != states.shape[:2] or not bool(real.any(dim=1).all()))):
                return None
            arguments["encoder_hidden_states"] = states
            if real is not None:
                arguments["encoder_attention_mask"] = real
        return engine.plain(arguments, padded and self.keep_padding, hidden)

    def _batch(
        self,
        engine: Engine,
        read: inputs.Inputs,
        visible: Tensor | None,  # bool, broadcasts to [B, 1, S, Sk]
        head_masks: list[Tensor] | None,
        attentions: bool,
        dropout: Dropout | None,
        encoder: tuple[Tensor, Tensor | None] | None,
        memory: cache.Step | None,
    ) -> Any:
        B = read.shape[0]
        ids, words, positions, types = inputs.looked_up(read, engine.bert.embeddings, self.config)
        drop = None if dropout is None else dropout.of_probabilities(shared=True)
        attention = MaskedAttention(B, inputs.additive(visible), head_masks, attentions, drop, memory)
        if encoder is None:
            return padded_batch(read.shape, engine.bert.embeddings, ids, words, types, positions, attention)
        states, real = encoder
        across = MaskedAttention(B, inputs.additive(None if real is None else real[:, None, None, :]), head_masks, attentions, drop)
        rows = states.reshape(-1, states.shape[2])
        return padded_batch(read.shape, engine.bert.embeddings, ids, words, types, positions, attention, rows, across)

    def _dropout(self, train: bool, rng: Any, device: torch.device) -> Dropout | None:
        if not train:
            return None
        rates = float(self.config.hidden_dropout_prob), float(self.config.attention_probs_dropout_prob)
        if not any(rates):
            return None
        if rng is None:
            raise ValueError("dropout_rng: train=True runs dropout, which needs a seed or a key; pass dropout_rng=")
        return Dropout(*rates, seeded(random.seed_of(random.read_key(rng, "dropout_rng")), device))

    def _output(self, result: EngineOutput, next_cache: Any, kind: arrays.Kind, as_dict: bool) -> Any:
        made = {name: arrays.from_torch(tensor, kind) for name, tensor in result.outputs.items()}
        for name in ("hidden_states", "attentions", "cross_attentions"):
            tensors = getattr(result, name)
            if tensors is not None:
                made[name] = arrays.tree_from_torch(tensors, kind)
        filled = self.output_class.of(made)
        if not as_dict:
            items = filled.to_tuple()
            return items if next_cache is None else (items[0], next_cache, *items[1:])
        if next_cache is not None:
            filled["past_key_values"] = next_cache
        return filled

    def init_cache(self, batch_size: int, max_length: int) -> dict[str, Any]:
        """An empty KV cache of `max_length` columns for `batch_size` sequences. Raises KeyError for a model that is no decoder."""
        config = self.config
        if not config.is_decoder:
            raise KeyError("cache: this model keeps none, config.is_decoder is False")
        if max_length > config.max_position_embeddings:
            raise ValueError(f"max_length: got {max_length}, and the model has {config.max_position_embeddings} positions")
        return cache.tree(self._new_buffers(batch_size, max_length, self._device), 0, arrays.Kind.NUMPY, self.cache_prefix)

    def _new_buffers(self, batch: int, length: int, device: torch.device) -> cache.Buffers:
        N = self.config.num_attention_heads
        shape = (batch, length, N, self.config.hidden_size // N)
        return cache.Buffers.zeros(self.config.num_hidden_layers, shape, self._dtype, device)


class FlaxBertModel(FlaxBertPreTrainedModel):
    """The bare model: last_hidden_state [B, S, H] and pooler_output [B, H]."""

    torch_class = "BertModel"
    output_class = FlaxBaseModelOutputWithPoolingAndCrossAttentions
    cache_prefix = ()


class FlaxBertForPreTraining(FlaxBertPreTrainedModel):
    """Masked words and next sentences: prediction_logits [B, S, V] and seq_relationship_logits [B, 2]."""

    torch_class = "BertForPreTraining"
    output_class = FlaxBertForPreTrainingOutput

    def _set_up(self, config: Any, *args: Any) -> None:
        if config.add_cross_attention:
            raise ValueError("config.add_cross_attention: FlaxBertForPreTraining has no cross-attention; leave it False")
        super()._set_up(config, *args)


class FlaxBertForCausalLM(Generation, FlaxBertPreTrainedModel):
    """The next word: logits [B, S, V]; causal where config.is_decoder is set."""

    torch_class = "BertLMHeadModel"
    output_class = FlaxCausalLMOutputWithCrossAttentions


def _engine_config(config: Any) -> Any:
    # The torch class builds cross-attention for decoders only; what is causal is decided here, at the call.
    return engine_config(config, ACTIVATIONS[config.hidden_act], is_decoder=bool(config.is_decoder or config.add_cross_attention))


def _ignore_tied_decoder(config: Any, weights: dict[str, Tensor]) -> None:
    """A tied model uses the embedding table, whatever decoder its checkpoint brings."""
    if config.tie_word_embeddings:
        weights.pop("cls.predictions.decoder.weight", None)


def _filled(given: Mapping[str, Any], fresh: Mapping[str, Any]) -> Tree:
    return {
        name: (_filled(given.get(name, {}), node) if isinstance(node, Mapping) else given.get(name, node)) for name, node in fresh.items()
    }
