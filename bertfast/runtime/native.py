"""The C++ module, known to be the one that belongs to this Python. Whoever needs `_C` imports it from here.

Bindings take addresses, and what they take changes together with the Python that calls them. In a source checkout the two can come
apart: `git pull` brings new files, and the module that was built from the old ones is still there. A call would then read or write where
nothing is. So the module says which files it was built from, each with its hash, and they are compared with those that lie beside
the package. An installed wheel has none beside it, and was built from one state of both.
"""

from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

import torch

from bertfast import _C

__all__ = ["_C"]

ROOT = Path(__file__).resolve().parents[2]


def changed_since(built_from: Mapping[str, str], root: Path) -> list[str]:
    """The files under `root` that are not what they were: `built_from` has the SHA-256 of each, in hex, by its path from there."""
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


def check(root: Path = ROOT) -> None:
    """Raises ImportError where `root` is a source checkout whose C++ is not what the module was built from."""
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
        f"bertfast's C++ module ({_C.__file__}) was built from other sources than those beside this Python: {found}. "
        f"Calling it could crash. Build it again: pip install -e {root}"
    )


check()
# Asked when the kernels first need threads, in this process and anew in a forked child (a DataLoader's worker sets its own).
_C.set_default_threads(torch.get_num_threads)
