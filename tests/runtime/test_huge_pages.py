"""huge_pages: weights keep their addresses and values, and lie in 2 MiB pages where the system has them."""

import copy
import ctypes
import mmap
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import bertfast
from bertfast.runtime import huge_pages
from builders import BASE, bert_config, realistic_

FRAME = 2 << 20
MADV_NOHUGEPAGE, MADV_COLLAPSE = 15, 25
SYSTEM = Path("/sys/kernel/mm/transparent_hugepage")

pytestmark = pytest.mark.usefixtures("one_thread")


class Memory:
    """Anonymous memory in a mapping of its own, aligned to a frame, every byte written."""

    def __init__(self, frames: int) -> None:
        self.map = mmap.mmap(-1, (frames + 1) * FRAME, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.map.write(b"\1" * ((frames + 1) * FRAME))
        self.offset = -ctypes.addressof(ctypes.c_char.from_buffer(self.map)) % FRAME

    def advise(self, advice: int, frame: int) -> None:
        self.map.madvise(advice, self.offset + frame * FRAME, FRAME)

    def tensor(self, begin: float, end: float) -> torch.Tensor:
        """The bytes from frame `begin` to frame `end`; both may be fractions."""
        first, last = (self.offset + int(place * FRAME) for place in (begin, end))
        return torch.frombuffer(self.map, dtype=torch.uint8, offset=first, count=last - first)


def why_not() -> str | None:
    """Why this machine has no huge pages, determined without the code under test."""
    if sys.platform != "linux" or not SYSTEM.exists():
        return "no transparent huge pages: not Linux, or a kernel without them"
    for name in ("enabled", "hugepages-2048kB/enabled"):
        if (SYSTEM / name).exists() and "[never]" in (SYSTEM / name).read_text():
            return f"huge pages are switched off: {SYSTEM / name} says never"
    try:
        Memory(1).advise(MADV_COLLAPSE, 0)
    except OSError as error:
        return f"the kernel gave no huge page: {error}"
    return None


@pytest.fixture(scope="module")
def supported() -> None:
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)


def module(*tensors: torch.Tensor) -> nn.Module:
    made = nn.Module()
    for i, tensor in enumerate(tensors):
        made.register_buffer(f"buffer{i}", tensor)
    return made


def huge_bytes(tensors: list[torch.Tensor]) -> int:
    """Bytes of huge pages in the mappings of these tensors; elsewhere the kernel makes some on its own."""
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text(errors="replace").split("\n"):
        if found := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            begin, end = (int(address, 16) for address in found.groups())
            inside = any(begin <= t.data_ptr() < end for t in tensors)
        elif inside and line.startswith("AnonHugePages:"):
            total += 1024 * int(line.split()[1])
    return total


def weights_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


@pytest.mark.usefixtures("supported")
@pytest.mark.parametrize("kind", ["float32", "bfloat16", "int8"])
def test_a_model_keeps_its_addresses_and_values(kind):
    model = bertfast.BertForMaskedLM(bert_config(BASE)).eval()
    realistic_(model, seed=0)
    if kind == "int8":
        bertfast.optimize(model, quantization="int8")
    model = model.to(torch.bfloat16) if kind == "bfloat16" else model
    ids = torch.randint(0, model.config.vocab_size, (2, 9))
    expected = model(ids).logits  # records a plan with the weights' addresses
    before = {name: (t.data_ptr(), t.clone()) for name, t in weights_of(model).items()}
    size = sum(t.nbytes for t in weights_of(model).values())

    moved = bertfast.huge_pages(model)
    assert size / 4 < moved <= size  # int8 weights are scattered among other memory
    assert huge_bytes(list(weights_of(model).values())) >= moved
    assert weights_of(model).keys() == before.keys()
    for name, tensor in weights_of(model).items():
        address, values = before[name]
        assert tensor.data_ptr() == address, name
        assert torch.equal(tensor, values), name
    assert torch.equal(model(ids).logits, expected)
    assert moved <= bertfast.huge_pages(model) <= size  # existing huge pages count; one more frame may be full now


@pytest.mark.usefixtures("supported")
def test_a_frame_counts_if_weights_fill_half_of_it():
    memory = Memory(5)
    assert bertfast.huge_pages(module(memory.tensor(0.75, 2.5), memory.tensor(3.25, 3.5), memory.tensor(4, 4.375))) == 1.5 * FRAME
    assert bertfast.huge_pages(module(memory.tensor(3.25, 3.5), memory.tensor(3.625, 3.875))) == 0.5 * FRAME


