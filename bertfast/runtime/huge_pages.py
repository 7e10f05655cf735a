"""A model's weights in pages of 2 MiB: a small batch reads every weight once, and of pages of 4 KiB it has to look up every few hundred
nanoseconds where the next one lies."""

import ctypes
import errno
import sys
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor, nn

_FRAME = 2 << 20  # bytes: a huge page, or the aligned room for one
_MADV_COLLAPSE = 25  # since Linux 6.1; it asks for no flag on the mapping, as khugepaged does
_SETTINGS = Path("/sys/kernel/mm/transparent_hugepage")
_MAPPINGS = Path("/proc/self/maps")


def huge_pages(model: nn.Module) -> int:
    """Moves the weights of `model` (its parameters and buffers on the CPU) into pages of 2 MiB, in place: no address and no value changes.

    Returns how many bytes of weights this call knows to lie in such pages now, those that lay there before it included. What tensors
    share counts once. Where weights end inside a page it is made, and counted, only if they fill half of it. 0 where there is nothing
    to be had, which is no error: Linux before 6.1 and other systems, huge pages of another size or set to "never" (under "madvise",
    the usual setting, this call is who asks), a model on a GPU or the meta device.

    Mapped files and shared memory are left alone: what from_pretrained gives of a safetensors file in the file's own dtype are pages of
    that file, which other processes that have loaded it share. copy.deepcopy(model) has memory of its own, and so has what another
    dtype or quantization made. Weights that are moved or replaced later (.to, load_state_dict(assign=True)) lie in ordinary pages again.

    200 MB take 0.07 s, and up to 0.7 s where the kernel must make room first. Call it once the model is as it will be used, and before
    processes are forked that share it: what is moved later is shared with none of them.

    TypeError for what is not a module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got a {type(model).__name__}, expected a torch.nn.Module (an Embedder has one in .model)")
    if not _available():
        return 0
    weights = _weights(model)
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
    # MADV_COLLAPSE would not ask: who has switched huge pages off has a reason.
    return not any("[never]" in _read(_SETTINGS / name) for name in ("enabled", "hugepages-2048kB/enabled"))


def _weights(model: nn.Module) -> Counter[int]:
    """Bytes of weights in every frame that has any, by the frame's address."""
    tensors = chain(model.parameters(), model.buffers())
    storages = [t.untyped_storage() for t in tensors if _is_plain(t)]
    found: Counter[int] = Counter()
    counted = 0  # up to this address
    for start, size in sorted((s.data_ptr(), s.nbytes()) for s in storages):
        begin, end = max(start, counted), start + size
        if begin < end:
            for frame in range(begin // _FRAME * _FRAME, end, _FRAME):
                found[frame] += min(end, frame + _FRAME) - max(begin, frame)
            counted = end
    return found


def _is_plain(tensor: Tensor) -> bool:
    """Whether it has a storage, on the CPU: subclasses may wrap tensors of any kind, and have an address to show for none."""
    return type(tensor) in (Tensor, nn.Parameter) and tensor.device.type == "cpu" and tensor.layout is torch.strided


def _runs(frames: list[int]) -> list[range]:
    """Neighbours among those frames that lie in private memory which is no file's. A run is one call to the kernel, which spends more on
    being called than on a frame that is huge already."""
    own = []
    for line in _read(_MAPPINGS).split("\n"):
        fields = line.split()  # addresses, permissions, offset, device, inode, then a name of any number of words
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
    """The frames of the run that are huge pages now. The first one that cannot be ends a call, so then each is asked for alone."""
    madvise = ctypes.CDLL(None, use_errno=True).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    if madvise(run.start, len(run) * _FRAME, _MADV_COLLAPSE) == 0:
        return run
    done = []
    for frame in run:
        if madvise(frame, _FRAME, _MADV_COLLAPSE) == 0:
            done.append(frame)
        elif ctypes.get_errno() in (errno.ENOMEM, errno.EBUSY):
            break  # no memory, or none that the process's limit leaves: looking for more would take long and find none
    return done
