"""How many threads the CPU kernels run on. Until it is said, as many as torch uses."""

from bertfast.runtime.native import _C


def set_num_threads(threads: int) -> None:
    """From now on run the CPU kernels on `threads` threads, the calling one among them. Results do not depend on it.

    torch's own number (torch.set_num_threads) stays as it is. ValueError for less than 1.
    """
    if isinstance(threads, bool) or not isinstance(threads, int):
        raise TypeError(f"threads: got {threads!r}, expected an int")
    if threads < 1:
        raise ValueError(f"threads: got {threads}, expected at least 1")
    _C.set_num_threads(threads)


def get_num_threads() -> int:
    """Threads that the CPU kernels run on, the calling one among them."""
    return _C.get_num_threads()