@pytest.mark.usefixtures("supported")
def test_shared_memory_counts_once():
    memory = Memory(3)
    shared = memory.tensor(0, 2)
    tied = module(shared, shared[: FRAME // 2], shared.view(2, -1), memory.tensor(1, 3), memory.tensor(1.25, 1.5))
    assert bertfast.huge_pages(tied) == 3 * FRAME


@pytest.mark.usefixtures("supported")
def test_a_frame_that_cannot_be_huge_is_skipped():
    memory = Memory(5)
    memory.advise(MADV_NOHUGEPAGE, 2)
    assert bertfast.huge_pages(module(memory.tensor(0, 5))) == 4 * FRAME


@pytest.mark.usefixtures("supported")
def test_mapped_files_and_shared_memory_are_left_alone(tmp_path):
    np.ones(8 * FRAME, np.uint8).tofile(tmp_path / "weights")
    mapped = module(torch.from_numpy(np.memmap(tmp_path / "weights", np.uint8, mode="c")), torch.ones(8 * FRAME // 4).share_memory_())
    mapped.buffer0[::4096] = 2  # private pages within the file's mapping
    tensors = list(mapped.buffers())
    before = huge_bytes(tensors)
    assert bertfast.huge_pages(mapped) == 0
    assert huge_bytes(tensors) == before
    own = copy.deepcopy(mapped).buffer0.clone()
    assert bertfast.huge_pages(module(own)) >= 6 * FRAME


def test_a_float32_model_stays_in_its_file(tmp_path):
    """transformers maps the file; the few weights elsewhere do not fill half a page."""
    bertfast.BertModel(bert_config(BASE)).save_pretrained(tmp_path)
    model = bertfast.BertModel.from_pretrained(tmp_path)
    assert bertfast.huge_pages(model) == 0


def settings(folder: Path, enabled: str, size: int = FRAME, of_size: str | None = None) -> Path:
    (folder / "enabled").write_text(enabled + "\n")
    (folder / "hpage_pmd_size").write_text(f"{size}\n")
    if of_size is not None:
        (folder / "hugepages-2048kB").mkdir()
        (folder / "hugepages-2048kB" / "enabled").write_text(of_size + "\n")
    return folder


@pytest.mark.usefixtures("supported")
@pytest.mark.parametrize(
    ("says", "moved"),
    [
        ({"enabled": "always madvise [never]"}, 0),
        ({"enabled": "always [madvise] never", "of_size": "always inherit madvise [never]"}, 0),
        ({"enabled": "always [madvise] never", "size": 32 << 20}, 0),
        ({"enabled": "always [madvise] never"}, FRAME),
        ({"enabled": "[always] madvise never", "of_size": "always [inherit] madvise never"}, FRAME),
    ],
)
def test_the_system_setting_never_is_respected(says, moved, tmp_path, monkeypatch):
    monkeypatch.setattr(huge_pages, "_SETTINGS", settings(tmp_path, **says))
    memory = Memory(1)
    assert bertfast.huge_pages(module(memory.tensor(0, 1))) == moved


@pytest.mark.parametrize(
    ("owner", "name", "value"),
    [
        (sys, "platform", "darwin"),
        (huge_pages, "_SETTINGS", Path("/nowhere")),  # a kernel without huge pages
        (huge_pages, "_MAPPINGS", Path("/nowhere")),
        (huge_pages, "_MADV_COLLAPSE", 9999),  # EINVAL, as from an older kernel
    ],
)
def test_a_system_without_huge_pages(owner, name, value, monkeypatch):
    memory = Memory(2)
    monkeypatch.setattr(owner, name, value)
    assert bertfast.huge_pages(module(memory.tensor(0, 2))) == 0


def test_weights_without_cpu_memory_count_zero():
    with torch.device("meta"):
        assert bertfast.huge_pages(nn.Linear(2048, 2048)) == 0
    assert bertfast.huge_pages(nn.Module()) == 0
    assert bertfast.huge_pages(module(torch.empty(0), torch.ones(2048, 2048).to_sparse())) == 0


@pytest.mark.gpu
def test_a_model_on_a_gpu_counts_zero():
    assert bertfast.huge_pages(nn.Linear(2048, 2048, device="cuda")) == 0


@pytest.mark.parametrize("model", [None, "model", torch.ones(3), {"weight": torch.ones(3)}, nn.Linear])
def test_other_types_than_modules_are_refused(model):
    with pytest.raises(TypeError, match=r"model: got a .*, expected a torch.nn.Module"):
        bertfast.huge_pages(model)
