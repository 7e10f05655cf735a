"""Reading a transformers config many times per call.

A config's own __getattribute__ consults an attribute map and per-layer settings: microseconds per read, for all reads of a call a
tenth of a small forward. The values a BERT config was given lie in its __dict__, which is read directly.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_MISSING = object()
_BACKING_FIELDS = {"output_attentions": "_output_attentions", "_attn_implementation": "_attn_implementation_internal"}  # of properties


def setting(config: "PreTrainedConfig", name: str, default: object = _MISSING) -> Any:
    """config.name. A missing attribute gives `default`, or AttributeError where no default is passed."""
    values = object.__getattribute__(config, "__dict__")
    found = values.get(_BACKING_FIELDS.get(name, name), _MISSING)
    if found is not _MISSING:
        return found
    return getattr(config, name) if default is _MISSING else getattr(type(config), name, default)


def is_causal(config: "PreTrainedConfig") -> bool:
    """Whether this config describes a decoder with causal attention."""
    return bool(setting(config, "is_decoder")) and bool(setting(config, "is_causal", True))
