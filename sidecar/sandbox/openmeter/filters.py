"""OpenMeter's string filters: ``{"$eq": "GET"}``, ``{"$in": ["GET", "HEAD"]}``, ``{"$and": […]}``.

Source: ``FilterString`` of the OpenAPI document, ``pkg/filter``; compared as ClickHouse does, byte by byte.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from sidecar.sandbox.openmeter.openmeter_wire import Problem

DEPTH_MAX = 8
ITEMS_MAX = 100
PATTERN_CHARS_MAX = 256

Test = Callable[[str], bool]


def string_test(condition: object, depth: int = 0) -> Test | None:
    """A filter as a test; None for an empty one, which every text passes. Raises :class:`Problem` 400."""
    if not isinstance(condition, dict) or depth > DEPTH_MAX:
        raise Problem(400, "invalid filter: not an object, or nested too deeply")
    given = {name: value for name, value in condition.items() if value is not None}
    if not given:
        return None
    if len(given) > 1:
        raise Problem(400, "invalid filter: only one filter can be set")
    name, value = next(iter(given.items()))
    if name in ("$and", "$or", "$in", "$nin"):
        if not isinstance(value, list) or len(value) > ITEMS_MAX:
            raise Problem(400, f"invalid filter: {name} takes an array of at most {ITEMS_MAX} items")
        return _any_of(name, value) if name in ("$in", "$nin") else _combined(name, value, depth)
    if name not in _OPERATORS or not isinstance(value, str) or len(value) > PATTERN_CHARS_MAX:
        raise Problem(400, f"invalid filter: {str(name)[:20]} is unknown, or does not take that value")
    return _OPERATORS[name](value)


def _any_of(name: str, values: list[object]) -> Test:
    if not all(isinstance(value, str) for value in values):
        raise Problem(400, f"invalid filter: {name} takes an array of strings")
    allowed = frozenset(values)
    return allowed.__contains__ if name == "$in" else lambda text: text not in allowed


def _combined(name: str, conditions: list[object], depth: int) -> Test | None:
    tests = [test for item in conditions if (test := string_test(item, depth + 1)) is not None]
    if not tests:
        return None
    if name == "$and":
        return lambda text: all(test(text) for test in tests)
    return lambda text: any(test(text) for test in tests)


def _like(pattern: str) -> Test:
    """SQL LIKE: ``%`` is any text, ``_`` one character, a backslash takes the next character by its word."""
    segments = [""]
    for piece in re.findall(r"\\.|.", pattern, re.DOTALL):
        if piece == "%":
            segments.append("")
        else:
            segments[-1] += "." if piece == "_" else re.escape(piece[-1])
    first, *rest = segments
    # Atomic groups: the first place where a segment fits is as good as any, so there is nothing to go back to.
    middle = "".join(f"(?>.*?{segment})" for segment in rest[:-1])
    matcher = re.compile(f"{first}{middle}.*{rest[-1]}" if rest else first, re.DOTALL)
    return lambda text: matcher.fullmatch(text) is not None


def _not(make: Callable[[str], Test]) -> Callable[[str], Test]:
    def negated(value: str) -> Test:
        test = make(value)
        return lambda text: not test(text)

    return negated


def _ignoring_case(make: Callable[[str], Test]) -> Callable[[str], Test]:
    def lowered(value: str) -> Test:
        test = make(value.lower())
        return lambda text: test(text.lower())

    return lowered


_OPERATORS: dict[str, Callable[[str], Test]] = {
    "$eq": lambda value: lambda text: text == value,
    "$ne": lambda value: lambda text: text != value,
    "$gt": lambda value: lambda text: text > value,
    "$gte": lambda value: lambda text: text >= value,
    "$lt": lambda value: lambda text: text < value,
    "$lte": lambda value: lambda text: text <= value,
    "$like": _like,
    "$nlike": _not(_like),
    "$ilike": _ignoring_case(_like),
    "$nilike": _not(_ignoring_case(_like)),
}
