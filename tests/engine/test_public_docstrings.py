"""help() on the public classes shows transformers' text and what bertfast adds."""

import inspect

import pytest

from bertfast import modeling


@pytest.mark.parametrize("cls", modeling.REFERENCE_CLASS, ids=lambda cls: cls.__name__)
def test_a_class_shows_the_docstring_of_transformers_and_its_own(cls):
    original = modeling.REFERENCE_CLASS[cls]
    assert cls.__doc__.startswith(inspect.cleandoc(original.__doc__))
    added = cls.__doc__.removeprefix(inspect.cleandoc(original.__doc__))
    assert added.startswith("\n" + modeling.NOTE)
    assert added.removeprefix("\n" + modeling.NOTE).strip(), "a line of its own"
    assert cls.forward.__doc__ == original.forward.__doc__
    assert "bertfast" not in original.__doc__
