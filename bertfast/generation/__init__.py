"""The loops inside generate(): greedy decoding, sampling and beam search, over one-token steps on a KV cache made for the whole length.

GenerationMixin prepares the call and chooses the tokens; `eligibility` says which calls run here. May be imported by modeling; imports
engine, cache, graph, batch, ops and runtime.
"""
