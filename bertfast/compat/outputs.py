"""The base of the output classes, with the behaviour of transformers 4.37's ModelOutput.

An ordered dict of the fields that are not None (the others are None as attributes, and missing as keys), which can also be indexed by
position. Source: transformers.utils.ModelOutput of 4.37.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, SupportsIndex, TypeVar

Output = TypeVar("Output", bound="ModelOutput")


class ModelOutput(dict[str, Any]):
    """Base of the output dataclasses: attribute, key and index access, to_tuple, replace."""

    def __post_init__(self) -> None:
        for field in fields(self):  # type: ignore[arg-type]  # the subclasses are dataclasses
            value = getattr(self, field.name)
            if value is not None:
                dict.__setitem__(self, field.name, value)

    @classmethod
    def of(cls: type[Output], values: Mapping[str, object]) -> Output:
        """cls(**values) without its cost. The names must be fields, in order."""
        made = cls.__new__(cls)
        made.__dict__.update(values)  # other fields read as the class default, None
        dict.update(made, {name: value for name, value in values.items() if value is not None})
        return made

    def __getitem__(self, key: str | SupportsIndex | slice) -> Any:
        return dict.__getitem__(self, key) if isinstance(key, str) else self.to_tuple()[key]

    def __setitem__(self, key: str, value: object) -> None:
        dict.__setitem__(self, key, value)
        object.__setattr__(self, key, value)

    def __setattr__(self, name: str, value: object) -> None:
        if name in self and value is not None:
            dict.__setitem__(self, name, value)
        object.__setattr__(self, name, value)

    def __delitem__(self, key: str) -> None:
        raise TypeError(f"{type(self).__name__}: fields cannot be deleted")

    def to_tuple(self) -> tuple[Any, ...]:
        """The fields that are not None, in order."""
        return tuple(self.values())

    def replace(self: Output, **changes: object) -> Output:
        """A copy with some fields changed, as flax.struct dataclasses have it."""
        return type(self)(**{**self, **changes})

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuilt, (type(self), dict(self))


def _rebuilt(cls: type[Output], values: Mapping[str, object]) -> Output:
    return cls(**values)


output_dataclass = dataclass(repr=False, eq=False)  # repr and equality are dict's
