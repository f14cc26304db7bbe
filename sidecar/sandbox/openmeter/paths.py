"""Reads values out of an event's data as ClickHouse does, which computes OpenMeter's queries.

Source: ``JSON_VALUE`` and ``toFloat64OrNull`` as ``openmeter/streaming/clickhouse/meter_query.go`` uses them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable

PATH_CHARS_MAX = 256
NUMBER_CHARS_MAX = 400
MISSING = object()

_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_STEP = re.compile(r"\.([A-Za-z_][A-Za-z0-9_-]*)|\[\"([^\"\]]+)\"\]|\['([^'\]]+)'\]|\[([0-9]{1,6})\]")


class PathError(ValueError):
    """A JSONPath is not understood."""


def path_steps(path: str) -> tuple[str | int, ...]:
    """A JSONPath as names and indexes. Raises :class:`PathError` for one that is not understood."""
    steps: list[str | int] = []
    at = 1
    while path[:1] == "$" and at < len(path) <= PATH_CHARS_MAX:
        match = _STEP.match(path, at)
        if match is None:
            break
        name = match.group(1) or match.group(2) or match.group(3)
        steps.append(name if name else int(match.group(4)))
        at = match.end()
    if not steps or at != len(path):
        raise PathError(f"invalid JSONPath: {path[:80]!r}")
    return tuple(steps)


def path_reader(path: str) -> Callable[[object], str]:
    """Reads parsed data as ClickHouse's ``JSON_VALUE`` does: text; "" for what is missing or no scalar."""
    find = _finder(path)
    return lambda data: _scalar_text(find(data))


def number_reader(path: str) -> Callable[[object], int | float | None]:
    """Reads parsed data as ``toFloat64OrNull(JSON_VALUE(…))`` does; whole numbers stay exact."""
    find = _finder(path)

    def read(data: object) -> int | float | None:
        value = find(data)
        if type(value) is int:
            return value
        return value if type(value) is float else parse_number(_scalar_text(value))

    return read


def parse_number(text: str) -> int | float | None:
    """A value as a number; None if it is none, or none that is finite. Whole ones stay exact."""
    if not _NUMBER.fullmatch(text) or len(text) > NUMBER_CHARS_MAX:
        return None
    if text.isdigit():
        return int(text)
    value = float(text)
    return value if math.isfinite(value) else None


def look_up(steps: tuple[str | int, ...], data: object) -> object:
    """The value at ``steps`` in parsed data, or ``MISSING``."""
    value = data
    for step in steps:
        if isinstance(step, str) and isinstance(value, dict):
            value = value.get(step, MISSING)
        elif isinstance(step, int) and isinstance(value, list) and step < len(value):
            value = value[step]
        else:
            return MISSING
    return value


def _finder(path: str) -> Callable[[object], object]:
    """Nearly every path is a single name, and a query looks it up for every event."""
    steps = path_steps(path)
    name = steps[0]
    if len(steps) > 1 or isinstance(name, int):
        return lambda data: look_up(steps, data)
    return lambda data: data.get(name, MISSING) if isinstance(data, dict) else MISSING


def _scalar_text(value: object) -> str:
    if isinstance(value, str):
        return value
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        # Go passes every number through a float64 and writes a whole one without a fraction.
        number = float(value)
        return str(int(number)) if number.is_integer() and abs(number) < 1e21 else repr(number)
    return ""
