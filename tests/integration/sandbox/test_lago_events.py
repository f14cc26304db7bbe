"""Events: what is taken, what is refused, what counts."""

from __future__ import annotations

from typing import Any

import pytest

from sidecar.sandbox.lago.lago_wire import Json
from tests.integration.sandbox.lago_kit import Client, config, metered, receiving, unix

AT = unix("2025-06-10 12:00")


def event(id: str, calls: object = 1, **more: object) -> Json:
    return {
        "transaction_id": id, "code": "api_calls", "external_subscription_id": "sub", "timestamp": AT,
        "properties": {"calls": calls}, **more,
    }  # fmt: skip


async def units(client: Client) -> str:
    used: Any = (await client.usage())["charges_usage"]
    return str(used[0]["units"])


async def test_events_count_once_each_singly_and_in_batches() -> None:
    async with metered() as client:
        await client.subscribe()
        single = (await client.post("/events", {"event": event("a", 5)}))["event"]
        assert (single["transaction_id"], single["timestamp"]) == ("a", "2025-06-10T12:00:00.000Z")
        batch = (await client.post("/events/batch", {"events": [event("b", "2.5"), event("c", 3)]}))["events"]
        assert [item["transaction_id"] for item in batch] == ["b", "c"]
        assert await units(client) == "10.5"


async def test_an_id_that_is_known_is_refused() -> None:
    async with metered() as client:
        await client.subscribe()
        await client.post("/events", {"event": event("a")})
        refused = await client.refused("POST", "/events", {"event": event("a", 7)})
        assert refused == (422, {"transaction_id": ["value_already_exist"]})
        assert await units(client) == "1.0"


async def test_a_batch_with_one_duplicate_is_refused_as_a_whole_with_its_index() -> None:
    async with metered() as client:
        await client.subscribe()
        await client.post("/events", {"event": event("a")})
        batch = {"events": [event("b"), event("c"), event("a"), event("c")]}
        refused = await client.refused("POST", "/events/batch", batch)
        again = {"transaction_id": ["value_already_exist"]}
        assert refused == (422, {"2": again, "3": again})
        assert await units(client) == "1.0"


async def test_ids_of_one_batch_must_differ_across_subscriptions_too() -> None:
    async with metered() as client:
        await client.subscribe()
        await client.subscribe(external_id="other")
        batch = {"events": [event("a"), event("a", external_subscription_id="other")]}
        assert (await client.refused("POST", "/events/batch", batch))[0] == 422
        await client.post("/events", {"event": event("a")})
        await client.post("/events", {"event": event("a", external_subscription_id="other")})


@pytest.mark.parametrize(
    ("given", "details"),
    [
        ({"timestamp": "2025-06-10T12:00:00Z"}, {"timestamp": ["invalid_format"]}),
        ({"timestamp": -1}, {"timestamp": ["invalid_format"]}),
        ({"timestamp": 1e300}, {"timestamp": ["invalid_format"]}),
        ({"transaction_id": ""}, {"transaction_id": ["value_is_mandatory"]}),
        ({"transaction_id": "x" * 257}, {"transaction_id": ["value_is_too_long"]}),
        ({"code": None}, {"code": ["value_is_mandatory"]}),
        ({"properties": [1]}, {"properties": ["value_is_invalid"]}),
        ({"precise_total_amount_cents": "x"}, {"precise_total_amount_cents": ["value_is_invalid"]}),
    ],
)
async def test_a_bad_event_is_refused_singly_and_by_its_index(given: Json, details: Json) -> None:
    async with metered() as client:
        await client.subscribe()
        assert await client.refused("POST", "/events", {"event": event("a", **given)}) == (422, details)
        batch = {"events": [event("b"), event("a", **given)]}
        assert await client.refused("POST", "/events/batch", batch) == (422, {"1": details})
        assert await units(client) == "0.0"


@pytest.mark.parametrize(("count", "code"), [(0, "no_events"), (101, "too_many_events")])
async def test_a_batch_has_one_to_a_hundred_events(count: int, code: str) -> None:
    async with metered() as client:
        batch = {"events": [event(str(number)) for number in range(count)]}
        assert await client.refused("POST", "/events/batch", batch) == (422, {"events": [code]})
        await client.post("/events/batch", {"events": [event(str(number)) for number in range(100)]})


async def test_unknown_codes_and_subscriptions_are_taken_and_told_of_each_hour() -> None:
    async with metered() as client, receiving(client, event_types=["events.errors"]) as receiver:
        await client.subscribe()
        odd = [
            event("no-code", code="unheard-of"), event("no-sub", external_subscription_id="nobody"),
            event("no-number", "many"), event("no-field", properties={}), event("good"),
        ]  # fmt: skip
        await client.post("/events/batch", {"events": odd})
        assert await units(client) == "1.0"
        client.advance("2025-06-10 13:05")
        await client.lago.webhooks.drain()
        (report,) = receiver.of_type("events.errors")
        assert report["invalid_code"] == ["no-code"]
        assert report["missing_aggregation_property"] == ["no-number", "no-field"]


