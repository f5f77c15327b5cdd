"""The rules of the house that a program can check (CONTRIBUTING.md says why they are there).

Imports run one way; the core never loads torch and its kin; no file is longer than 600 lines.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "src" / "pomona"

# A package imports from its own row and from the rows below it, never upwards.
ROWS = (
    {"__main__"},
    {"cli", "serving"},
    {"features", "evaluation", "safety"},
    {"pretraining", "posttraining", "adapters", "compression"},
    {"runtime"},
    {"data"},
    {"models"},
    {"errors", "line_chart", "owned_database", "_native"},
)
HEIGHT = {package: len(ROWS) - row for row, packages in enumerate(ROWS) for package in packages}
FACADE = "pomona"  # the package itself: it loads its parts lazily, and nothing inside imports it
FACADE_NAMES = {"__version__"}  # except for this

TRAINING = {"torch", "transformers", "peft", "trl", "accelerate", "datasets", "datatrove", "lm_eval"}
CORE = {"runtime", "models", "data", "cli", "serving"}  # nothing of it, not even inside a function
PIPELINE = ("data", "pipeline")  # blocks for datatrove: a training side of its own, not the core's

MAX_LINES = 600
SUFFIXES = {".py", ".cpp", ".h", ".hpp", ".js", ".mjs", ".sh", ".cmake"}
FOLDERS = ("src", "native", "tests", "benchmarks", "tools")


@dataclass(frozen=True)
class Import:
    """`module` as it is imported on `line`; `inside` a function, or under TYPE_CHECKING, or at the top."""

    module: str
    line: int
    inside: bool
    typing_only: bool


def imports(tree: ast.Module, package: str) -> Iterator[Import]:
    """Every import in a file of `package` (dotted, for relative imports), `from a import b` as a.b."""

    def walk(node: ast.AST, inside: bool, typing_only: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, inside, typing_only)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")
            base = ".".join(parents[: len(parents) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            for alias in node.names:
                yield Import(f"{module}.{alias.name}", node.lineno, inside, typing_only)
        elif isinstance(node, ast.If) and _is_type_checking(node.test):
            for statement in node.body:
                yield from walk(statement, inside, True)
            for statement in node.orelse:
                yield from walk(statement, inside, typing_only)
        else:
            within = inside or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            for child in ast.iter_child_nodes(node):
                yield from walk(child, within, typing_only)

    yield from walk(tree, False, False)


def _is_type_checking(test: ast.expr) -> bool:
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (
        isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING"
    )


def upward_imports(source: str, place: str) -> list[str]:
    """What breaks the direction in a file at `place` (relative to src/pomona)."""
    mine = Path(place).parts[0].removesuffix(".py")
    package = ".".join(("pomona", *Path(place).parts[:-1]))
    problems = []
    for found in imports(ast.parse(source), package):
        parts = found.module.split(".")
        if parts[0] != "pomona" or mine == "__init__":
            continue
        theirs = parts[1] if len(parts) > 1 else FACADE
        if theirs not in HEIGHT:
            if theirs in FACADE_NAMES:
                continue
            problems.append(f"{place}:{found.line}: imports {found.module}, a name of the package itself")
        elif HEIGHT[theirs] > HEIGHT[mine]:
            problems.append(f"{place}:{found.line}: {mine} imports {found.module}, which lies above it")
    return problems


def training_imports(source: str, place: str) -> list[str]:
    """Where a file of the core would load what only the extras install."""
    parts = Path(place).parts
    if any("training" in part for part in parts) or parts[:2] == PIPELINE:
        return []
    problems = []
    for found in imports(ast.parse(source), "pomona"):
        name = found.module.split(".")[0]
        if name not in TRAINING or found.typing_only:
            continue
        if not found.inside:
            problems.append(f"{place}:{found.line}: imports {name} at the top of the file")
        elif parts[0] in CORE:
            problems.append(f"{place}:{found.line}: {parts[0]} imports {name}")
    return problems


def sources() -> dict[str, str]:
    """Path below src/pomona -> text."""
    return {
        str(path.relative_to(SOURCES)): path.read_text(encoding="utf-8") for path in SOURCES.rglob("*.py")
    }


def test_the_checks_see_the_project() -> None:
    places = sources()
    assert len(places) >= 30
    assert {"cli/main.py", "runtime/engine.py", "models/config.py", "__init__.py"} <= set(places)
    crossings = {
        (Path(place).parts[0], found.module.split(".")[1])
        for place, text in places.items()
        for found in imports(ast.parse(text), "pomona")
        if found.module.startswith("pomona.")
    }
    assert {("cli", "runtime"), ("compression", "runtime"), ("runtime", "models")} <= crossings


def test_every_package_has_its_row() -> None:
    known = {path.name for path in SOURCES.iterdir() if path.is_dir() and (path / "__init__.py").is_file()}
    known |= {path.stem for path in SOURCES.glob("*.py") if path.stem != "__init__"}
    assert known <= set(HEIGHT)


def test_imports_run_one_way() -> None:
    assert [line for place, text in sources().items() for line in upward_imports(text, place)] == []


def test_packages_of_one_row_do_not_import_each_other_in_a_circle() -> None:
    edges: dict[str, set[str]] = {}
    for place, text in sources().items():
        mine = Path(place).parts[0].removesuffix(".py")
        for found in imports(ast.parse(text), ".".join(("pomona", *Path(place).parts[:-1]))):
            parts = found.module.split(".")
            if mine in HEIGHT and len(parts) > 1 and parts[0] == "pomona" and parts[1] in HEIGHT:
                edges.setdefault(mine, set()).add(parts[1])

    def reaches(start: str, goal: str, seen: set[str]) -> bool:
        return any(
            other == goal or (other not in seen and reaches(other, goal, seen | {other}))
            for other in edges.get(start, set()) - {start}
        )

    assert edges
    assert [package for package in edges if reaches(package, package, set())] == []


def test_the_core_never_loads_the_training_side() -> None:
    assert [line for place, text in sources().items() for line in training_imports(text, place)] == []


@pytest.mark.parametrize(
    ("place", "source"),
    [
        ("models/store.py", "from pomona.runtime import engine"),
        ("models/store.py", "def f():\n    import pomona.cli.main"),
        ("runtime/model.py", "from pomona import load"),
        ("runtime/model.py", "from ..compression.compress import compress"),
        ("compression/recover.py", "if TYPE_CHECKING:\n    from pomona.evaluation import perplexity"),
        ("errors.py", "import pomona.models"),
    ],
)
def test_an_upward_import_is_found(place: str, source: str) -> None:
    assert len(upward_imports(source, place)) == 1


@pytest.mark.parametrize(
    ("place", "source"),
    [
        ("cli/run.py", "from pomona.runtime.model import Model\nfrom pomona import __version__"),
        ("runtime/model.py", "from .engine import Engine\nfrom ..models.config import ModelConfig"),
        ("runtime/engine.py", "from pomona import _native"),
        ("__init__.py", "def load():\n    from pomona.runtime.model import Model"),
    ],
)
def test_a_downward_import_is_none(place: str, source: str) -> None:
    assert upward_imports(source, place) == []


@pytest.mark.parametrize(
    ("place", "source", "count"),
    [
        ("compression/recover.py", "import torch", 1),
        ("compression/recover.py", "try:\n    import torch.nn as nn\nexcept ImportError: pass", 1),
        ("compression/recover.py", "class A:\n    from transformers import AutoModel", 1),
        ("compression/recover.py", "def f():\n    import torch", 0),
        ("compression/recover.py", "if TYPE_CHECKING:\n    import torch", 0),
        ("runtime/engine.py", "def f():\n    import torch", 1),
        ("pretraining/optimizer.py", "import torch", 0),
        ("adapters/training/lora.py", "import torch", 0),
        ("data/pipeline/words.py", "import datatrove", 0),
        ("data/mixture.py", "def f():\n    import datatrove", 1),
    ],
)
def test_torch_at_the_top_of_a_core_file_is_found(place: str, source: str, count: int) -> None:
    assert len(training_imports(source, place)) == count


def test_no_file_is_longer_than_the_limit() -> None:
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*")
        if path.suffix in SUFFIXES and path.is_file()
    }
    assert len(lengths) >= 50
    assert {name: lines for name, lines in lengths.items() if lines > MAX_LINES} == {}
