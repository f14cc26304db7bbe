"""The list of ingested events: which ones, in which order, and what the server remarks about each.

Source: ``openmeter/meterevent/service.go``, ``openmeter/meterevent/adapter/event.go``,
``openmeter/streaming/clickhouse/event_query.go``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from heapq import nlargest

import orjson
from aiohttp import web

from sidecar.sandbox.openmeter.meters import Meter, value_error
from sidecar.sandbox.openmeter.openmeter_store import OpenMeterEventStore, StoredEvent
from sidecar.sandbox.openmeter.openmeter_wire import Problem, format_time, from_unix
from sidecar.sandbox.openmeter.params import bad_parameter, time_parameter

EVENTS_MAX = 100
#: Listing looks back no further than this.
EVENTS_AGE_MAX = timedelta(days=32)


@dataclass(frozen=True, slots=True)
class EventFilter:
    """Which events to list; times are Unix seconds, the ends exclusive."""

    begin_s: int
    end_s: int | None
    ingested_begin_s: int | None
    ingested_end_s: int | None
    id_part: str
    subject: str | None
    limit: int


def event_filter(request: web.Request, now: datetime) -> EventFilter:
    """The parameters of ``GET /api/v1/events``. Raises :class:`Problem` 400 that names the parameter.

    As the server's SQL has it, and against the words of the OpenAPI document: without ``from`` the last 32 days
    are listed (not 72 hours), both ends are exclusive, and a subject must match as a whole; ids match in part.
    """
    query = request.query
    body: dict[str, object] = dict(query.items())
    begin, end = time_parameter(body, "from"), time_parameter(body, "to")
    ingested_begin, ingested_end = time_parameter(body, "ingestedAtFrom"), time_parameter(body, "ingestedAtTo")
    oldest = now - EVENTS_AGE_MAX
    for name, value in (("from", begin), ("ingestedAtFrom", ingested_begin)):
        if value is not None and value < oldest:
            raise Problem(400, f"validate input: {name} date is too old, must be after {format_time(oldest)}")
    begin = begin or oldest + timedelta(seconds=1)
    if end is not None and end < begin:
        raise Problem(400, f"validate input: to date is before from date: {format_time(end)}")
    if ingested_begin is not None and ingested_end is not None and ingested_end < ingested_begin:
        raise Problem(400, "validate input: ingestedAtTo date is before ingestedAtFrom date")
    if "customerId" in query:
        raise Problem(400, f"customers not found in namespace default: {query['customerId'][:64]}")
    limit = query.get("limit", str(EVENTS_MAX))
    if not (limit.isascii() and limit.isdigit() and len(limit) <= 4 and 1 <= int(limit) <= EVENTS_MAX):
        raise bad_parameter("limit", f"must be a number from 1 to {EVENTS_MAX}")
    return EventFilter(
        begin_s=int(begin.timestamp()),
        end_s=None if end is None else int(end.timestamp()),
        ingested_begin_s=None if ingested_begin is None else int(ingested_begin.timestamp()),
        ingested_end_s=None if ingested_end is None else int(ingested_end.timestamp()),
        id_part=query.get("id", ""),
        subject=query.get("subject"),
        limit=int(limit),
    )


def list_events(store: OpenMeterEventStore, wanted: EventFilter) -> list[StoredEvent]:
    """The matching events, the youngest first."""
    matching = (event for event in store.events() if _matches(event, wanted))
    return nlargest(wanted.limit, matching, key=lambda event: event.time_s)


def event_json(event: StoredEvent, meters: Iterable[Meter]) -> dict[str, object]:
    """An ``IngestedEvent``; ``meters`` are those of its type. The stand-in knows no customers, and says so."""
    data = orjson.loads(event.data) if event.data else None
    body: dict[str, object] = {
        "specversion": "1.0",
        "id": event.id,
        "source": event.source,
        "type": event.type,
        "subject": event.subject,
        "time": format_time(from_unix(event.time_s)),
    }
    if data is not None:
        body |= {"datacontenttype": "application/json", "data": data}
    errors = [value_error(meter, data) for meter in meters]
    remarks = [error for error in errors if error is not None]
    if not errors:
        remarks.append(f"no meter found for event type: {event.type}")
    remarks.append(f"no customer found for event subject: {event.subject}")
    accepted = format_time(from_unix(event.ingested_s))
    return {
        "event": body,
        "ingestedAt": accepted,
        "storedAt": accepted,
        "validationError": "\n".join(remarks),
    }


def _matches(event: StoredEvent, wanted: EventFilter) -> bool:
    return (
        event.time_s >= wanted.begin_s
        and (wanted.end_s is None or event.time_s < wanted.end_s)
        and (wanted.ingested_begin_s is None or event.ingested_s >= wanted.ingested_begin_s)
        and (wanted.ingested_end_s is None or event.ingested_s < wanted.ingested_end_s)
        and wanted.id_part in event.id
        and wanted.subject in (None, event.subject)
    )
