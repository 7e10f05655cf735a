"""Kernel tests: results go to memory full of NaN, and CPU kernels run from the table of each instruction set."""

from collections.abc import Iterator

import pytest
import torch

from bertfast import _C

RUNNABLE = [name for name, built, here in _C.isas() if built and here]


@pytest.fixture(params=RUNNABLE)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """The instruction set in use while the test runs: each in turn that this machine can run."""
    before = _C.isa()
    _C.use_isa(request.param)
    yield request.param
    _C.use_isa(before)


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """torch.empty gives NaN, so an element that a kernel forgets to write is seen."""
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    assert torch.empty(5).isnan().all()
    yield
    torch.use_deterministic_algorithms(before[0])
    torch.utils.deterministic.fill_uninitialized_memory = before[1]


@pytest.fixture
def threads() -> Iterator[None]:
    """Puts the number of threads back after a test that changes it."""
    before = _C.get_num_threads()
    yield
    _C.set_num_threads(before)
