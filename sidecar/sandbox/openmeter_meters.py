"""Meters: which events count, what of them is summed, and by which of their values usage can be told apart.

Source: ``openmeter/meter/meter.go`` (rules), ``openmeter/streaming/clickhouse/meter_query.go`` (what a path means).
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, get_args

Aggregation = Literal["SUM", "COUNT", "UNIQUE_COUNT", "AVG", "MIN", "MAX", "LATEST"]
AGGREGATIONS: tuple[str, ...] = get_args(Aggregation)

SLUG = re.compile(r"[a-z0-9]+(?:_[a-z0-9]+)*")
SLUG_CHARS_MAX = 64
PATH_CHARS_MAX = 256
_GROUP_KEY = re.compile(r"[a-zA-Z_][0-9a-zA-Z_]*")
_STEP = re.compile(r"\.([A-Za-z_][A-Za-z0-9_-]*)|\[\"([^\"\]]+)\"\]|\['([^'\]]+)'\]|\[([0-9]{1,6})\]")


class MeterError(ValueError):
    """A meter's definition breaks a rule. The message says which."""


def _no_groups() -> Mapping[str, str]:
    return {}


@dataclass(frozen=True, slots=True)
class Meter:
    """A meter. Raises :class:`MeterError` for what OpenMeter would refuse.

    Paths are JSONPath rooted at the event's ``data``: ``$.endpoint``, never ``$.data.endpoint``. Understood are
    names, ``["quoted names"]`` and ``[indexes]``. A meter takes every event of its ``event_type``.
    """

    slug: str
    event_type: str
    aggregation: Aggregation
    value_property: str | None = None
    group_by: Mapping[str, str] = field(default_factory=_no_groups)
    name: str = ""
    description: str = ""
    event_from: datetime | None = None

    def __post_init__(self) -> None:
        if not SLUG.fullmatch(self.slug) or len(self.slug) > SLUG_CHARS_MAX:
            raise MeterError(f"meter slug {self.slug[:80]!r} must be lower-case words joined by underscores")
        if not self.event_type:
            raise MeterError(f"{self.slug}: meter event type is required")
        if self.aggregation not in AGGREGATIONS:
            raise MeterError(f"{self.slug}: invalid aggregation type: {self.aggregation}")
        if (self.value_property is None) != (self.aggregation == "COUNT"):
            rule = "not allowed when" if self.aggregation == "COUNT" else "required when the aggregation is not"
            tail = "the aggregation is count" if self.aggregation == "COUNT" else "count"
            raise MeterError(f"{self.slug}: meter value property is {rule} {tail}")
        if self.value_property is not None:
            path_steps(self.value_property)
        for key, path in self.group_by.items():
            if not path.startswith("$"):
                raise MeterError(f"{self.slug}: meter group by value must start with $ for key {key}")
            if not _GROUP_KEY.fullmatch(key):
                rule = "only alphanumeric and underscore characters are allowed"
                raise MeterError(f"{self.slug}: meter group by key {key} is invalid, {rule}")
            if path == self.value_property:
                raise MeterError(f"{self.slug}: meter group by value {key} cannot be the same as value property")
            path_steps(path)

    @property
    def id(self) -> str:
        """In the shape of a ULID, and the same on every start: a digest of the slug."""
        digest = base64.b32hexencode(hashlib.sha256(self.slug.encode()).digest()).decode()
        # Crockford's alphabet leaves out I, L, O and U; base 32 hex goes up to V.
        return "01" + digest[:24].translate(str.maketrans("ILOU", "WXYZ"))


#: What the gateway's events need: units used, and requests made.
DEFAULT_METERS = (
    Meter(
        slug="api_calls",
        event_type="api.call",
        aggregation="SUM",
        value_property="$.units",
        group_by={
            "endpoint": "$.endpoint",
            "method": "$.method",
            "status_code": "$.status_code",
            "metric": "$.metric",
        },
    ),
    Meter(
        slug="api_requests",
        event_type="api.call",
        aggregation="COUNT",
        group_by={
            "endpoint": "$.endpoint",
            "method": "$.method",
            "status_code": "$.status_code",
            "metric": "$.metric",
        },
    ),
)


def path_steps(path: str) -> tuple[str | int, ...]:
    """A JSONPath as names and indexes. Raises :class:`MeterError` for one that is not understood."""
    steps: list[str | int] = []
    at = 1
    while path[:1] == "$" and at < len(path) <= PATH_CHARS_MAX:
        match = _STEP.match(path, at)
        if match is None:
            break
        index = match.group(4)
        steps.append(int(index) if index is not None else next(g for g in match.groups()[:3] if g is not None))
        at = match.end()
    if not steps or at != len(path):
        raise MeterError(f"invalid JSONPath: {path[:80]!r}")
    return tuple(steps)


def path_reader(path: str) -> Callable[[object], str]:
    """What ClickHouse's ``JSON_VALUE`` answers for ``path`` in parsed data: text, "" if missing or not a scalar."""
    steps = path_steps(path)

    def read(data: object) -> str:
        value = data
        for step in steps:
            if isinstance(step, str) and isinstance(value, dict):
                value = value.get(step, _MISSING)
            elif isinstance(step, int) and isinstance(value, list) and step < len(value):
                value = value[step]
            else:
                return ""
        return _scalar_text(value)

    return read


_MISSING = object()


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
