"""Events that OpenMeter takes and events that it refuses, for the unit tests and for the check against its contract."""

from __future__ import annotations

from dataclasses import dataclass

GOOD: dict[str, object] = {
    "specversion": "1.0",
    "id": "e1",
    "source": "open-banking-api",
    "type": "api.call",
    "subject": "tpp-1",
    "time": "2025-06-01T10:00:00.999Z",
    "data": {"endpoint": "/accounts", "units": 2},
}


@dataclass(frozen=True)
class EventCase:
    """An event made by changing ``GOOD``; ``without`` is left out. ``at`` and ``reason``: what v1's detail says."""

    name: str
    change: dict[str, object]
    without: str = ""
    at: str = ""
    reason: str = ""

    @property
    def event(self) -> dict[str, object]:
        return {key: value for key, value in {**GOOD, **self.change}.items() if key != self.without}


ACCEPTED = (
    EventCase("complete", {}),
    EventCase("no time", {}, without="time"),
    EventCase("null time", {"time": None}),
    EventCase("no data", {}, without="data"),
    EventCase("null data", {"data": None}),
    EventCase("empty data", {"data": {}}),
    EventCase("offset time", {"time": "2025-06-01T12:00:00+02:00"}),
    EventCase("nanosecond time", {"time": "2025-06-01T10:00:00.123456789Z"}),
    EventCase("datacontenttype", {"datacontenttype": "application/json"}),
    EventCase("null datacontenttype", {"datacontenttype": None}),
    EventCase("dataschema", {"dataschema": "https://example.test/schema"}),
    EventCase("extension", {"traceparent": "00-1-2-01"}),
    EventCase("no ASCII", {"subject": "tpp-ü"}),
    EventCase("source with spaces", {"source": "eu1 gateway"}),
    EventCase("source that is a URI", {"source": "https://bank.example/eu1?a=%zz"}),
    EventCase("id, type and subject that are no URI references", {"id": "1:%", "type": "a b:%", "subject": " :%\x01"}),
)

REFUSED = (
    *(
        EventCase(f"no {name}", {}, without=name, at=name, reason=f'property "{name}" is missing')
        for name in ("id", "source", "specversion", "type", "subject")
    ),
    *(
        EventCase(f"empty {name}", {name: ""}, at=name, reason="minimum string length is 1")
        for name in ("id", "source", "specversion", "type", "subject")
    ),
    EventCase("null subject", {"subject": None}, at="subject", reason="Value is not nullable"),
    EventCase("number as id", {"id": 7}, at="id", reason="value must be a string"),
    EventCase("text as data", {"data": "x"}, at="data", reason="value must be an object"),
    EventCase("array as data", {"data": [1]}, at="data", reason="value must be an object"),
    EventCase(
        "time without a zone",
        {"time": "2025-06-01T10:00:00"},
        at="time",
        reason='string doesn\'t match the format "date-time"',
    ),
    EventCase(
        "thirtieth of February",
        {"time": "2025-02-30T10:00:00Z"},
        at="time",
        reason='string doesn\'t match the format "date-time"',
    ),
    EventCase("number as time", {"time": 1748772000}, at="time", reason="value must be a string"),
    EventCase(
        "other datacontenttype",
        {"datacontenttype": "text/plain"},
        at="datacontenttype",
        reason='value is not one of the allowed values ["application/json"]',
    ),
)
