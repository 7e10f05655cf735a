"""The TensorFlow and Flax BERT classes that transformers 4.37 documented ("compat classes"), over bertfast's engine.

    bertfast.compat.tf     TFBertForTokenClassification, TFBertForQuestionAnswering
    bertfast.compat.flax   FlaxBertModel, FlaxBertForPreTraining, FlaxBertForCausalLM

Same names, arguments and outputs. Neither TensorFlow nor JAX is needed or imported. Outputs have the array type of the inputs: NumPy,
torch, tf.Tensor or jax.Array. docs/compat.md lists the differences to 4.37.

    arrays.py    the four array types <-> torch, sharing memory where possible
    tracing.py   errors for calls inside tf.function and JAX transforms
    outputs.py   base of the output classes: access by attribute, key and index
    config.py    a 4.37 config and its overrides; the engine's copy of it
    engine.py    one call: on the kernels, or on the graph under an arbitrary mask
    dense.py     that graph's attention, dropout and batch

No other package of bertfast imports this one; `import bertfast` does not load it.
"""
