"""What is logged or raised for an error of a library: words, neither its class nor its own text."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "sidecar"
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "fault_reasons.py")
LIBRARIES = {
    "CLIENT_ERRORS", "VALKEY_ERRORS", "RedisError", "RedisClusterException", "ResponseError", "OSError", "SSLError",
    "ClientError", "HTTPError",
}  # fmt: skip
"""Errors whose texts are not ours."""


def faults_of(source: str) -> Iterator[int]:
    """Lines that show the class, or in a handler of library errors the text, of an error."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.expr) and _shows_kind(node):
            yield node.lineno
        elif isinstance(node, ast.ExceptHandler) and node.name and node.type and LIBRARIES & _names(node.type):
            yield from _texts(node)


def _shows_kind(node: ast.expr) -> bool:
    if isinstance(node, ast.Call):
        return _called(node) in (("repr", "error"), ("repr", "result"))
    return isinstance(node, ast.Attribute) and node.attr == "__name__" and _is_type_of_error(node.value)


def _texts(handler: ast.ExceptHandler) -> Iterator[int]:
    looked_at = [node.value for node in ast.walk(handler) if isinstance(node, ast.Attribute)]
    for node in ast.walk(handler):
        if isinstance(node, ast.Call) and _name(node.func) == "server_answer":
            looked_at += node.args
    for node in ast.walk(handler):
        if isinstance(node, ast.FormattedValue):
            shows = _name(node.value) == handler.name
        else:
            shows = isinstance(node, ast.Call) and _called(node) == ("str", handler.name) and node not in looked_at
        if shows:
            assert isinstance(node, ast.expr)
            yield node.lineno


def _called(call: ast.Call) -> tuple[str, str]:
    """Function and argument, where these are names."""
    return _name(call.func), _name(call.args[0]) if len(call.args) == 1 else ""


def _is_type_of_error(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and _name(node.func) == "type" and "error" in ast.unparse(node.args[0])


def _name(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else ""


def _names(node: ast.expr) -> set[str]:
    return {each.id if isinstance(each, ast.Name) else each.attr for each in ast.walk(node)
            if isinstance(each, ast.Name | ast.Attribute)}  # fmt: skip


def test_the_texts_of_libraries_are_in_no_log_line_and_in_no_message() -> None:
    found = [f"{path.relative_to(PACKAGE)}:{line}" for path in FILES for line in faults_of(path.read_text())]
    assert found == []


@pytest.mark.parametrize(
    "handler",
    [
        'except CLIENT_ERRORS as error:\n    raise Unavailable(f"gone: {error}")',
        'except (TimeoutError, *VALKEY_ERRORS) as error:\n    log.warning("gone", reason=str(error))',
        'except ValueError as error:\n    log.warning("gone", reason=f"{type(error).__name__}")',
        'except ValueError as error:\n    log.warning("gone", reason=repr(error)[:200])',
    ],
)
def test_such_a_text_is_found(handler: str) -> None:
    assert len([*faults_of(f"try:\n    call()\n{handler}")]) == 1
