"""A build says of itself whether its request path is compiled, and the sources alone decide it."""

from __future__ import annotations

import ast
import os
from pathlib import Path

import pytest

import sidecar.gateway.exchange.exchange
import sidecar.ledger.client.link
from sidecar import __version__
from sidecar.basics.build import describe, request_path

ROOT = Path(__file__).parents[2]
HOOK = (ROOT / "hatch_build.py").read_text()
REQUEST_PATH: tuple[str, ...] = next(
    ast.literal_eval(node.value)
    for node in ast.parse(HOOK).body
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "REQUEST_PATH"
)
"""What is compiled; the hook itself needs hatchling, which only a build has."""


def test_what_a_build_says_of_itself_is_what_runs() -> None:
    modules = (sidecar.gateway.exchange.exchange, sidecar.ledger.client.link)
    compiled = [not (module.__file__ or "").endswith(".py") for module in modules]
    assert compiled == [request_path() == "compiled"] * 2
    assert describe() == f"{__version__} ({request_path()})"
    if os.environ.get("QUOTA_SIDECAR_EXPECT_COMPILED"):
        assert request_path() == "compiled"


def test_every_module_that_is_to_be_compiled_exists() -> None:
    assert not [path for path in REQUEST_PATH if not (ROOT / path).is_file()]


@pytest.mark.parametrize("path", REQUEST_PATH)
def test_compiled_modules_take_their_types_from_the_project_alone(path: str) -> None:
    """A class of another package as a base would make the outcome depend on whether its types are installed."""
    tree = ast.parse((ROOT / path).read_text())
    foreign = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module
        and node.module.split(".")[0] in {"redis", "pydantic", "structlog", "aiohttp", "httpx", "msgpack", "orjson"}
        for alias in node.names
    }  # fmt: skip
    bases = {base.id for node in ast.walk(tree) if isinstance(node, ast.ClassDef) for base in node.bases
             if isinstance(base, ast.Name)}  # fmt: skip
    assert not foreign & bases


def test_the_build_consults_no_installed_package() -> None:
    assert '"--no-site-packages"' in HOOK
