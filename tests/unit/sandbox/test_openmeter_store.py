from __future__ import annotations

import pytest

from sidecar.sandbox.openmeter.openmeter_events import CloudEvent
from sidecar.sandbox.openmeter.openmeter_store import OpenMeterEventStore, Stored

NOW_S = 1_748_772_000


def event(id: str, *, source: str = "s", type: str = "api.call", time_s: int | None = NOW_S) -> CloudEvent:
    return CloudEvent(id, source, type, "tpp-1", time_s, b"{}")


def store(*, dedupe: bool = True) -> OpenMeterEventStore:
    return OpenMeterEventStore(dedupe=dedupe, now=lambda: NOW_S + 0.9)


def test_the_same_source_and_id_count_once() -> None:
    events = store()
    outcomes = [events.add(event("1")), events.add(event("1")), events.add(event("1", source="other"))]
    assert outcomes == [Stored.KEPT, Stored.DUPLICATE, Stored.KEPT]
    assert len(events) == 2


def test_duplicates_are_kept_when_dedupe_is_off_as_it_is_in_openmeter() -> None:
    events = store(dedupe=False)
    assert [events.add(event("1")), events.add(event("1"))] == [Stored.KEPT, Stored.KEPT]
    assert len(list(events.rows("api.call", None, None))) == 2


def test_an_event_without_a_time_gets_the_time_of_its_arrival() -> None:
    events = store()
    events.add(event("1", time_s=None))
    assert [row[0] for row in events.rows("api.call", None, None)] == [NOW_S]


@pytest.mark.parametrize("time_s", [-1, 0, 2**32, 253_402_300_799])
def test_an_event_of_no_time_that_clickhouse_knows_is_accepted_and_never_seen(time_s: int) -> None:
    events = store()
    assert events.add(event("1", time_s=time_s)) is Stored.DROPPED
    assert list(events.events()) == []


def test_rows_begin_at_from_and_end_before_to_within_an_hour_and_across_hours() -> None:
    events = store()
    for offset in (-3601, -3600, -1, 0, 1, 3599, 3600, 7200):
        events.add(event(str(offset), time_s=NOW_S + offset))
    for from_s, to_s, expected in (
        (None, None, [-3601, -3600, -1, 0, 1, 3599, 3600, 7200]),
        (NOW_S, NOW_S + 3600, [0, 1, 3599]),
        (NOW_S + 1, NOW_S + 3599, [1]),
        (NOW_S - 3600, NOW_S + 1, [-3600, -1, 0]),
        (NOW_S + 7200, None, [7200]),
        (None, NOW_S - 3600, [-3601]),
    ):
        found = sorted(row[0] - NOW_S for row in events.rows("api.call", from_s, to_s))
        assert found == expected, (from_s, to_s)


def test_rows_of_one_type_leave_the_others_out() -> None:
    events = store()
    events.add(event("1"))
    events.add(event("2", type="other"))
    assert len(list(events.rows("other", None, None))) == 1
    assert list(events.rows("unheard-of", None, None)) == []
