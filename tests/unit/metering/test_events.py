"""From an outbox entry to CloudEvents."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from sidecar.metering.outbox.events import (
    EventAttributes,
    MalformedEntry,
    count_events,
    decode_entry,
    event_times,
    position_of,
    single_event,
)
from sidecar.sandbox.openmeter.openmeter_events import BATCH, parse_events

STAMP = EventAttributes("open-banking-api", "api.call")
ROUTE = "/open-banking/v3.1/aisp/accounts/{AccountId}"
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
EVENT = ["tpp-1", "api_calls", 2, ROUTE, "GET", 200, 17, "93bac548-d2de-4546-b106-880a5018460d", TRACE]
BARE = ["tpp-2", "api_calls", 1, ROUTE, "POST", 499, 0, None, None]


def entry(events: object, **changes: bytes | None) -> dict[bytes, bytes]:
    fields: dict[str, bytes | None] = {"o": b"gw-1.3", "q": b"17", "t": b"1767225600123"}
    fields |= {"e": events if isinstance(events, bytes) else orjson.dumps(events), **changes}
    return {name.encode(): value for name, value in fields.items() if value is not None}


def decoded(fields: dict[bytes, bytes]) -> list[dict[str, Any]]:
    return [orjson.loads(body) for body in decode_entry(fields, STAMP).bodies]


def test_an_event_is_written_as_the_platform_expects_it() -> None:
    first, second = decoded(entry([EVENT, BARE]))
    assert first == {
        "specversion": "1.0",
        "id": "gw-1.3.17.0",
        "source": "open-banking-api",
        "type": "api.call",
        "subject": "tpp-1",
        "time": "2026-01-01T00:00:00.123Z",
        "data": {
            "endpoint": ROUTE,
            "method": "GET",
            "status_code": 200,
            "response_time_ms": 17,
            "units": 2,
            "metric": "api_calls",
            "interaction_id": "93bac548-d2de-4546-b106-880a5018460d",
            "traceparent": TRACE,
        },
    }
    assert second["id"] == "gw-1.3.17.1"
    assert second["data"].keys() == first["data"].keys() - {"interaction_id", "traceparent"}


texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)
whole = st.integers(0, 2**53 - 1)
events = st.lists(
    st.tuples(texts, texts, whole, texts, texts, whole, whole, st.none() | texts, st.none() | texts),
    max_size=8,
)


@examples(max_examples=40)
@given(events, st.integers(0, 253_402_300_799_999), st.integers(0, 2**53))
def test_openmeter_accepts_whatever_the_ledger_can_write(rows: Any, t_ms: int, seq: int) -> None:
    fields = entry(rows, t=b"%d" % t_ms, q=b"%d" % seq)
    bodies = decode_entry(fields, STAMP).bodies
    taken = parse_events(BATCH, b"[" + b",".join(bodies) + b"]", "v1")
    assert [(event.id, event.subject, event.time_s) for event in taken] == [
        (f"gw-1.3.{seq}.{i}", row[0], t_ms // 1000) for i, row in enumerate(rows)
    ]
    assert count_events(fields) == len(rows)


@given(st.lists(st.just(EVENT), min_size=1, max_size=30), st.data())
def test_an_event_cut_out_of_its_entry_keeps_its_id(rows: Any, data: st.DataObject) -> None:
    fields = entry(rows)
    position = data.draw(st.integers(0, len(rows) - 1))
    whole_entry = decoded(fields)
    alone = single_event(fields, position)
    assert decoded(alone) == [whole_entry[position]]
    assert position_of(whole_entry[position]["id"], fields) == position
    assert decoded(single_event(alone, 0)) == [whole_entry[position]]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, "field o is missing"),
        (entry([EVENT], o=None), "field o is missing"),
        (entry([EVENT], o=b""), "field o is empty"),
        (entry([EVENT], o=b"\xff"), "field o is not UTF-8"),
        (entry([EVENT], q=None), "field q is missing"),
        (entry([EVENT], q=b"-1"), "field q is not a whole number"),
        (entry([EVENT], q=b"1e+15"), "field q is not a whole number"),
        (entry([EVENT], q=b"9" * 21), "field q is not a whole number"),
        (entry([EVENT], t=b"now"), "field t is not a whole number"),
        (entry([EVENT], t=b"9" * 20), "field t is not a time"),
        (entry([EVENT], a=b"{"), "field a is not JSON"),
        (entry([EVENT], a=b"[]"), "field a is not a JSON object"),
        (entry([EVENT], a=b'{"tpp-1":"1"}'), "field a is not a JSON object of accounts and whole numbers"),
        (entry([EVENT], a=b'{"tpp-1":1.5}'), "field a is not a JSON object of accounts and whole numbers"),
        (entry([EVENT], a=b'{"tpp-1":true}'), "field a is not a JSON object of accounts and whole numbers"),
        (entry([EVENT], a=b'{"tpp-1":-1}'), "field a is not a JSON object of accounts and whole numbers"),
        (entry([EVENT], a=b'{"tpp-1":9999999999999999999}'), "field a is not a time"),
        (entry([EVENT], i=b"x"), "field i is not a whole number"),
        (entry([EVENT], e=None), "field e is missing"),
        (entry(b""), "field e is not JSON"),
        (entry(b"[[1,2"), "field e is not JSON"),
        (entry(b'{"a":1}'), "field e is not a JSON array"),
        (entry(b"[" * 100_000), "field e is not JSON"),
        (entry(b"[" + b" " * 16_777_216 + b"]"), "field e has 16777218 bytes"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_entry_that_cannot_be_read_says_why(fields: dict[bytes, bytes], reason: str) -> None:
    with pytest.raises(MalformedEntry, match=reason):
        decode_entry(fields, STAMP)


@pytest.mark.parametrize(
    "bad",
    [
        None,
        7,
        "123456789",
        [],
        EVENT[:8],
        [None, *EVENT[1:]],
        ["", *EVENT[1:]],
        [*EVENT[:2], "1", *EVENT[3:]],
        [*EVENT[:2], 1.5, *EVENT[3:]],
        [*EVENT[:2], True, *EVENT[3:]],
        [*EVENT[:2], None, *EVENT[3:]],
    ],
)
def test_an_event_that_cannot_be_sent_does_not_take_its_neighbours_along(bad: object) -> None:
    result = decode_entry(entry([EVENT, bad, BARE]), STAMP)
    assert [orjson.loads(body)["id"] for body in result.bodies] == ["gw-1.3.17.0", "gw-1.3.17.2"]
    assert [invalid.position for invalid in result.invalid_events] == [1]


def test_an_account_that_is_ahead_of_the_entry_has_its_own_time() -> None:
    fields = entry([EVENT, BARE, EVENT], a=b'{"tpp-1":1767229200000,"tpp-9":5}')
    assert [event["time"] for event in decoded(fields)] == [
        "2026-01-01T01:00:00.000Z",
        "2026-01-01T00:00:00.123Z",
        "2026-01-01T01:00:00.000Z",
    ]
    times = event_times(fields)
    assert (times.of("tpp-1"), times.of("tpp-2")) == (1767229200000, 1767225600123)
    assert times.all() == (1767225600123, 1767229200000, 5)


def test_an_entry_cut_to_one_event_keeps_the_time_of_its_account() -> None:
    fields = entry([EVENT, BARE], a=b'{"tpp-1":1767229200000,"tpp-9":5}')
    assert decoded(single_event(fields, 0)) == decoded(fields)[:1]
    assert orjson.loads(single_event(fields, 0)[b"a"]) == {"tpp-1": 1767229200000}
    assert decoded(single_event(fields, 1)) == decoded(fields)[1:]
    assert b"a" not in single_event(fields, 1)
    odd = entry([[], [7]], a=b'{"tpp-1":1767229200000}')
    assert b"a" not in single_event(odd, 0)
    assert b"a" not in single_event(odd, 1)


def test_values_that_a_later_gateway_adds_are_ignored() -> None:
    assert decoded(entry([[*EVENT, "more", 1]])) == decoded(entry([EVENT]))


@pytest.mark.parametrize(
    ("raw", "read"),
    [(b"caf\xe9", "caf\ufffd"), (b"a\x00b", "a\x00b"), (b"a\nb", "a\nb")],
    ids=["not UTF-8", "NUL", "line feed"],
)
def test_a_callers_odd_interaction_id_does_not_cost_the_entry(raw: bytes, read: str) -> None:
    odd = orjson.dumps(EVENT).replace(str(EVENT[7]).encode(), raw)
    first, second = decoded(entry(b"[" + odd + b"," + orjson.dumps(BARE) + b"]"))
    assert first["data"]["interaction_id"] == read
    assert second["subject"] == "tpp-2"


def test_a_lone_surrogate_costs_only_its_own_event() -> None:
    odd = orjson.dumps(EVENT).replace(str(EVENT[7]).encode(), b"\\ud800")
    fields = entry(b"[" + odd + b"," + orjson.dumps(BARE) + b"]")
    result = decode_entry(fields, STAMP)
    assert [orjson.loads(body)["subject"] for body in result.bodies] == ["tpp-2"]
    assert [invalid.position for invalid in result.invalid_events] == [0]
    assert decode_entry(single_event(fields, 0), STAMP).bodies == []


def test_an_entry_without_events_has_none() -> None:
    assert decode_entry(entry([]), STAMP).bodies == []
    assert count_events(entry(b"junk")) == 0
