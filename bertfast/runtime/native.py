"""The C++ module _C, checked to match this Python. Import `_C` from here alone.

The bindings take raw addresses, and their signatures change together with the Python that calls them. In a source checkout the two
can differ: `git pull` brings new files while the old module is still there, and a call would read or write wrong memory. So the module
carries the SHA-256 of every file it was built from, and they are compared with the files beside the package. An installed wheel has no
sources beside it, and nothing to compare.
"""

from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

import torch

from bertfast import _C

__all__ = ["_C"]

ROOT = Path(__file__).resolve().parents[2]


def changed_since(built_from: Mapping[str, str], root: Path) -> list[str]:
    """The files under `root` that are missing or changed. built_from: path relative to root -> SHA-256 in hex."""
    changed = []
    for name, digest in built_from.items():
        try:
            with open(f"{root}/{name}", "rb") as file:
                same = sha256(file.read()).hexdigest() == digest
        except OSError:
            same = False
        if not same:
            changed.append(name)
    return changed


def check_sources(root: Path = ROOT) -> None:
    """Raises ImportError where `root` is a source checkout whose C++ files differ from those the module was built from."""
    if not ((root / "CMakeLists.txt").is_file() and (root / "csrc").is_dir()):
        return
    built_from: Mapping[str, str] | None = getattr(_C, "BUILT_FROM", None)
    if built_from is None:
        found = "it is older than this check"
    elif changed := changed_since(built_from, root):
        others = f" and {len(changed) - 1} more" if changed[1:] else ""
        found = f"{changed[0]}{others} changed since"
    else:
        return
    raise ImportError(
        f"bertfast's C++ module ({_C.__file__}) was built from other sources than those in this checkout: {found}. "
        f"Calling it could crash. Build it again: pip install -e {root}"
    )


def is_forked() -> bool:
    """Whether this process is a fork of another and has loaded no program of its own since. Linux tells; elsewhere False."""
    try:
        with open("/proc/self/stat", encoding="ascii", errors="replace") as file:
            flags = int(file.read().rpartition(") ")[2].split()[6])  # field 9 of proc_pid_stat(5)
    except (OSError, IndexError, ValueError):
        return False
    return bool(flags & 0x40)  # PF_FORKNOEXEC


check_sources()
# Called when the kernels first need threads, and again in a forked child (a DataLoader worker sets its own number).
_C.set_default_threads(torch.get_num_threads)
if not is_forked():  # else threads of the parent may be on record here, and to end them would wait for ever
    _C.end_openmp_threads_before_forks()
