"""FlaxBertPreTrainedModel: construction, from_pretrained and the call.

Source of the behaviour: the class of this name in transformers 4.37.
"""

from os import PathLike
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from bertfast import checkpoints
from bertfast.compat import arrays
from bertfast.compat.arrays import Array
from bertfast.compat.config import engine_config, flag, read_config
from bertfast.compat.dense import Dropout
from bertfast.compat.engine import EngineOutput, seeded
from bertfast.compat.flax import cache_tree, prng
from bertfast.compat.flax.cache_buffers import CacheBuffers
from bertfast.compat.flax.call import FlaxCall
from bertfast.compat.flax.leaves import ParameterTree
from bertfast.compat.flax.param_spec import ParamSpec
from bertfast.compat.flax.parameters import ParametersMixin
from bertfast.compat.flax.weights import WeightSet
from bertfast.compat.outputs import ModelOutput
from bertfast.compat.tracing import refuse_tracing
from bertfast.graph.family import BERT
from bertfast.runtime.config_access import setting

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

ACTIVATIONS = frozenset(["gelu", "relu", "silu", "swish", "gelu_new", "quick_gelu"])  # 4.37's, for Flax


class FlaxBertPreTrainedModel(ParametersMixin):
    """Base of the three Flax classes.

    Attributes: keep_padding: compute outputs at padded positions, as 4.37 did. By default hidden states are zeros
    where the mask is 0 or 1 everywhere, as in bertfast's torch classes.
    """

    base_model_prefix = "bert"
    output_class: ClassVar[type[ModelOutput]]
    cache_prefix: ClassVar[tuple[str, ...]] = ("bert",)
    keep_padding: bool = False

    def __init__(
        self,
        config: "PreTrainedConfig",
        input_shape: tuple[int, ...] = (1, 1),
        seed: int = 0,
        dtype: object = torch.float32,
        _do_init: bool = True,
        gradient_checkpointing: bool = False,
        **kwargs: object,
    ) -> None:
        """A model with random weights. seed: of torch's generator; dtype: of computation and outputs.

        _do_init=False makes a model without weights, for calls with params=. Raises KeyError for an activation that 4.37's Flax classes
        did not have, ValueError for a hidden size that the heads do not divide.
        """
        self._set_up(config, input_shape, seed, dtype, _do_init)
        if _do_init:
            self._set_weights(self._random_weights(seed))

    def _set_up(self, config: "PreTrainedConfig", input_shape: tuple[int, ...], seed: int, dtype: object, initialised: bool) -> None:
        if config.hidden_act not in ACTIVATIONS:
            raise KeyError(f"config.hidden_act: {config.hidden_act!r} is not one of Flax's activations: {', '.join(sorted(ACTIVATIONS))}")
        if config.hidden_size % config.num_attention_heads:
            raise ValueError(
                f"config.hidden_size: {config.hidden_size} must be a multiple of config.num_attention_heads: {config.num_attention_heads}"
            )
        self.config, self.input_shape, self.seed, self.dtype = config, input_shape, seed, dtype
        self.name_or_path = getattr(config, "name_or_path", "")
        self.key = prng.read_key(seed, "seed")  # for init_weights(model.key, model.input_shape)
        self._dtype = arrays.torch_dtype(dtype)
        self._initialised = initialised
        self._spec = ParamSpec(self._torch_module)
        self._weights = self._tree = None
        self._other_weights = []
        self._device = torch.device("cpu")

    @classmethod
    def _torch_class(cls) -> "type[PreTrainedModel]":
        import bertfast

        return getattr(bertfast, cls.torch_class)

    def _engine_config(self) -> "PreTrainedConfig":
        return _engine_config(self.config)

    def _torch_module(self) -> "PreTrainedModel":
        return self._torch_class()(self._engine_config())

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | PathLike[str],
        dtype: object = torch.float32,
        *model_args: object,
        config: "PreTrainedConfig | str | PathLike[str] | None" = None,
        from_pt: bool = False,
        _do_init: bool = True,
        input_shape: tuple[int, ...] = (1, 1),
        seed: int = 0,
        gradient_checkpointing: bool = False,
        output_loading_info: bool = False,
        keep_padding: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Load a local folder: flax_model.msgpack, safetensors in any layout, pytorch_model.bin or tf_model.h5.

        dtype: of computation and outputs; `params` keep the file's dtype. _do_init=False returns (model, params), the model without
        weights of its own. output_loading_info=True appends the report of missing and unexpected keys. Of several files Flax's comes
        first; from_pt=True prefers PyTorch's. Other keywords override config attributes. Raises OSError where the folder has no
        weights, ValueError for a damaged file.
        """
        folder = checkpoints.folder_of(pretrained_model_name_or_path, kwargs)
        checkpoint = checkpoints.detect(folder, "pt" if from_pt else "flax")
        if checkpoint is None:
            raise OSError(f"{folder}: no flax_model.msgpack, model.safetensors, pytorch_model.bin or tf_model.h5 in it")
        own_config = read_config(config, folder, kwargs)
        model = cls.__new__(cls)
        model._set_up(own_config, input_shape, seed, dtype, _do_init)
        module, info = checkpoints.load_foreign(
            cls._torch_class().from_pretrained, BERT, folder, checkpoint,
            config=_engine_config(own_config), adjust=_drop_tied_decoder, dtype="auto", output_loading_info=True, **kwargs,
        )  # fmt: skip
        own_config.name_or_path = model.name_or_path = str(folder)
        model.keep_padding = keep_padding
        model._load_generation_config(folder)
        weights = WeightSet.of_module(model._spec, module, model._dtype)
        if _do_init:
            model._set_weights(weights)
            return (model, info) if output_loading_info else model
        model._other_weights.append(weights)
        tree = model._spec.tree(weights.leaves)
        return (model, tree, info) if output_loading_info else (model, tree)

    def _load_generation_config(self, folder: str | PathLike[str]) -> None:
        return None

    def __call__(
        self,
        input_ids: Array,  # [B, S]
        attention_mask: "Array | None" = None,  # [B, S] (or 1 for either, or [S]): attended where int(mask) > 0, in a decoder where != 0
        token_type_ids: "Array | None" = None,  # [B, S]
        position_ids: "Array | None" = None,  # [B, S]
        head_mask: "Array | None" = None,  # [L, N], cast to int; multiplies the attention probabilities
        encoder_hidden_states: "Array | None" = None,  # [B, Se, H]; ignored without config.add_cross_attention
        encoder_attention_mask: "Array | None" = None,  # [B, Se], attended where > 0
        params: "ParameterTree | None" = None,  # a whole tree of weights for this call
        dropout_rng: "int | Array | None" = None,  # a seed or a jax.random key, for train=True
        train: bool = False,  # apply dropout
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        past_key_values: "cache_tree.CacheTree | None" = None,  # from init_cache or the previous step's output
    ) -> Any:
        """The output_class, with arrays of the type of the inputs; a tuple with return_dict=False. Ids are cast to int32.

        Raises ValueError or TypeError, naming the argument, where 4.37 raised, and inside a trace (tf.function, jax.jit).
        """
        values = {
            "input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids, "position_ids": position_ids,
            "head_mask": head_mask, "encoder_hidden_states": encoder_hidden_states, "encoder_attention_mask": encoder_attention_mask,
        }  # fmt: skip
        refuse_tracing(type(self).__name__, values.values())
        attentions = flag(output_attentions, self.config, "output_attentions")
        hidden = flag(output_hidden_states, self.config, "output_hidden_states")
        array_type = arrays.array_type_of(values.values())
        with torch.no_grad():
            engine = self._engine_on(params)
            dropout = self._dropout(train, dropout_rng, engine.device)
            call = FlaxCall(
                engine, self.config, values,
                attentions=attentions, hidden_states=hidden, dropout=dropout, keep_padding=self.keep_padding,
            )  # fmt: skip
            past = past_key_values if setting(self.config, "add_cross_attention") else None
            if past is not None and setting(self.config, "is_decoder"):
                prefix = self.cache_prefix
                buffers, index = cache_tree.read_tree(past, self.config.num_hidden_layers, prefix, engine.dtype, engine.device)
                result, buffers = call.run_cached(buffers, index)
                past = cache_tree.tree(buffers, index + call.inputs.shape[1], array_type, prefix)
            else:
                result = call.run()
        return self._output(result, past, array_type, flag(return_dict, self.config, "return_dict", True))

    def _dropout(self, train: bool, rng: "int | Array | None", device: torch.device) -> Dropout | None:
        if not train:
            return None
        rates = float(self.config.hidden_dropout_prob), float(self.config.attention_probs_dropout_prob)
        if not any(rates):
            return None
        if rng is None:
            raise ValueError("dropout_rng: train=True runs dropout, which needs a seed or a key: pass dropout_rng=")
        return Dropout(*rates, seeded(prng.seed_of(prng.read_key(rng, "dropout_rng")), device))

    def _output(
        self, result: EngineOutput, next_cache: "cache_tree.CacheTree | None", array_type: arrays.ArrayType, as_dict: bool
    ) -> ModelOutput | tuple[object, ...]:
        made = {name: arrays.from_torch(tensor, array_type) for name, tensor in result.outputs.items()}
        for name in ("hidden_states", "attentions", "cross_attentions"):
            tensors = getattr(result, name)
            if tensors is not None:
                made[name] = arrays.tree_from_torch(tensors, array_type)
        filled = self.output_class.of(made)
        if not as_dict:
            items = filled.to_tuple()
            return items if next_cache is None else (items[0], next_cache, *items[1:])
        if next_cache is not None:
            filled["past_key_values"] = next_cache
        return filled

    def init_cache(self, batch_size: int, max_length: int) -> cache_tree.CacheTree:
        """An empty KV cache of `max_length` columns for `batch_size` sequences. Raises KeyError where config.is_decoder is False."""
        config = self.config
        if not config.is_decoder:
            raise KeyError("cache: config.is_decoder is False, and only a decoder has a KV cache")
        if max_length > config.max_position_embeddings:
            raise ValueError(f"max_length: got {max_length}, but the model has {config.max_position_embeddings} positions")
        return cache_tree.tree(self._new_buffers(batch_size, max_length, self._device), 0, arrays.ArrayType.NUMPY, self.cache_prefix)

    def _new_buffers(self, batch: int, length: int, device: torch.device) -> CacheBuffers:
        N = self.config.num_attention_heads
        shape = (batch, length, N, self.config.hidden_size // N)
        return CacheBuffers.zeros(self.config.num_hidden_layers, shape, self._dtype, device)


def _engine_config(config: "PreTrainedConfig") -> "PreTrainedConfig":
    # The torch class builds cross-attention for decoders only. Causality is decided per call.
    return engine_config(config, config.hidden_act, is_decoder=bool(config.is_decoder or config.add_cross_attention))


def _drop_tied_decoder(config: "PreTrainedConfig", weights: dict[str, Tensor]) -> None:
    """A tied model uses the embedding table, not the decoder of its checkpoint."""
    if config.tie_word_embeddings:
        weights.pop("cls.predictions.decoder.weight", None)
