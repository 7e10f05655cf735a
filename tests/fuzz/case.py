"""What a target consists of."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from hypothesis.strategies import SearchStrategy


class Case(ABC):
    """One example. A dataclass whose repr is the code that makes it, in the namespace of its module."""

    @abstractmethod
    def check(self) -> str:
        """What happened, in a few words. Raises where the target's property does not hold."""

    def program(self) -> str:
        """Code that reproduces the case, run from the root of the repository."""
        kind = type(self)
        return f"from {kind.__module__} import *\n\nprint({self!r}.check())"


@dataclass(frozen=True)
class Target:
    cases: SearchStrategy[Case]
    batch: int = 50  # cases of a round: enough for about two seconds
    share: float = 1.0  # of the time, beside the other targets'
    patience: float = 120.0  # seconds without an answer after which a case hangs
