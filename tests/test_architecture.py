"""The walls of the house: who may import whom (docs/design.md, section 2), and what an import costs."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import bertfast

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = Path(bertfast.__file__).resolve().parent

# A package may import those of its own row and of the rows below it; a name stands for everything inside it. Cycles: see below.
LAYERS = [
    ["bertfast.__main__"],
    ["bertfast.cli"],
    ["bertfast.tasks", "bertfast.text", "bertfast.compat", "bertfast.optimize", "bertfast.convert"],
    ["bertfast.modeling"],
    ["bertfast.generation"],
    ["bertfast.engine"],
    ["bertfast.quantization", "bertfast.quantized", "bertfast.fp8"],
    ["bertfast.cache", "bertfast.kv_cache", "bertfast.graph"],
    ["bertfast.batch"],
    ["bertfast.checkpoints"],
    ["bertfast.ops"],
    ["bertfast.kernels", "bertfast.runtime"],
    ["bertfast._C"],
]
EXTERNAL = {  # what only the named modules may import
    "triton": {"bertfast.kernels"},
    "typer": {"bertfast.cli"},
    "rich": {"bertfast.cli"},
    "bertfast._C": {"bertfast.runtime.native"},  # which knows whether it was built from the sources beside it
    "bertfast.kernels": {"bertfast.kernels", "bertfast.ops.cuda"},
    "h5py": {"bertfast.checkpoints"},
    "msgpack": {"bertfast.checkpoints"},
}


def sources() -> dict[str, Path]:
    """Every module of the package by its name, the Triton kernels under the name they are installed by."""
    found = {}
    for folder, name in ((PACKAGE, "bertfast"), (ROOT / "kernels" / "fused", "bertfast.kernels")):
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join([name, *(p for p in parts if p != "__init__")])] = path
    return found


SOURCES = sources()


def imports_of(module: str) -> set[str]:
    """The modules that `module` imports anywhere in its text, those under TYPE_CHECKING aside: they are not imported when it runs."""
    found = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            up = node.level - (SOURCES[module].name == "__init__.py")  # a package's own dots start inside of it
            package = ".".join(module.split(".")[: -up or None]) if node.level else ""
            source = ".".join(filter(None, [package, node.module]))
            for alias in node.names:
                full = f"{source}.{alias.name}"
                found.add(full if full in SOURCES or full == "bertfast._C" else source)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(SOURCES[module].read_text(encoding="utf-8")))
    return found


def within(module: str, wall: str) -> bool:
    return module == wall or module.startswith(wall + ".")


def layer(module: str) -> int | None:
    matches = [(len(wall), i) for i, walls in enumerate(LAYERS) for wall in walls if within(module, wall)]
    return max(matches)[1] if matches else None


@pytest.mark.parametrize("module", sorted(SOURCES))
def test_imports_point_downwards(module):
    if module == "bertfast":
        assert not {m for m in imports_of(module) if within(m, "bertfast")}, (
            "the package itself imports nothing: its names are looked up on use"
        )
        return
    own = layer(module)
    assert own is not None, f"{module} has no place in LAYERS: give it one, here and in docs/design.md"
    for imported in imports_of(module):
        if within(imported, "bertfast") and imported != "bertfast":
            below = layer(imported)
            assert below is not None, f"{imported} has no place in LAYERS"
            assert below >= own, f"{module} imports {imported}, which lies above it"
        for name, allowed in EXTERNAL.items():
            if within(imported, name):
                assert any(within(module, a) for a in allowed), f"{module} imports {imported}; only {', '.join(sorted(allowed))} may"
        assert imported.split(".")[0] not in ("tests", "benchmarks"), f"{module} imports {imported}"


def test_no_import_goes_round_in_a_circle():
    order: list[str] = []

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path[path.index(module) :], module))
        if module not in order:
            for imported in imports_of(module) & SOURCES.keys():
                visit(imported, (*path, module))
            order.append(module)

    for module in SOURCES:
        visit(module, ())
    assert sorted(order) == sorted(SOURCES)


def test_kernels_stand_alone():
    for module in SOURCES:
        if within(module, "bertfast.kernels"):
            strangers = {m for m in imports_of(module) if within(m, "bertfast") and not within(m, "bertfast.kernels")}
            assert not strangers, f"{module} imports {strangers}: a kernel can be lifted out and read alone"


def python(code: str, *, cwd: Path | None = None, **environment: str) -> str:
    """What `code` prints in a fresh interpreter; its failure is ours."""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd, env={**os.environ, **environment}, timeout=300, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_import_brings_in_nothing_heavy():
    loaded = python("import sys, bertfast, bertfast.cli.app; dir(bertfast); print(*sorted({m.split('.')[0] for m in sys.modules}))").split()
    assert "bertfast" in loaded
    assert not {"torch", "transformers", "numpy", "triton", "tensorflow", "jax", "h5py", "msgpack"} & set(loaded)


def test_every_public_name_is_there():
    assert set(bertfast.__all__) <= set(dir(bertfast))
    for name in bertfast.__all__:
        assert getattr(bertfast, name) is not None
    assert bertfast.BertForCausalLM is bertfast.BertLMHeadModel
    with pytest.raises(AttributeError, match="module 'bertfast' has no attribute 'BertForNothing'"):
        bertfast.BertForNothing  # noqa: B018


def test_type_checkers_see_the_same_names():
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    seen = set()
    for node in block.body:
        if isinstance(node, ast.ImportFrom):
            seen |= {alias.asname for alias in node.names}
        elif isinstance(node, ast.Assign):
            seen |= {target.id for target in node.targets}
        elif isinstance(node, ast.AnnAssign):
            seen.add(node.target.id)
    assert seen == set(bertfast.__all__)


def test_optimize_is_the_function_whoever_imports_its_module():
    code = "import bertfast.optimize; from bertfast.optimize import restore; assert callable(bertfast.optimize)"
    python(code + "; assert bertfast.restore is restore")


def test_output_classes_are_all_that_transformers_bert_returns():
    from transformers.models.bert import modeling_bert

    used = {name for name in vars(modeling_bert) if name.endswith(("Output", "Attentions", "Predictor")) and name[0].isupper()}
    used -= {name for name in used if name in ("BertOutput", "BertSelfOutput", "ModelOutput")}
    assert used
    assert used <= set(bertfast.__all__)
    for name in used:
        assert getattr(bertfast, name) is getattr(modeling_bert, name)


def test_kernels_folder_shadows_no_package():
    """Python started in the repository root must still find Hugging Face's `kernels`, not our folder of that name."""
    assert not (ROOT / "kernels" / "__init__.py").exists()
    code = """
import sys, importlib.util
sys.path.insert(0, "")
spec = importlib.util.find_spec("kernels")
assert spec is None or spec.origin is None or "site-packages" in spec.origin, spec
import transformers.models.bert.modeling_bert
print("imported")
"""
    assert python(code, cwd=ROOT).strip() == "imported"


