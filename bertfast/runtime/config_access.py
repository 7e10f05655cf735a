"""Reading a transformers config many times a call.

A config's own __getattribute__ looks into an attribute map and for settings that differ by layer: microseconds for each read, a
tenth of a small forward for those of one call. What a BERT's config was given lies in its __dict__.
"""

from typing import Any

_MISSING = object()
_BEHIND = {"output_attentions": "_output_attentions", "_attn_implementation": "_attn_implementation_internal"}  # of properties


def setting(config: Any, name: str, default: Any = _MISSING) -> Any:
    """config.name; `default`, where one is given, if there is none."""
    values = object.__getattribute__(config, "__dict__")
    found = values.get(_BEHIND.get(name, name), _MISSING)
    if found is not _MISSING:
        return found
    return getattr(config, name) if default is _MISSING else getattr(type(config), name, default)


def is_causal(config: Any) -> bool:
    """Whether a BERT of this config is a decoder whose tokens see the ones before them alone."""
    return bool(setting(config, "is_decoder")) and bool(setting(config, "is_causal", True))
