"""What docs/architecture.md promises of the package's structure."""

from __future__ import annotations

import ast
import graphlib
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(path): path for path in sorted((ROOT / "pffnet_d2").rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}


def imports(module: str) -> Iterator[str]:
    """The modules of the package that a module names in its imports, wherever they stand: also in functions, and for
    types alone."""
    package = module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(TREES[module]):
        names = []
        if isinstance(node, ast.Import):
            names = [each.name for each in node.names]
        elif isinstance(node, ast.ImportFrom):
            source = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            names = [inner if (inner := f"{source}.{each.name}") in MODULES else source for each in node.names]
        yield from (name for name in names if name in MODULES)


IMPORTS = {module: set(imports(module)) for module in MODULES}


def rooms() -> list[set[str]]:
    """The rows of the table of rooms, from the top: the modules and packages that each names."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = page[page.index("## Rooms") :]
    rows = [re.findall(r"`([\w/.]+)`", line.split("|")[1]) for line in table.splitlines() if line.startswith("| `")]
    return [{name_of(ROOT / "pffnet_d2" / name) for name in row} for row in rows]


def test_imports_form_no_circle() -> None:
    assert "pffnet_d2.inference.predictor" in IMPORTS["pffnet_d2.inference.worker"]
    list(graphlib.TopologicalSorter(IMPORTS).static_order())  # raises CycleError, which names them


def test_imports_run_downward() -> None:
    """Within the table of rooms, never up."""
    floors = {room: floor for floor, row in enumerate(rooms()) for room in row}
    parts = {module: module.split(".") for module in MODULES}
    found = {module: floors.get(".".join(part[:2]), floors["pffnet_d2"]) for module, part in parts.items()}
    assert {".".join(part[:2]) for part in parts.values()} == floors.keys()
    up = [f"{module} imports {name}" for module in MODULES for name in IMPORTS[module] if found[name] < found[module]]
    assert not up


def test_files_and_functions_are_short() -> None:
    """Constructors of registered networks take one argument per setting."""
    assert not [name for name, path in MODULES.items() if len(path.read_text(encoding="utf-8").splitlines()) > 450]
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if not isinstance(node, ast.FunctionDef):
                continue
            if any(isinstance(each, ast.Name) and each.id == "configurable" for each in node.decorator_list):
                continue
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            given = [each for each in arguments if each.arg not in ("self", "cls")]
            assert len(given) <= 8, f"{name}.{node.name}"
            assert (node.end_lineno or 0) - node.lineno < 60, f"{name}.{node.name}"
