from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from decimal import Decimal

import orjson
import pytest

from sidecar.billing.lago.errors import LagoRejected
from sidecar.billing.lago.models import Event
from sidecar.billing.usage_sync.delivery import DeliveryOutcome, EventDelivery
from sidecar.billing.usage_sync.frozen_events import FrozenEvent, decode_frozen_event, encode_frozen_event, whole_units
from tests.unit.billing.usage_sync.kit import T0, LagoFake, unavailable


def frozen_event(n: int, units: int = 5) -> FrozenEvent:
    return FrozenEvent(
        f"om:api_calls:s1:{T0 + n}:0",
        "sub-1",
        "api_calls",
        "calls",
        Decimal(T0 + n),
        units,
        T0 * 1000,
        T0 * 1000,
        T0 + n,
    )


EVENTS = [frozen_event(n) for n in range(7)]


async def outcomes(
    lago: LagoFake, events: Sequence[FrozenEvent] = EVENTS, batch: int = 100
) -> Mapping[str, DeliveryOutcome]:
    return (await EventDelivery(lago, batch).deliver(events)).outcomes


def kinds(found: Mapping[str, DeliveryOutcome]) -> list[str]:
    return [found[each.transaction_id].kind for each in EVENTS]


async def test_events_go_in_batches_of_the_size_that_lago_takes() -> None:
    lago = LagoFake()
    assert kinds(await outcomes(lago, batch=3)) == ["sent"] * 7
    assert sorted(lago.batches) == [1, 3, 3]


async def test_what_lago_has_already_is_done_and_its_neighbours_are_sent() -> None:
    lago = LagoFake()
    lago.events = {each.transaction_id: each.event() for each in (EVENTS[1], EVENTS[4])}
    assert kinds(await outcomes(lago)) == ["sent", "duplicate", "sent", "sent", "duplicate", "sent", "sent"]
    assert len(lago.events) == 7
    assert lago.batches == [7, 5]


async def test_lago_may_answer_units_as_a_number_and_the_time_with_decimals() -> None:
    lago = LagoFake()
    event = EVENTS[0].event()
    for units in (5, Decimal("5.0"), "5.0"):
        lago.events = {
            event.transaction_id: replace(event, properties={"calls": units}, timestamp=Decimal(f"{T0}.000"))
        }
        assert (await outcomes(lago, EVENTS[:1]))[event.transaction_id].kind == "duplicate"


async def test_other_units_at_the_same_place_count_as_lago_has_them() -> None:
    lago = LagoFake()
    lago.events = {EVENTS[0].transaction_id: frozen_event(0, units=3).event()}
    found = (await outcomes(lago))[EVENTS[0].transaction_id]
    assert (found.kind, found.units) == ("adopted", 3)


@pytest.mark.parametrize(
    "changes",
    [
        {"external_subscription_id": "sub-2"},
        {"code": "payments"},
        {"timestamp": Decimal(T0 + 1)},
        {"properties": {"calls": "many"}},
        {"properties": {}},
    ],
)
async def test_an_event_at_another_place_is_a_conflict(changes: dict[str, object]) -> None:
    lago = LagoFake()
    lago.events = {EVENTS[0].transaction_id: replace(EVENTS[0].event(), **changes)}  # type: ignore[arg-type]
    found = await outcomes(lago)
    assert kinds(found) == ["conflict"] + ["sent"] * 6
    assert "sub-1" in found[EVENTS[0].transaction_id].reason


async def test_an_event_that_lago_does_not_show_stays_as_it_is() -> None:
    lago = LagoFake(hides=True)
    lago.events = {EVENTS[0].transaction_id: EVENTS[0].event()}
    assert kinds(await outcomes(lago)) == ["unseen"] + ["sent"] * 6


async def test_an_event_that_is_refused_is_set_aside_with_the_reason() -> None:
    lago = LagoFake(odd={EVENTS[2].transaction_id: ("invalid_format",)})
    found = await outcomes(lago)
    assert kinds(found) == ["sent", "sent", "rejected", "sent", "sent", "sent", "sent"]
    assert found[EVENTS[2].transaction_id].reason == "timestamp: invalid_format"


class Moody(LagoFake):
    """Refuses what holds a certain event, and does not say which."""

    async def send_events(self, events: Sequence[Event]) -> None:
        if any(each.transaction_id == EVENTS[5].transaction_id for each in events):
            raise LagoRejected("POST /events/batch: 422 validation_errors", status=422)
        await LagoFake.send_events(self, events)


async def test_an_event_that_lago_refuses_without_naming_it_is_found_by_halving() -> None:
    found = await outcomes(Moody())
    assert kinds(found) == ["sent"] * 5 + ["rejected", "sent"]


async def test_a_refusal_of_the_request_itself_sets_no_event_aside() -> None:
    lago = LagoFake(error=LagoRejected("POST /events/batch: 404", status=404))
    deliveries = await EventDelivery(lago, 100).deliver(EVENTS)
    assert not deliveries.outcomes
    assert deliveries.error is lago.error


async def test_after_a_failure_nothing_more_is_sent() -> None:
    lago = LagoFake(error=unavailable())
    delivery = EventDelivery(lago, 1)
    deliveries = await delivery.deliver(EVENTS)
    assert deliveries.error is lago.error
    assert len(lago.batches) <= 4
    sent = len(lago.batches)
    assert (await delivery.deliver(EVENTS)).error is lago.error
    assert len(lago.batches) == sent


async def test_what_was_taken_before_a_failure_is_known() -> None:
    lago = LagoFake()
    lago.fate.at, lago.fate.error = 8, unavailable()
    deliveries = await EventDelivery(lago, 1).deliver(EVENTS)
    assert deliveries.error is not None
    assert deliveries.outcomes
    assert all(name in lago.events for name in deliveries.outcomes)


@pytest.mark.parametrize(
    ("value", "units"),
    [
        ("12", 12), (12, 12), (Decimal("12.0"), 12), ("0", 0), (" 7 ", 7),
        ("1.5", None), (-1, None), (True, None), (None, None), ("x", None), ("NaN", None), ("1E+999999999", None),
        ([], None),
    ],
)  # fmt: skip
def test_units_are_whole_numbers(value: object, units: int | None) -> None:
    assert whole_units(value) == units


def test_a_frozen_event_is_read_as_it_was_written() -> None:
    each = replace(
        frozen_event(3), timestamp=Decimal(f"{T0}.123"), state="rejected", reason="timestamp: invalid_format"
    )
    assert decode_frozen_event(each.transaction_id, encode_frozen_event(each)) == each


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b"{", b'{"state":"other"}', b" " * 70_000])
def test_what_is_no_frozen_event_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        decode_frozen_event("om:x", data)


@pytest.mark.parametrize("name", ["timestamp", "units", "state"])
def test_a_frozen_event_with_a_wrong_member_is_refused(name: str) -> None:
    row = orjson.loads(encode_frozen_event(frozen_event(0))) | {name: "?"}
    with pytest.raises(ValueError):
        decode_frozen_event("om:x", orjson.dumps(row))
