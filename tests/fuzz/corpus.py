"""The corpus: a text file for each target, with a case on each line in the code that makes it, and `#` lines that say why it is there."""

from pathlib import Path
from types import ModuleType

from tests.fuzz.case import Case

FOLDER = Path(__file__).with_name("corpus")


def cases_of(module: ModuleType, folder: Path) -> list[Case]:
    """The cases of a target's module. Raises ValueError, naming the line, for one that cannot be made."""
    path = folder / f"{module.__name__.rpartition('.')[2]}.txt"
    found: list[Case] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines() if path.exists() else (), 1):
        if line.strip() and not line.startswith("#"):
            try:
                found.append(eval(line, dict(vars(module))))
            except Exception as error:
                raise ValueError(f"{path}:{number}: {error!r}") from error
    return found


def append(module: ModuleType, folder: Path, case: Case, why: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{module.__name__.rpartition('.')[2]}.txt").open("a", encoding="utf-8") as f:
        f.write(f"# {why}\n{case!r}\n")
