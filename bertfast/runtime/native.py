"""The native module `_C`, checked to match this Python. All imports of `_C` go through here.

Bindings take untyped addresses, so their signatures must match the Python that calls them. After a `git pull` in a source checkout the
module may still be built from old sources, and a call would corrupt memory. So the module carries the hash of each of its sources, and
importing compares them with the files of the checkout. An installed wheel has no sources to compare.
"""

from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

import torch

from bertfast import _C

__all__ = ["_C"]

ROOT = Path(__file__).resolve().parents[2]


def changed_since(built_from: Mapping[str, str], root: Path) -> list[str]:
    """The files under `root` that changed; `built_from` has the hex SHA-256 of each by its relative path."""
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
    """Raises ImportError if `root` is a source checkout with other C++ sources than the module was built from."""
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
# Called when kernels first need threads, and again in a forked child: a DataLoader's worker sets its own number.
_C.set_default_threads(torch.get_num_threads)
