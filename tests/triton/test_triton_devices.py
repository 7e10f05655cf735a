"""Several GPUs and streams, with stand-ins for torch.cuda: the current device, the current stream, whether it is capturing."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from bertfast.batch.by_size import memoized_by_size
from bertfast.batch.masks import read_mask
from bertfast.ops import cuda, reference

DECORATED = [name for name in cuda.__all__ if hasattr(getattr(cuda, name), "__wrapped__") and name != "batch_invariant"]


@pytest.fixture
def current_devices(monkeypatch) -> list[int]:
    """The last of the list is the current device, as torch.cuda returns it."""
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
def test_a_kernel_is_launched_on_the_device_of_its_operands(index, current_devices):
    """Triton launches on the current device, where addresses of another device mean nothing."""
    operand = SimpleNamespace(is_cuda=True, device=torch.device("cuda", index))
    launched_on = cuda.on_its_device(lambda x, y, *, z: (current_devices[-1], y, z))
    assert launched_on(operand, 2, z=3) == (index, 2, 3)
    assert current_devices == [0]

    def fail(x):
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        cuda.on_its_device(fail)(operand)
    assert current_devices == [0]


def test_every_op_that_launches_a_kernel_is_decorated():
    reference_ops = {name for name in cuda.__all__ if getattr(cuda, name) is getattr(reference, name, None)}
    launch_nothing = {"batch_invariant", "is_batch_invariant", "on_its_device", "raise_out_of_range"}
    assert set(DECORATED) == set(cuda.__all__) - reference_ops - launch_nothing


@pytest.fixture
def streams(monkeypatch) -> SimpleNamespace:
    """The current stream of torch.cuda, and whether it is capturing."""
    state = SimpleNamespace(current="first", capturing=False)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: state.current)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: state.capturing)
    return state


def logged_make(log: list[tuple[int, int]]) -> Callable[[int, int, torch.device], torch.Tensor]:
    def make(B: int, S: int, device: torch.device) -> torch.Tensor:
        log.append((B, S))
        return torch.zeros(B, S)

    return make


def test_tensors_memoized_by_size_are_made_once_for_each_stream(streams):
    """Another stream could read one before it is written."""
    log: list[tuple[int, int]] = []
    find, gpu = memoized_by_size(logged_make(log)), torch.device("cuda", 0)
    assert find(2, 3, gpu) is find(2, 3, gpu)
    assert log == [(2, 3)]
    first, streams.current = find(2, 3, gpu), "second"
    assert find(2, 3, gpu) is not first
    assert log == [(2, 3)] * 2
    streams.current = "first"
    assert find(2, 3, gpu) is first


def test_nothing_is_memoized_during_a_capture(streams):
    """A tensor that a caller's CUDA graph computes is written only by a replay, and lies in the graph's memory."""
    log: list[tuple[int, int]] = []
    find, gpu = memoized_by_size(logged_make(log)), torch.device("cuda", 0)
    streams.capturing = True
    inside = find(2, 3, gpu)
    streams.capturing = False
    assert find(2, 3, gpu) is not inside
    assert log == [(2, 3)] * 2


def test_on_the_cpu_no_stream_is_read(streams, monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_stream", None)
    find = memoized_by_size(logged_make([]))
    with torch.inference_mode():
        found = find(2, 3, torch.device("cpu"))
    assert not found.is_inference()
    assert find(2, 3, torch.device("cpu")) is found


@pytest.mark.parametrize("mask", [[[1, 0, 0]], [[1, 1, 0, 1, 0]] * 3, [[1, 1, 0, 0]] * 2])
def test_what_is_read_from_a_mask_reaches_the_device_in_one_copy(mask, monkeypatch):
    """Its parts begin at multiples of 16 bytes: Triton specialises on that, and other addresses would need another binary."""
    copies = []
    real = torch.Tensor.to
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *a, **k: copies.append(k) or real(self, *a, **k))
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
