"""KV caches: transformers' cache objects with layers that grow in place, what a call writes, and how its rows attend to the rest.

layers.py and objects.py are the cache that a caller holds, layout.py lays out a call on it, decode.py is the cache of a generation loop.
Used by engine and generation; imports batch, ops and runtime.
"""
