"""How one forward runs: fast path or reference path, op by op, as a recorded CPU plan or as a CUDA graph.

`forward` is the entry. Owns what is remembered of a model between calls (`model_state`). May be imported by generation, modeling, compat,
optimize and cli; imports graph, cache, batch, quantization, ops and runtime.
"""
