"""The TensorFlow and Flax BERT classes that transformers 4.37 documented, over bertfast's engine.

    bertfast.compat.tf     TFBertForTokenClassification, TFBertForQuestionAnswering
    bertfast.compat.flax   FlaxBertModel, FlaxBertForPreTraining, FlaxBertForCausalLM

Same names, arguments and outputs; neither TensorFlow nor JAX is needed, and neither is imported unless the caller's process
already has. Arrays go out as they came in: NumPy, torch, tf.Tensor or jax.Array. docs/compat.md says where a face differs.

    arrays.py    the four kinds of arrays <-> torch, without a copy where the memory allows
    outputs.py   the output classes' common part: attribute, key and index access
    config.py    a 4.37 config and its overrides; the engine's own copy of it
    engine.py    one call on the torch classes' kernels, or on the graph under any mask
    dense.py     that graph: additive masks, head masks, dropout, lookups out of range

The subpackages load on first use: `import bertfast` does not import them.
"""
