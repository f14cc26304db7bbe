"""Makes CloudEvents of an outbox entry, without I/O.

An entry is what ``batch.lua`` writes (docs/ledger.md, "Outbox entry"): ``o`` origin, ``q`` sequence number, ``t``
time in ms, ``e`` JSON ``[event, …]``, each event an array ``[account, metric, units, route, method, status,
response_time_ms, interaction_id, traceparent]``. A further field ``i``, 0 when it is missing, is the number of the
first event: an entry that was cut to one of its events keeps that event's id. A field ``a``, JSON ``{account: ms}``,
has the time of those accounts whose events have another one than ``t``: after the server's clock went back behind the
start of an account's period, its events lie in the period that they are charged to. :class:`EventTimes` decides.

The events follow CloudEvents 1.0 and OpenMeter's ``Event``. OpenMeter truncates their time to whole seconds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, NamedTuple

import orjson

ENTRY_BYTES_MAX = 16_777_216
"""An entry holds some hundreds of events of some hundred bytes each; nothing near this was written by a gateway."""

_EVENT_VALUES = 9
_DIGITS_MAX = 20


class MalformedEntry(ValueError):
    """An entry of which no event can be told. The message says why."""


@dataclass(frozen=True, slots=True)
class EventAttributes:
    """The CloudEvents attributes that all events share."""

    source: str
    type: str


@dataclass(frozen=True, slots=True)
class InvalidEvent:
    """An event that cannot be sent: its position in ``e``, and why."""

    position: int
    reason: str


@dataclass(frozen=True, slots=True)
class EventTimes:
    """When the events of an entry happened, in ms since 1970: at ``usual_ms``, but for accounts in ``others_ms``."""

    usual_ms: int
    others_ms: Mapping[str, int]

    def of(self, account: str) -> int:
        return self.others_ms.get(account, self.usual_ms)

    def all(self) -> tuple[int, ...]:
        """Every time that an event of the entry may have."""
        return (self.usual_ms, *self.others_ms.values())


class ChargedEvent(NamedTuple):
    """``number``: of the event in its batch, the last part of its id."""

    number: int
    account: str
    metric: str
    units: int


class Decoded(NamedTuple):
    """``bodies``: the JSON of each valid event, in order. ``invalid_events``: the others."""

    bodies: list[bytes]
    invalid_events: list[InvalidEvent]


def decode_entry(fields: Mapping[bytes, bytes], attributes: EventAttributes) -> Decoded:
    """The events of an entry; event ``n`` has the id ``<o>.<q>.<i + n>`` whenever and by whomever it is decoded.

    Raises:
        MalformedEntry: a field is missing, too large or not what it should be.
    """
    prefix = f"{_text(fields, b'o')}.{_number(fields, b'q')}."
    times = event_times(fields)
    usual = _rfc3339(times.usual_ms, "t")
    others = {account: _rfc3339(ms, "a") for account, ms in times.others_ms.items()}
    number = _number(fields, b"i") if b"i" in fields else 0
    source, kind, dumps = attributes.source, attributes.type, orjson.dumps
    bodies: list[bytes] = []
    invalid_events: list[InvalidEvent] = []
    for position, event in enumerate(_events(fields)):
        try:
            # A later gateway may add values at the end.
            account, metric, units, route, method, status, time_ms, interaction, trace, *_ = event
        except (TypeError, ValueError):
            invalid_events.append(InvalidEvent(position, f"is not an array of {_EVENT_VALUES} values"))
            continue
        # A units value that is no number is stored by OpenMeter and never counted, so it must not get that far.
        if type(units) is not int or type(account) is not str or not account:
            invalid_events.append(InvalidEvent(position, "account is not a text or units is not a whole number"))
            continue
        data = {
            "endpoint": route,
            "method": method,
            "status_code": status,
            "response_time_ms": time_ms,
            "units": units,
            "metric": metric,
        }
        if interaction is not None:
            data["interaction_id"] = interaction
        if trace is not None:
            data["traceparent"] = trace
        cloud_event = {
            "specversion": "1.0",
            "id": f"{prefix}{number + position}",
            "source": source,
            "type": kind,
            "subject": account,
            "time": others.get(account, usual) if others else usual,
            "data": data,
        }
        try:
            bodies.append(dumps(cloud_event))
        except orjson.JSONEncodeError as error:
            invalid_events.append(InvalidEvent(position, f"cannot be written as JSON: {error}"))
    return Decoded(bodies, invalid_events)


def event_times(fields: Mapping[bytes, bytes]) -> EventTimes:
    """The times of an entry's events.

    Raises:
        MalformedEntry: the field ``t`` is missing, or ``t`` or ``a`` is not what it should be.
    """
    usual_ms = _number(fields, b"t")
    if b"a" not in fields:
        return EventTimes(usual_ms, {})
    try:
        others_ms = orjson.loads(_field(fields, b"a"))
    except orjson.JSONDecodeError as error:
        raise MalformedEntry(f"field a is not JSON: {error}") from None
    if not isinstance(others_ms, dict) or not all(type(ms) is int and ms >= 0 for ms in others_ms.values()):
        raise MalformedEntry("field a is not a JSON object of accounts and whole numbers")
    return EventTimes(usual_ms, others_ms)


def count_events(fields: Mapping[bytes, bytes]) -> int:
    """How many events an entry holds; 0 if it is malformed."""
    try:
        return len(_events(fields))
    except MalformedEntry:
        return 0


def event_units(fields: Mapping[bytes, bytes]) -> list[ChargedEvent]:
    """What the valid events of an entry charge.

    Raises:
        MalformedEntry: a field is missing, too large or not what it should be.
    """
    number = _number(fields, b"i") if b"i" in fields else 0
    found = []
    for position, event in enumerate(_events(fields)):
        match event:
            case [str(account), str(metric), int(units), *_]:
                found.append(ChargedEvent(number + position, account, metric, units))
    return found


def single_event(fields: Mapping[bytes, bytes], position: int) -> dict[bytes, bytes]:
    """The entry cut to one of its events, which keeps its id.

    Raises:
        MalformedEntry: as :func:`decode_entry` does.
    """
    number = (_number(fields, b"i") if b"i" in fields else 0) + position
    event = _events(fields)[position]
    cut = {**fields, b"i": b"%d" % number, b"e": json.dumps([event], separators=(",", ":")).encode()}
    others_ms = event_times(fields).others_ms
    if others_ms:
        del cut[b"a"]
        account = event[0] if isinstance(event, list) and event else None
        if isinstance(account, str) and account in others_ms:
            cut[b"a"] = orjson.dumps({account: others_ms[account]})
    return cut


def position_of(event_id: str, fields: Mapping[bytes, bytes]) -> int:
    """The position in ``e`` of the event with this id."""
    return int(event_id.rpartition(".")[2]) - int(fields.get(b"i", b"0"))


def _events(fields: Mapping[bytes, bytes]) -> list[Any]:
    text = _field(fields, b"e")
    try:
        events = orjson.loads(text)
    except orjson.JSONDecodeError:
        # A caller chooses the text of its interaction id. Bytes that are no UTF-8 or control characters in it must not
        # cost the bank the charges of everyone whose events share the entry.
        try:
            events = json.loads(text.decode("utf-8", "replace"), strict=False)
        except (ValueError, RecursionError) as error:
            raise MalformedEntry(f"field e is not JSON: {error}") from None
    if not isinstance(events, list):
        raise MalformedEntry("field e is not a JSON array")
    return events


def _field(fields: Mapping[bytes, bytes], name: bytes) -> bytes:
    value = fields.get(name)
    if value is None:
        raise MalformedEntry(f"field {name.decode()} is missing")
    if len(value) > ENTRY_BYTES_MAX:
        raise MalformedEntry(f"field {name.decode()} has {len(value)} bytes, more than {ENTRY_BYTES_MAX}")
    return value


def _text(fields: Mapping[bytes, bytes], name: bytes) -> str:
    try:
        text = _field(fields, name).decode()
    except UnicodeDecodeError:
        raise MalformedEntry(f"field {name.decode()} is not UTF-8") from None
    if not text:
        raise MalformedEntry(f"field {name.decode()} is empty")
    return text


def _number(fields: Mapping[bytes, bytes], name: bytes) -> int:
    value = _field(fields, name)
    if not value.isdigit() or len(value) > _DIGITS_MAX:
        raise MalformedEntry(f"field {name.decode()} is not a whole number")
    return int(value)


def _rfc3339(time_ms: int, field: str) -> str:
    seconds, ms = divmod(time_ms, 1000)
    try:
        return f"{_second(seconds)}.{ms:03d}Z"
    except (OverflowError, ValueError, OSError):
        raise MalformedEntry(f"field {field} is not a time that can be written") from None


@lru_cache(maxsize=256)  # entries come in the order of their times, many in one second
def _second(seconds: int) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}"
