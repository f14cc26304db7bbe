"""Reads OpenMeter's answers: rows of usage, and meters. Without I/O; whatever is not as it must be is an error."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
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


class AnswerTooLarge(QueryError):
    """OpenMeter's answer has more bytes than are read. One that asks for less may get one."""

    def __init__(self, bytes_max: int) -> None:
        super().__init__(f"OpenMeter's answer has more than {bytes_max} bytes", transient=False)


@dataclass(frozen=True, slots=True)
class UsageRow:
    """Units of one subject in one window. ``fault``: why the row says nothing; then it concerns all that was asked for
    of this subject, since its window may be wrong too."""

    subject: str
    window_start_ms: int
    units: int
    fault: str = ""


@dataclass(frozen=True, slots=True)
class Meter:
    """Which events count and what of them: OpenMeter's ``Meter``. Paths begin at the event's data: ``$.units``.

    ``event_from_ms``: events of before do not count; None: all do. ``name`` and ``description`` are "" where there is
    none; OpenMeter takes the slug for the name.
    """

    slug: str
    aggregation: str
    value_property: str | None
    event_type: str
    group_by: Mapping[str, str] = field(default_factory=dict)
    event_from_ms: int | None = None
    name: str = ""
    description: str = ""


def parse_usage(document: Any, metric: str, from_ms: int, to_ms: int, step_ms: int | None) -> tuple[UsageRow, ...]:
    """The rows of ``metric`` in an answer for ``from_ms`` until before ``to_ms``; ``step_ms`` None: without windows.

    Anybody can send events to a self-hosted OpenMeter, so a row that cannot be is a fault of its own subject, never of
    the answer. A row without a subject is nobody's, and left out.

    Raises:
        QueryError: not transient; the answer as a whole is none.
    """
    rows = document.get("data") if isinstance(document, dict) else None
    if not isinstance(rows, list):
        raise _wrong(metric, "has no array `data`")
    found: dict[tuple[str, int], UsageRow] = {}
    for row in _rows_of(metric, rows):
        subject = row.get("subject")
        if not isinstance(subject, str) or not subject:
            continue
        read = _usage_row(subject, row, from_ms, to_ms, step_ms)
        key = subject, read.window_start_ms
        if key in found and not read.fault:
            read = UsageRow(subject, from_ms, 0, "has two rows of one window")
        found[key] = found[key] if key in found and found[key].fault else read
    return tuple(found.values())


def _rows_of(metric: str, rows: list[Any]) -> list[dict[str, Any]]:
    """The rows of one metric. Without its group in any of them, the meter does not group by it."""
    whole = [row for row in rows if isinstance(row, dict)]
    grouped = [row for row in whole if isinstance(row.get("groupBy"), dict) and GROUP_KEY in row["groupBy"]]
    if rows and not grouped:
        raise _wrong(metric, f"has a row without group {GROUP_KEY}: the meter needs groupBy {GROUP_KEY}: $.{GROUP_KEY}")
    return [row for row in grouped if row["groupBy"][GROUP_KEY] == metric]


def _usage_row(subject: str, row: dict[str, Any], from_ms: int, to_ms: int, step_ms: int | None) -> UsageRow:
    start_ms = from_ms if step_ms is None else _instant_ms(row.get("windowStart"))
    if start_ms is None:
        return UsageRow(subject, from_ms, 0, f"has windowStart {str(row.get('windowStart'))[:40]!r}, which is no time")
    if not from_ms <= start_ms < to_ms or (step_ms and start_ms % step_ms):
        return UsageRow(subject, from_ms, 0, "has a window that was not asked for")
    value = row.get("value")
    if (
        not (type(value) is int or (type(value) is float and value.is_integer()))
        or not -UNITS_MAX <= value <= UNITS_MAX
    ):
        return UsageRow(subject, start_ms, 0, f"has {str(value)[:40]}, which is no count of units")
    return UsageRow(subject, start_ms, int(value))


def _instant_ms(text: Any) -> int | None:
    return _parsed_ms(text) if isinstance(text, str) and len(text) <= 40 else None


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
    begins = given.get("eventFrom")
    event_from_ms = _instant_ms(begins)
    if begins is not None and event_from_ms is None:
        raise QueryError("OpenMeter's answer is not a meter: eventFrom", transient=False)
    name, description = (str(given.get(each) or "") for each in ("name", "description"))
    return Meter(
        slug,
        aggregation,
        value_property,
        event_type,
        group_by,
        event_from_ms,
        "" if name == slug else name,
        description,
    )


def meter_as_json(meter: Meter) -> dict[str, object]:
    """OpenMeter's ``MeterCreate``."""
    body: dict[str, object] = {
        "slug": meter.slug,
        "aggregation": meter.aggregation,
        "eventType": meter.event_type,
        **meter_changes_as_json(meter),
    }
    if meter.value_property is not None:
        body["valueProperty"] = meter.value_property
    if meter.event_from_ms is not None:
        body["eventFrom"] = f"{datetime.fromtimestamp(meter.event_from_ms / 1000, UTC):%Y-%m-%dT%H:%M:%S.%fZ}"
    return body


def meter_changes_as_json(meter: Meter) -> dict[str, object]:
    """OpenMeter's ``MeterUpdate``: all that can be changed of a meter. What is left out is emptied."""
    body: dict[str, object] = {"groupBy": dict(meter.group_by)}
    texts = {"name": meter.name, "description": meter.description}
    return body | {field: text for field, text in texts.items() if text}
