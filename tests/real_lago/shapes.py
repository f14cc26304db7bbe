"""The shape of JSON: keys, types and text formats, and how one differs from another."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

_FORMATS = {
    "instant": r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ",
    "instant with milliseconds": r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z",
    "instant with an offset": r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d",
    "date": r"\d{4}-\d\d-\d\d",
    "uuid": r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}",
    "decimal": r"-?\d+\.\d+",
    "integer in text": r"-?\d+",
}
FREE = frozenset(("properties", "amount_details", "values", "grouped_by"))
"""Objects whose keys depend on the charge."""


@dataclass
class Shape:
    """What was seen at one place. ``seen``: how many objects; ``keys``: in how many of them a key was."""

    types: set[str] = field(default_factory=set)
    seen: int = 0
    keys: dict[str, int] = field(default_factory=dict)
    below: dict[str, Shape] = field(default_factory=dict)

    def add(self, value: Any, name: str = "") -> None:
        self.types.add(type_of(value))
        if isinstance(value, dict) and name not in FREE:
            self.seen += 1
            for key, inner in value.items():
                self.keys[key] = self.keys.get(key, 0) + 1
                self.below.setdefault(key, Shape()).add(inner, key)
        elif isinstance(value, list):
            for inner in value:
                self.below.setdefault("[]", Shape()).add(inner)


def type_of(value: Any) -> str:
    """A type of JSON, or for texts the first format that fits."""
    if isinstance(value, str):
        return next((name for name, pattern in _FORMATS.items() if re.fullmatch(pattern, value)), "text")
    names = {type(None): "null", bool: "boolean", int: "integer", float: "number", list: "list", dict: "object"}
    return names[type(value)]


def shape_of(values: Iterable[Any]) -> Shape:
    shape = Shape()
    for value in values:
        shape.add(value)
    return shape


def differences(real: Shape, ours: Shape, at: str = "") -> Iterator[str]:
    """Where ``ours`` has what ``real`` never had, or lacks what it always had.

    A place that was always null in ``real`` may hold anything, an empty list may hold anything.
    """
    allowed = real.types | (
        {"instant", "date", "uuid", "decimal", "integer in text"} if "text" in real.types else set()
    )
    other = ours.types - allowed
    if other and real.types != {"null"}:
        yield f"{at or '.'}: {' or '.join(sorted(other))} instead of {' or '.join(sorted(real.types))}"
    if real.seen and ours.seen:
        for key in sorted(ours.keys.keys() - real.keys.keys()):
            yield f"{at}.{key}: is not in Lago's"
        for key, count in sorted(real.keys.items()):
            if count == real.seen and ours.keys.get(key, 0) < ours.seen:
                yield f"{at}.{key}: is missing"
    for key in sorted(real.below.keys() & ours.below.keys()):
        yield from differences(real.below[key], ours.below[key], at + key if key == "[]" else f"{at}.{key}")
