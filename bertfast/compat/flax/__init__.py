"""The Flax BERT classes of transformers 4.37, over bertfast's engine. Neither JAX nor Flax is needed.

from bertfast.compat.flax import FlaxBertModel
model = FlaxBertModel.from_pretrained(folder)
outputs = model(**tokenizer(texts, padding=True, return_tensors="np"))    # NumPy in, NumPy out; jax.Array in, jax.Array out

models.py       the three classes: construction, from_pretrained, the call
weights.py      the weights as Flax's nested dict; other weights for one call
inputs.py       what each argument may be: casts, broadcasts, lookups out of range
cache.py        the functional KV cache
generation.py   generate: greedy, sampling, beams
processors.py   what generate does to the scores of the next token
random.py       JAX's random keys, so that a seed draws what it drew in 4.37
"""

from bertfast.compat.flax.generation import FlaxBeamSearchOutput as FlaxBeamSearchOutput
from bertfast.compat.flax.generation import FlaxGreedySearchOutput as FlaxGreedySearchOutput
from bertfast.compat.flax.generation import FlaxSampleOutput as FlaxSampleOutput
from bertfast.compat.flax.models import FlaxBaseModelOutputWithPooling as FlaxBaseModelOutputWithPooling
from bertfast.compat.flax.models import FlaxBaseModelOutputWithPoolingAndCrossAttentions as FlaxBaseModelOutputWithPoolingAndCrossAttentions
from bertfast.compat.flax.models import FlaxBertForCausalLM as FlaxBertForCausalLM
from bertfast.compat.flax.models import FlaxBertForPreTraining as FlaxBertForPreTraining
from bertfast.compat.flax.models import FlaxBertForPreTrainingOutput as FlaxBertForPreTrainingOutput
from bertfast.compat.flax.models import FlaxBertModel as FlaxBertModel
from bertfast.compat.flax.models import FlaxCausalLMOutputWithCrossAttentions as FlaxCausalLMOutputWithCrossAttentions
