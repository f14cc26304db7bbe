"""Reads OpenMeter's answers: rows of usage, and meters. Without I/O; whatever is not as it must be is an error."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import Any, Final

GROUP_KEY: Final = "metric"
"""The group-by that a meter must have: its events' ledger metric."""

UNITS_MAX: Final = 2**53
"""v1 answers float64: beyond this neighbouring whole numbers look the same."""


class QueryError(Exception):
    """OpenMeter gave no usable answer. ``transient``: it may give one later, with nothing changed."""

    def __init__(self, message: str, *, transient: bool) -> None:
        super().__init__(message)
        self.transient = transient


@dataclass(frozen=True, slots=True)
class UsageRow:
    """Units of one subject in one window."""

    subject: str
    window_start_ms: int
    units: int


@dataclass(frozen=True, slots=True)
class Meter:
    """Which events count and what of them: OpenMeter's ``Meter``. Paths begin at the event's data: ``$.units``."""

    slug: str
    aggregation: str
    value_property: str | None
    event_type: str
    group_by: Mapping[str, str] = field(default_factory=dict)


def parse_usage(document: Any, metric: str, from_ms: int, to_ms: int, step_ms: int | None) -> tuple[UsageRow, ...]:
    """The rows of ``metric`` in an answer for ``from_ms`` until before ``to_ms``; ``step_ms`` None: without windows.

    Raises:
        QueryError: not transient; names what is wrong with which row.
    """
    rows = document.get("data") if isinstance(document, dict) else None
    if not isinstance(rows, list):
        raise _wrong(metric, "has no array `data`")
    found = {(row.subject, row.window_start_ms): row for row in _rows(rows, metric, from_ms, step_ms)}
    for row in found.values():
        if not from_ms <= row.window_start_ms < to_ms or (step_ms and row.window_start_ms % step_ms):
            raise _wrong(metric, f"has a window that was not asked for, of subject {row.subject[:80]!r}")
    return tuple(found.values())


def _rows(rows: list[Any], metric: str, from_ms: int, step_ms: int | None) -> Iterator[UsageRow]:
    seen: set[tuple[str, int]] = set()
    for row in rows:
        groups = row.get("groupBy") if isinstance(row, dict) else None
        if not isinstance(groups, dict) or GROUP_KEY not in groups:
            raise _wrong(
                metric, f"has a row without group {GROUP_KEY}: the meter needs groupBy {GROUP_KEY}: $.{GROUP_KEY}"
            )
        if groups[GROUP_KEY] != metric:
            continue
        subject = row.get("subject")
        if not isinstance(subject, str) or not subject:
            raise _wrong(metric, "has a row without subject")
        start_ms = from_ms if step_ms is None else _instant_ms(row.get("windowStart"), metric)
        if (subject, start_ms) in seen:
            raise _wrong(metric, f"has two rows of one window of subject {subject[:80]!r}")
        seen.add((subject, start_ms))
        yield UsageRow(subject, start_ms, _units(row.get("value"), metric, subject))


def _units(value: Any, metric: str, subject: str) -> int:
    whole = type(value) is int or (type(value) is float and value.is_integer())
    if not whole or not 0 <= value <= UNITS_MAX:
        raise _wrong(metric, f"has {str(value)[:40]} for subject {subject[:80]!r}, which is no count of units")
    return int(value)


def _instant_ms(text: Any, metric: str) -> int:
    instant_ms = _parsed_ms(text) if isinstance(text, str) and len(text) <= 40 else None
    if instant_ms is None:
        raise _wrong(metric, f"has windowStart {str(text)[:40]!r}, which is no time")
    return instant_ms


@lru_cache(maxsize=4096)  # all subjects have the same windows
def _parsed_ms(text: str) -> int | None:
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        return None
    return None if instant.tzinfo is None else round(instant.timestamp() * 1000)


def _wrong(metric: str, what: str) -> QueryError:
    return QueryError(f"OpenMeter's answer for meter {metric} {what}", transient=False)


def parse_meter(document: Any) -> Meter:
    """A meter as OpenMeter shows it.

    Raises:
        QueryError: not transient; it is none.
    """
    given = document if isinstance(document, dict) else {}
    texts = [given.get(name) for name in ("slug", "aggregation", "eventType")]
    value_property, group_by = given.get("valueProperty"), given.get("groupBy") or {}
    if not all(isinstance(text, str) for text in texts) or not isinstance(value_property, str | None):
        raise QueryError("OpenMeter's answer is not a meter", transient=False)
    if not isinstance(group_by, dict) or not all(isinstance(path, str) for path in group_by.values()):
        raise QueryError("OpenMeter's answer is not a meter: groupBy", transient=False)
    slug, aggregation, event_type = map(str, texts)
    return Meter(slug, aggregation, value_property, event_type, group_by)


def meter_as_json(meter: Meter) -> dict[str, object]:
    """OpenMeter's ``MeterCreate``."""
    body: dict[str, object] = {
        "slug": meter.slug,
        "aggregation": meter.aggregation,
        "eventType": meter.event_type,
        "groupBy": dict(meter.group_by),
    }
    if meter.value_property is not None:
        body["valueProperty"] = meter.value_property
    return body
