"""Imports point one way: a package imports only what stands below it, and its file names tell it apart."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "sidecar"
LAYERS = (
    {"__main__"},
    {"cli"},
    {"app"},
    {"gateway", "controlplane", "kubernetes", "sandbox"},
    {"billing"},
    {"metering"},
    {"identity", "ledger"},
    {"valkey"},
    {"config"},
    {"basics"},
)
"""From the top: a package may import those in the sets below its own, and none beside it."""
NEVER = {"gateway": {"billing", "metering"}}
"""A gateway debits and forwards; what becomes of the events, and where prices come from, is not its concern."""
SHARED_NAMES = {"__init__", "settings", "metrics", "errors"}


def modules() -> dict[str, Path]:
    """Every module by its dotted name below ``sidecar``."""
    found = {}
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports(path: Path) -> Iterator[str]:
    """The modules that a file imports anywhere, also in functions and for type checkers alone."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "sidecar":
            base = ".".join(node.module.split(".")[1:])
            for alias in node.names:
                below = f"{base}.{alias.name}" if base else alias.name
                yield below if below in MODULES else base
        elif isinstance(node, ast.Import):
            yield from (a.name.removeprefix("sidecar.") for a in node.names if a.name.startswith("sidecar."))
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"


GRAPH = {name: sorted({i for i in imports(path) if i and i != name}) for name, path in MODULES.items()}


def top(module: str) -> str:
    return module.split(".")[0]


def test_every_package_has_its_layer() -> None:
    assert {top(name) for name in MODULES if name} == set().union(*LAYERS)


def test_a_package_imports_only_from_layers_below() -> None:
    rank = {package: number for number, layer in enumerate(LAYERS) for package in layer}
    wrong = [
        f"{module} imports {imported}"
        for module, below in GRAPH.items()
        for imported in below
        if module
        and top(module) != top(imported)
        and (rank[top(imported)] <= rank[top(module)] or top(imported) in NEVER.get(top(module), ()))
    ]
    assert not wrong


def test_no_modules_import_each_other_in_a_circle() -> None:
    left = {name: set(below) for name, below in GRAPH.items()}
    while free := {name for name, below in left.items() if not below & left.keys()}:
        for name in free:
            del left[name]
    circle = {name: sorted(below & left.keys()) for name, below in left.items()}
    assert not circle


@pytest.mark.parametrize("package", sorted(set().union(*LAYERS) - {"__main__"}))
def test_a_file_name_means_one_file_within_its_package(package: str) -> None:
    names = Counter(path.stem for path in (ROOT / package).rglob("*.py"))
    assert not {name: count for name, count in names.items() if count > 1 and name not in SHARED_NAMES}
