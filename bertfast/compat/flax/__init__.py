"""The Flax BERT classes of transformers 4.37, over bertfast's engine. Neither JAX nor Flax is needed.

from bertfast.compat.flax import FlaxBertModel
model = FlaxBertModel.from_pretrained(folder)
outputs = model(**tokenizer(texts, padding=True, return_tensors="np"))    # NumPy in, NumPy out; jax.Array in, jax.Array out

models.py               the three classes
outputs.py              their output classes
pretrained.py           their base class: construction, from_pretrained, the call
inputs.py, call.py      one call: arguments read, then run on the kernels or on the graph under its own mask
parameters.py           params and its methods
param_spec.py, leaves.py, weights.py   the parameter tree, its arrays, and the engine on them
cache_tree.py, cache_buffers.py        the functional KV cache: its tree, and the buffers it shares
generation.py           generate
generation_settings.py, processors.py  its settings, and its logits processors
decoding.py, beam_search.py            greedy decoding and sampling; beam search
prng.py                 JAX's random keys: a seed draws the same numbers as under 4.37
"""

from bertfast.compat.flax.models import FlaxBertForCausalLM as FlaxBertForCausalLM
from bertfast.compat.flax.models import FlaxBertForPreTraining as FlaxBertForPreTraining
from bertfast.compat.flax.models import FlaxBertModel as FlaxBertModel
from bertfast.compat.flax.outputs import FlaxBaseModelOutputWithPooling as FlaxBaseModelOutputWithPooling
from bertfast.compat.flax.outputs import (
    FlaxBaseModelOutputWithPoolingAndCrossAttentions as FlaxBaseModelOutputWithPoolingAndCrossAttentions,
)
from bertfast.compat.flax.outputs import FlaxBeamSearchOutput as FlaxBeamSearchOutput
from bertfast.compat.flax.outputs import FlaxBertForPreTrainingOutput as FlaxBertForPreTrainingOutput
from bertfast.compat.flax.outputs import FlaxCausalLMOutputWithCrossAttentions as FlaxCausalLMOutputWithCrossAttentions
from bertfast.compat.flax.outputs import FlaxGreedySearchOutput as FlaxGreedySearchOutput
from bertfast.compat.flax.outputs import FlaxSampleOutput as FlaxSampleOutput
