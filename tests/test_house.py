"""The house rules: files under 400 lines, functions under 60, no circular imports, nothing unpickled, light imports."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "upslope"
FILES = sorted(SOURCE.rglob("*.py"))


def test_files_have_at_most_400_lines():
    long = {str(file.relative_to(SOURCE)): n for file in FILES if (n := len(file.read_text().splitlines())) > 400}
    assert not long


def test_functions_have_at_most_60_lines():
    long = [
        f"{file.relative_to(SOURCE)}:{node.name} {node.end_lineno - node.lineno + 1}"
        for file in FILES
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno - node.lineno + 1 > 60
    ]
    assert not long


def imports_of(file: Path) -> set[str]:
    """Modules of the package that a module imports at its top level, but for type checking."""
    found = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("upslope"):
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("upslope")}
    return found


def test_no_circular_imports():
    names = {
        ".".join(("upslope", *file.relative_to(SOURCE).with_suffix("").parts)).removesuffix(".__init__"): file
        for file in FILES
    }
    graph = {
        name: {other for other in imports_of(file) if other in names and other != name} for name, file in names.items()
    }
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, f"circular: {' -> '.join((*path, name))}"
        if name not in done:
            for other in graph[name] - {"upslope"}:
                visit(other, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_nothing_is_unpickled_but_what_a_reward_worker_gets_from_its_parent():
    for file in FILES:
        if file.parent.name == "tasks" and file.stem in ("child", "worker", "workers"):
            continue  # the pipe from the trainer to its own child
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Attribute) and node.attr == "load" and isinstance(node.value, ast.Name):
                assert node.value.id not in ("torch", "pickle", "joblib"), f"{file}: {node.value.id}.load"
            if isinstance(node, ast.Import):
                assert "pickle" not in [alias.name for alias in node.names], f"{file} imports pickle"


@pytest.mark.parametrize(
    "statement", ["import upslope", "import upslope; upslope.list_methods(); upslope.find('grpo')"]
)
def test_import_stays_light(statement):
    heavy = "torch", "transformers", "numpy", "datasets", "reasoning_gym", "rich"
    program = f"{statement}; import sys; print([name for name in {heavy} if name in sys.modules])"
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"