async def test_a_count_ignores_what_its_events_say() -> None:
    """One event with calls=1234 is one unit: the trap for whoever pushes sums to ``count_agg``."""
    async with metered() as client:
        listed = await client.post(
            "/billable_metrics",
            {"billable_metric": {"code": "n", "name": "n", "aggregation_type": "count_agg", "field_name": "calls"}},
        )
        metric: Any = listed["billable_metric"]
        assert metric["field_name"] is None
        charge = {"billable_metric_id": metric["lago_id"], "charge_model": "standard", "properties": {"amount": "1"}}
        await client.plan("counted", [charge])
        await client.subscribe("counted")
        await client.post("/events", {"event": event("a", 1234, code="n")})
        assert await units(client) == "1.0"


async def test_an_event_can_be_read_and_belongs_to_the_subscription_of_its_time() -> None:
    async with metered() as client:
        first = await client.subscribe()
        client.advance("2025-06-12 00:00")
        await client.plan("pro", amount_cents=100)
        second = await client.subscribe("pro")
        await client.post(
            "/events/batch", {"events": [event("om:a/1:2"), event("b", timestamp=unix("2025-06-12 00:01"))]}
        )
        found = [(await client.get(f"/events/{id}"))["event"] for id in ("om:a%2F1:2", "b")]
        assert [item["lago_subscription_id"] for item in found] == [first["lago_id"], second["lago_id"]]
        assert found[0]["properties"] == {"calls": 1}
        assert await client.refused("GET", "/events/none") == (404, "event_not_found")


async def test_an_event_without_a_timestamp_is_of_now() -> None:
    async with metered() as client:
        await client.subscribe()
        found = (await client.post("/events", {"event": event("a", timestamp=None)}))["event"]
        assert found["timestamp"] == "2025-06-10T12:00:00.000Z"
        found = (await client.post("/events", {"event": event("b", timestamp="1749556800.25")}))["event"]
        assert found["timestamp"] == "2025-06-10T12:00:00.250Z"


async def test_events_are_listed_by_subscription_code_and_time() -> None:
    async with metered() as client:
        later = unix("2025-06-10 13:00")
        events = [event("a"), event("b", timestamp=later), event("c", external_subscription_id="other", code="x")]
        await client.post("/events/batch", {"events": events})

        async def ids(query: str) -> list[str]:
            return [item["transaction_id"] for item in (await client.get(f"/events?{query}"))["events"]]

        assert await ids("external_subscription_id=sub") == ["b", "a"]
        assert await ids("code=x") == ["c"]
        assert await ids("timestamp_from=2025-06-10T12:30:00Z") == ["b"]
        assert await ids("timestamp_to=2025-06-10T12:30:00Z") == ["c", "a"]
        refused = await client.refused("GET", "/events?timestamp_from=soon")
        assert refused == (422, {"timestamp_from": ["invalid_date"]})


async def test_usage_before_the_start_or_after_now_counts_as_lago_counts_it() -> None:
    async with metered(config("2025-06-10 12:00:00")) as client:
        await client.subscribe()
        await client.use(1, "2025-06-10 11:59:59")
        await client.use(2, "2025-06-10 12:00:00")
        await client.use(4, "2025-06-30 23:59:59")
        await client.use(8, "2025-07-01 00:00:00")
        assert await units(client) == "6.0"


async def test_current_usage_can_leave_taxes_out_and_wants_an_active_subscription() -> None:
    async with metered(price="1") as client:
        await client.post(
            "/taxes", {"tax": {"code": "vat", "name": "VAT", "rate": 20, "applied_to_organization": True}}
        )
        await client.subscribe()
        await client.use(10, "2025-06-10 12:00")
        path = "/customers/tpp/current_usage"
        found = (await client.get(f"{path}?external_subscription_id=sub"))["customer_usage"]
        assert (found["amount_cents"], found["taxes_amount_cents"], found["total_amount_cents"]) == (1000, 200, 1200)
        assert (found["from_datetime"], found["to_datetime"]) == ("2025-06-10T12:00:00Z", "2025-06-30T23:59:59Z")
        found = (await client.get(f"{path}?external_subscription_id=sub&apply_taxes=false"))["customer_usage"]
        assert (found["taxes_amount_cents"], found["total_amount_cents"]) == (0, 1000)
        for query in ("", "?external_subscription_id=none"):
            refused = await client.refused("GET", path + query, checked=False)
            assert refused == (405, "no_active_subscription")
        unknown = "/customers/nobody/current_usage?external_subscription_id=sub"
        assert await client.refused("GET", unknown) == (404, "resource_not_found")
