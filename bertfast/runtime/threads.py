"""The number of threads of the CPU kernels; as many as torch has until set_num_threads is called."""

import threading

import torch

from bertfast.runtime.native import _C

_local = threading.local()


def set_num_threads(threads: int) -> None:
    """Set how many threads the CPU kernels use from now on, the calling thread included. Results do not depend on it.

    torch's own number (torch.set_num_threads) is not changed. Raises TypeError for what is not an int, ValueError below 1.
    """
    if isinstance(threads, bool) or not isinstance(threads, int):
        raise TypeError(f"threads: got {threads!r}, expected an int")
    if threads < 1:
        raise ValueError(f"threads: got {threads}, expected at least 1")
    _C.set_num_threads(threads)


def get_num_threads() -> int:
    """The number of threads that the CPU kernels use, the calling thread included."""
    return _C.get_num_threads()


def follow_torch() -> None:
    """Takes over a number that this thread has given to torch.set_num_threads since its last call. Costs a tenth of a microsecond."""
    threads = torch.get_num_threads()  # torch keeps one for each thread: the latest to change counts
    if threads != getattr(_local, "threads", None):
        _local.threads = threads
        _C.update_default_threads(threads)
