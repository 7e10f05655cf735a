"""Several GPUs and several streams, with a stand-in for what torch.cuda would say: which device is current, which stream, who records."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from bertfast.batch.by_size import memoized_by_size
from bertfast.batch.masks import read_mask
from bertfast.ops import cuda, reference

TAKE_OPERANDS = [name for name in cuda.__all__ if hasattr(getattr(cuda, name), "__wrapped__") and name != "batch_invariant"]


@pytest.fixture
def current(monkeypatch) -> list[int]:
    """The current device, as torch.cuda would tell it: the last of the list."""
    devices = [0]

    class Device:
        def __init__(self, device: torch.device):
            self.index = device.index

        def __enter__(self):
            devices.append(self.index)

        def __exit__(self, *error):
            devices.pop()

    monkeypatch.setattr(torch.cuda, "current_device", lambda: devices[-1])
    monkeypatch.setattr(torch.cuda, "device", Device)
    return devices


@pytest.mark.parametrize("index", [0, 1])
def test_a_kernel_is_launched_on_the_device_of_its_operands(index, current):
    """Triton launches on the current device; operands of another one it would read at addresses that mean nothing there."""
    operand = SimpleNamespace(is_cuda=True, device=torch.device("cuda", index))
    launched_on = cuda.on_its_device(lambda x, y, *, z: (current[-1], y, z))
    assert launched_on(operand, 2, z=3) == (index, 2, 3)
    assert current == [0]

    def fail(x):
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        cuda.on_its_device(fail)(operand)
    assert current == [0]


def test_every_op_that_launches_a_kernel_does_so():
    of_reference = {name for name in cuda.__all__ if getattr(cuda, name) is getattr(reference, name, None)}
    others = {"batch_invariant", "is_batch_invariant", "on_its_device", "raise_out_of_range"}  # these launch nothing
    assert set(TAKE_OPERANDS) == set(cuda.__all__) - of_reference - others


@pytest.fixture
def streams(monkeypatch) -> SimpleNamespace:
    """What torch.cuda says of streams."""
    state = SimpleNamespace(current="first", recording=False)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: state.current)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: state.recording)
    return state


def made(log: list[tuple[int, int]]) -> Callable[[int, int, torch.device], torch.Tensor]:
    def make(B: int, S: int, device: torch.device) -> torch.Tensor:
        log.append((B, S))
        return torch.zeros(B, S)

    return make


def test_what_depends_on_sizes_alone_is_made_once_a_stream(streams):
    """Another stream could read it before it is written."""
    log: list[tuple[int, int]] = []
    find, gpu = memoized_by_size(made(log)), torch.device("cuda", 0)
    assert find(2, 3, gpu) is find(2, 3, gpu)
    assert log == [(2, 3)]
    first, streams.current = find(2, 3, gpu), "second"
    assert find(2, 3, gpu) is not first
    assert log == [(2, 3)] * 2
    streams.current = "first"
    assert find(2, 3, gpu) is first


def test_nothing_is_remembered_of_a_recording(streams):
    """What a caller's own CUDA graph would compute is not there before it is replayed, and lies in its memory."""
    log: list[tuple[int, int]] = []
    find, gpu = memoized_by_size(made(log)), torch.device("cuda", 0)
    streams.recording = True
    inside = find(2, 3, gpu)
    streams.recording = False
    assert find(2, 3, gpu) is not inside
    assert log == [(2, 3)] * 2


def test_on_the_cpu_streams_are_not_asked(streams, monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_stream", None)
    find = memoized_by_size(made([]))
    with torch.inference_mode():
        kept = find(2, 3, torch.device("cpu"))
    assert not kept.is_inference()
    assert find(2, 3, torch.device("cpu")) is kept


@pytest.mark.parametrize("mask", [[[1, 0, 0]], [[1, 1, 0, 1, 0]] * 3, [[1, 1, 0, 0]] * 2])
def test_what_a_mask_becomes_reaches_the_device_in_one_copy(mask, monkeypatch):
    """And its parts begin at multiples of 16 bytes, on which kernels are specialised: another place would be another binary."""
    copies = []
    plain = torch.Tensor.to
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *a, **k: copies.append(k) or plain(self, *a, **k))
    packing = read_mask(torch.tensor(mask), torch.device("cpu"))
    assert copies == [{"non_blocking": True}]
    parts = (packing.indices, packing.positions, packing.cu_seqlens)
    begin = parts[0].untyped_storage().data_ptr()
    assert all((part.data_ptr() - begin) % 16 == 0 and part.is_contiguous() for part in parts)
    assert len({part.untyped_storage().data_ptr() for part in parts}) == 1
    assert packing.indices.tolist() == torch.tensor(mask).flatten().nonzero().flatten().tolist()
    assert packing.positions.tolist() == [column for row in mask for column, real in enumerate(row) if real]
    assert packing.cu_seqlens.tolist() == [0, *torch.tensor(mask).sum(1).cumsum(0).tolist()]
    assert packing.cu_seqlens.dtype == torch.int32
