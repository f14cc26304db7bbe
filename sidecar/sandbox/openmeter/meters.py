"""Meters: which events count, what of them is summed, and by which of their values usage can be told apart.

Source: ``openmeter/meter/meter.go`` (rules), ``openmeter/meter/parse.go`` (what is wrong with an event's value).
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, get_args

from sidecar.sandbox.openmeter.paths import MISSING, PathError, look_up, parse_number, path_steps

Aggregation = Literal["SUM", "COUNT", "UNIQUE_COUNT", "AVG", "MIN", "MAX", "LATEST"]
AGGREGATIONS: tuple[str, ...] = get_args(Aggregation)

SLUG = re.compile(r"[a-z0-9]+(?:_[a-z0-9]+)*")
SLUG_CHARS_MAX = 64
_GROUP_KEY = re.compile(r"[a-zA-Z_][0-9a-zA-Z_]*")


class MeterError(ValueError):
    """A meter's definition breaks a rule. The message says which."""


def _nothing() -> Mapping[str, str]:
    return {}


@dataclass(frozen=True, slots=True)
class Meter:
    """A meter. Raises :class:`MeterError` for what OpenMeter would refuse.

    Paths are JSONPath rooted at the event's ``data``: ``$.endpoint``, never ``$.data.endpoint``. Understood
    are names, ``["quoted names"]`` and ``[indexes]``. A meter takes every event of its ``event_type``: events of
    several ledger metrics are added up, unless a query groups or filters by ``metric``.
    """

    slug: str
    event_type: str
    aggregation: Aggregation
    value_property: str | None = None
    group_by: Mapping[str, str] = field(default_factory=_nothing)
    name: str = ""
    description: str = ""
    event_from: datetime | None = None
    metadata: Mapping[str, str] = field(default_factory=_nothing)

    def __post_init__(self) -> None:
        if not SLUG.fullmatch(self.slug) or len(self.slug) > SLUG_CHARS_MAX:
            raise MeterError(f"meter slug {self.slug[:80]!r} must be lower-case words joined by underscores")
        if not self.event_type:
            raise MeterError(f"{self.slug}: meter event type is required")
        if self.aggregation not in AGGREGATIONS:
            raise MeterError(f"{self.slug}: invalid aggregation type: {self.aggregation}")
        if self.aggregation == "COUNT":
            if self.value_property is not None:
                rule = "not allowed when the aggregation is count"
                raise MeterError(f"{self.slug}: meter value property is {rule}")
        elif self.value_property is None:
            rule = "required when the aggregation is not count"
            raise MeterError(f"{self.slug}: meter value property is {rule}")
        else:
            self._check_path(self.value_property)
        for key, path in self.group_by.items():
            if not path.startswith("$"):
                raise MeterError(f"{self.slug}: meter group by value must start with $ for key {key}")
            if not _GROUP_KEY.fullmatch(key):
                rule = "only alphanumeric and underscore characters are allowed"
                raise MeterError(f"{self.slug}: meter group by key {key} is invalid, {rule}")
            if path == self.value_property:
                rule = "cannot be the same as value property"
                raise MeterError(f"{self.slug}: meter group by value {key} {rule}")
            self._check_path(path)

    def _check_path(self, path: str) -> None:
        try:
            path_steps(path)
        except PathError as error:
            raise MeterError(f"{self.slug}: {error}") from None

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


def value_error(meter: Meter, data: object) -> str | None:
    """Why an event of the meter's type adds nothing to it; None if it does."""
    if meter.value_property is None:
        return None
    if data is None:
        return "invalid event: null and missing value property"
    value = look_up(path_steps(meter.value_property), data)
    if value is MISSING:
        return f'invalid event: missing value property: "{meter.value_property}"'
    if value is None:
        return "invalid event: value cannot be null"
    if meter.aggregation == "UNIQUE_COUNT":
        return None
    if isinstance(value, str):
        number = parse_number(value)
        return f"invalid event: value cannot be parsed as float64: {value[:80]}" if number is None else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return f"invalid event: unsupported value property type: {type(value).__name__}"
    return None
