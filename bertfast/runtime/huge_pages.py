"""Backs a model's weights with 2 MiB huge pages: with 4 KiB pages a small batch takes a TLB miss every few hundred nanoseconds."""

import ctypes
import errno
import sys
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor, nn

_FRAME = 2 << 20  # bytes: a huge page, or an aligned range that can become one
_MADV_COLLAPSE = 25  # since Linux 6.1; unlike khugepaged it needs no MADV_HUGEPAGE flag on the mapping
_SETTINGS = Path("/sys/kernel/mm/transparent_hugepage")
_MAPPINGS = Path("/proc/self/maps")


def huge_pages(model: nn.Module) -> int:
    """Back the CPU weights of `model` (parameters and buffers) with 2 MiB huge pages, in place: addresses and values stay.

    Returns the number of bytes of weights that lie in huge pages after this call, as far as it knows; pages that were huge before
    count, memory that tensors share counts once. A page that weights fill less than half of is not made. Returns 0 where huge pages
    are not available, which is no error: Linux before 6.1 and other systems, huge pages of another size or set to "never" (the usual
    setting "madvise" is enough), a model on a GPU or the meta device.

    Mapped files and shared memory are left alone: from_pretrained maps a safetensors file that is in the model's dtype, and other
    processes share those pages. copy.deepcopy(model) has memory of its own, and so has a model loaded in another dtype or quantized.
    Weights that are moved or replaced later (.to, load_state_dict(assign=True)) lie in ordinary pages again.

    200 MB take 0.07 s, up to 0.7 s where the kernel must free memory first. Call it once the model is final, and before forking
    processes that share it: pages collapsed after a fork are no longer shared.

    Raises TypeError where `model` is not a torch.nn.Module. Source: madvise(2), MADV_COLLAPSE.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got a {type(model).__name__}, expected a torch.nn.Module (an Embedder has one in .model)")
    if not _available():
        return 0
    weights = _bytes_by_frame(model)
    worth_it = sorted(frame for frame, size in weights.items() if 2 * size >= _FRAME)
    return sum(weights[frame] for run in _runs(worth_it) for frame in _collapse(run))


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode(errors="replace")
    except OSError:
        return ""


def _available() -> bool:
    if sys.platform != "linux" or _read(_SETTINGS / "hpage_pmd_size").strip() != str(_FRAME):
        return False
    # MADV_COLLAPSE ignores these settings; respect a system where huge pages are switched off.
    return not any("[never]" in _read(_SETTINGS / name) for name in ("enabled", "hugepages-2048kB/enabled"))


def _bytes_by_frame(model: nn.Module) -> Counter[int]:
    """Frame address -> bytes of weights in that frame; frames without weights are left out."""
    tensors = chain(model.parameters(), model.buffers())
    storages = [t.untyped_storage() for t in tensors if _has_cpu_storage(t)]
    found: Counter[int] = Counter()
    counted = 0  # end address of what is counted already
    for start, size in sorted((s.data_ptr(), s.nbytes()) for s in storages):
        begin, end = max(start, counted), start + size
        if begin < end:
            for frame in range(begin // _FRAME * _FRAME, end, _FRAME):
                found[frame] += min(end, frame + _FRAME) - max(begin, frame)
            counted = end
    return found


def _has_cpu_storage(tensor: Tensor) -> bool:
    """Whether the tensor has a storage on the CPU; a subclass may wrap other tensors and have no address."""
    return type(tensor) in (Tensor, nn.Parameter) and tensor.device.type == "cpu" and tensor.layout is torch.strided


def _runs(frames: list[int]) -> list[range]:
    """The frames in private anonymous memory, neighbours joined: one madvise per run, since a call costs more than a frame that is
    huge already."""
    own = []
    for line in _read(_MAPPINGS).split("\n"):
        fields = line.split()  # addresses, permissions, offset, device, inode, path
        if len(fields) >= 5 and fields[1].endswith("p") and fields[4] == "0":
            begin, _, end = fields[0].partition("-")
            own.append((int(begin, 16), int(end, 16)))
    runs: list[range] = []
    for frame in frames:
        if any(begin <= frame and frame + _FRAME <= end for begin, end in own):
            first = runs.pop().start if runs and runs[-1].stop == frame else frame
            runs.append(range(first, frame + _FRAME, _FRAME))
    return runs


def _collapse(run: range) -> Sequence[int]:
    """The frames of the run that are huge pages after the call. madvise stops at the first failure; then each frame is tried alone."""
    madvise = ctypes.CDLL(None, use_errno=True).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    if madvise(run.start, len(run) * _FRAME, _MADV_COLLAPSE) == 0:
        return run
    done = []
    for frame in run:
        if madvise(frame, _FRAME, _MADV_COLLAPSE) == 0:
            done.append(frame)
        elif ctypes.get_errno() in (errno.ENOMEM, errno.EBUSY):
            break  # out of memory, or at the process's limit: further attempts would be slow and fail too
    return done