RUN_A_MODEL = """
import sys

class NoTriton:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "triton":
            raise ModuleNotFoundError(f"No module named {name!r} (blocked by the test)", name=name)

sys.meta_path.insert(0, NoTriton())
import torch, bertfast
config = bertfast.BertConfig(hidden_size=32, num_attention_heads=4, num_hidden_layers=2, intermediate_size=64, vocab_size=50)
model = bertfast.BertForTokenClassification(config).eval()
from bertfast.engine.eligibility import why_reference
assert why_reference(model, {}) is None
logits = model(torch.tensor([[1, 2, 3], [4, 5, 0]]), attention_mask=torch.tensor([[1, 1, 1], [1, 1, 0]])).logits
assert logits.shape == (2, 3, 2) and logits.isfinite().all()
assert not [m for m in sys.modules if m.startswith(("bertfast.kernels", "bertfast.ops.cuda"))]
print("ran")
"""


def test_works_where_triton_cannot_be_imported():
    assert python(RUN_A_MODEL).strip() == "ran"


def test_a_cpu_call_does_not_import_the_triton_kernels():
    """Even where Triton is installed. (It may be imported there all the same: torch._dynamo does so, and transformers imports that.)"""
    assert python(RUN_A_MODEL.replace("sys.meta_path.insert(0, NoTriton())", ""), CUDA_VISIBLE_DEVICES="").strip() == "ran"
