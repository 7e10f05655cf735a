"""Locks that a forked child finds free: the thread that held one in the parent does not exist there.

What our locks guard is replaced as a whole, never changed in steps, so the child sees it either before or after.
"""

import os
import threading
import weakref
from typing import Any

_locks: "weakref.WeakSet[Any]" = weakref.WeakSet()  # of threading.Lock and RLock, which are no types before Python 3.13


def make_lock() -> threading.Lock:
    return _registered(threading.Lock())


def make_rlock() -> threading.RLock:
    return _registered(threading.RLock())


def _registered(lock: Any) -> Any:
    _locks.add(lock)
    return lock


def _reinit_in_child() -> None:
    for lock in _locks:
        lock._at_fork_reinit()  # as threading does with its own


os.register_at_fork(after_in_child=_reinit_in_child)
