"""Which folder of benchmarks may import which; each folder's __init__ says the same in words."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAY_IMPORT = {
    "suite": set(),
    "machine": set(),
    "subjects": {"suite", "machine"},
    "measure": {"suite", "machine", "subjects"},
    "report": {"suite", "measure"},
    "gpu": {"suite", "machine", "subjects", "measure", "report"},
    "tools": {"suite", "machine", "subjects", "measure", "report"},
}
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in (ROOT / "benchmarks").rglob("*.py")
}


def imports_of(module: str) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "benchmarks":
            found |= {full if (full := f"{node.module}.{alias.name}") in MODULES else node.module for alias in node.names}
    return found


def test_every_folder_has_a_row():
    assert {path.parent.name for path in (ROOT / "benchmarks").glob("*/__init__.py")} == set(MAY_IMPORT)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_folders_import_as_agreed(module):
    own = module.split(".")[1] if module.count(".") else ""
    if own in MAY_IMPORT:
        others = {imported.split(".")[1] for imported in imports_of(module)} - {own}
        assert others <= MAY_IMPORT[own], f"{module} imports {', '.join(sorted(others - MAY_IMPORT[own]))}"


def test_no_import_is_circular():
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path[path.index(module) :], module))
        if module not in done:
            for imported in imports_of(module):
                visit(imported, (*path, module))
            done.add(module)

    for module in MODULES:
        visit(module, ())
    assert done == set(MODULES)


def test_what_a_gpu_machine_runs_needs_neither_typer_nor_rich():
    """Nor does a worker in the environment of transformers 4.37."""
    reached: set[str] = set()

    def visit(module: str) -> None:
        if module not in reached:
            reached.add(module)
            for imported in imports_of(module):
                visit(imported)

    for module in ("benchmarks.gpu.command", "benchmarks.gpu.roofline", "benchmarks.tools.aot_table", "benchmarks.measure.worker"):
        visit(module)
    for module in reached:
        for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & {"typer", "rich"}, module
