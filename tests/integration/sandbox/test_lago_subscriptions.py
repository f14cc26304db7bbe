"""Subscriptions: start, upgrade, downgrade, end."""

from __future__ import annotations

from typing import Any

import pytest

from sidecar.sandbox.lago.lago_wire import Json
from tests.integration.sandbox.lago_kit import Client, config, fees, metered, running, standard


async def with_plans(client: Client) -> None:
    """``basic`` at 30.00, ``pro`` at 90.00, ``free`` at nothing; 0.05, 0.01 and 0.50 a call."""
    metric = (await client.get("/billable_metrics/api_calls"))["billable_metric"]["lago_id"]
    await client.plan("pro", [standard(metric, "0.01")], amount_cents=9000)
    await client.plan("free", [standard(metric, "0.50")])


async def listed(client: Client, query: str = "") -> list[tuple[str, str]]:
    found = (await client.get(f"/subscriptions?{query}"))["subscriptions"]
    return [(item["plan_code"], item["status"]) for item in found]


async def test_a_subscription_starts_at_once_and_creates_its_customer() -> None:
    async with metered() as client:
        found = await client.subscribe(external_customer_id="new", name="First")
        assert (found["status"], found["started_at"]) == ("active", "2025-06-10T12:00:00.000Z")
        assert (found["name"], found["external_customer_id"]) == ("First", "new")
        plan: Any = found["plan"]
        assert plan["charges"][0]["billable_metric_code"] == "api_calls"
        assert (await client.get("/customers/new"))["customer"]["currency"] == "EUR"
        assert (await client.get("/subscriptions/sub"))["subscription"] == found


async def test_the_same_plan_again_changes_nothing() -> None:
    async with metered() as client:
        first = await client.subscribe()
        assert await client.subscribe() == first
        assert len(client.lago.store.subscriptions) == 1


@pytest.mark.parametrize(
    ("given", "status", "details"),
    [
        ({"plan_code": "none"}, 404, "plan_not_found"),
        ({"external_id": ""}, 422, {"external_id": ["value_is_mandatory"]}),
        ({"external_customer_id": ""}, 422, {"external_customer_id": ["value_is_mandatory"]}),
        ({"billing_time": "lunar"}, 422, {"billing_time": ["value_is_invalid"]}),
        ({"subscription_at": "soon"}, 422, {"subscription_at": ["invalid_date"]}),
        ({"ending_at": "2025-06-10T23:00:00Z"}, 422, {"ending_at": ["invalid_date"]}),
    ],
)
async def test_a_bad_subscription_is_refused(given: Json, status: int, details: object) -> None:
    async with metered() as client:
        body = {"subscription": {"external_customer_id": "tpp", "plan_code": "basic", "external_id": "sub", **given}}
        assert await client.refused("POST", "/subscriptions", body) == (status, details)
        assert await listed(client) == []


async def test_an_external_id_in_use_by_another_customer_is_refused() -> None:
    async with metered() as client:
        await client.subscribe()
        body = {"subscription": {"external_customer_id": "other", "plan_code": "basic", "external_id": "sub"}}
        refused = await client.refused("POST", "/subscriptions", body)
        assert refused == (422, {"external_id": ["value_already_exist"]})


async def test_a_subscription_of_another_day_waits_and_then_starts() -> None:
    async with metered() as client:
        found = await client.subscribe(subscription_at="2025-06-12T08:00:00Z")
        assert (found["status"], found["started_at"]) == ("pending", None)
        assert found["current_billing_period_started_at"] is None
        assert await listed(client) == []
        assert await listed(client, "status[]=pending") == [("basic", "pending")]
        client.advance("2025-06-11 23:59")
        assert await client.refused("GET", "/subscriptions/sub") == (404, "subscription_not_found")
        client.advance("2025-06-12 00:00")
        assert (await client.get("/subscriptions/sub"))["subscription"]["started_at"] == "2025-06-12T00:00:00.000Z"


async def test_a_backdated_subscription_bills_its_first_period_when_that_ends() -> None:
    async with metered(amount_cents=3000) as client:
        found = await client.subscribe(subscription_at="2025-04-20T08:00:00Z")
        assert found["started_at"] == "2025-04-20T08:00:00.000Z"
        assert found["current_billing_period_started_at"] == "2025-06-01T00:00:00Z"
        client.advance("2025-07-01 00:10")
        assert [fees(item) for item in await client.invoices()] == [[("subscription", "1.0", 3000)]]


async def test_an_upgrade_ends_the_old_one_with_an_invoice_and_starts_anew() -> None:
    async with metered(amount_cents=3000) as client:
        await with_plans(client)
        old = await client.subscribe()
        await client.use(100, "2025-06-12 10:00")
        client.advance("2025-06-20 12:00")
        await client.use(7, "2025-06-20 12:00", id="just-now")
        new = await client.subscribe("pro")
        assert (new["external_id"], new["previous_plan_code"]) == ("sub", "basic")
        assert new["lago_id"] != old["lago_id"]
        assert (new["started_at"], new["status"]) == ("2025-06-20T12:00:00.000Z", "active")
        assert new["current_billing_period_started_at"] == "2025-06-20T12:00:00Z"
        (invoice,) = await client.invoices()
        # From the 10th to the 19th: the day of the upgrade belongs to the new plan.
        assert fees(invoice) == [("subscription", "1.0", 1000), ("charge", "100.0", 500)]
        period: Any = invoice["billing_periods"][0]
        assert period["invoicing_reason"] == "subscription_terminating"
        assert period["charges_to_datetime"] == "2025-06-20T12:00:00Z"
        assert (await client.usage())["amount_cents"] == 7
        await client.use(93, "2025-06-20 12:00")
        assert (await client.usage())["amount_cents"] == 100
        assert await listed(client, "external_customer_id=tpp&status[]=terminated") == [("basic", "terminated")]
        ended = (await client.get("/subscriptions/sub?status=terminated"))["subscription"]
        assert (ended["next_plan_code"], ended["terminated_at"]) == ("pro", "2025-06-20T12:00:00Z")
        client.advance("2025-07-01 00:10")
        # From the 20th to the 30th of June: 11 of 30 days.
        assert fees((await client.invoices())[-1]) == [("subscription", "1.0", 3300), ("charge", "100.0", 100)]


async def test_an_upgrade_before_the_billing_of_the_day_leaves_the_period_before_unbilled() -> None:
    """A trap: the old subscription is no more when the hour of billing comes, and its last invoice starts today."""
    async with metered() as client:
        await with_plans(client)
        await client.subscribe()
        await client.use(100, "2025-06-12 10:00")
        client.advance("2025-07-01 00:05")
        await client.subscribe("pro")
        client.advance("2025-08-01 00:10")
        assert [row for invoice in await client.invoices() for row in fees(invoice) if row[0] == "charge"] == []


async def test_what_is_used_while_a_downgrade_takes_place_is_billed_to_no_one() -> None:
    """A trap: the new plan starts at ten past, the old one is billed up to midnight."""
    async with metered(amount_cents=3000) as client:
        await with_plans(client)
        await client.subscribe()
        await client.subscribe("free")
        await client.use(1, "2025-06-30 23:59")
        await client.use(2, "2025-07-01 00:05")
        await client.use(4, "2025-07-01 00:10")
        client.advance("2025-08-01 00:10")
        billed = [row for invoice in await client.invoices() for row in fees(invoice) if row[0] == "charge"]
        assert billed == [("charge", "1.0", 5), ("charge", "4.0", 200)]


async def test_an_upgrade_of_a_plan_in_advance_bills_the_new_and_credits_the_old() -> None:
    async with metered(amount_cents=3000, pay_in_advance=True) as client:
        metric = (await client.get("/billable_metrics/api_calls"))["billable_metric"]["lago_id"]
        await client.plan("pro", [standard(metric, "0.01")], amount_cents=9000, pay_in_advance=True)
        await client.subscribe()
        client.advance("2025-06-21 12:00")
        await client.subscribe("pro")
        invoice = (await client.invoices())[-1]
        # Ten of thirty days are left, that of the upgrade included: 30.00 for them, of 90.00; 10.00 of 30.00 back.
        assert fees(invoice) == [("subscription", "1.0", 3000)]
        assert (invoice["credit_notes_amount_cents"], invoice["total_amount_cents"]) == (1000, 2000)
        credits: Any = invoice["credits"]
        assert [(item["item"]["type"], item["amount_cents"]) for item in credits] == [("credit_note", 1000)]


async def test_an_equal_amount_is_an_upgrade_and_intervals_are_compared_by_the_year() -> None:
    async with metered(amount_cents=1000) as client:
        metric = (await client.get("/billable_metrics/api_calls"))["billable_metric"]["lago_id"]
        await client.plan("same", [standard(metric, "9")], amount_cents=1000)
        await client.plan("weekly", interval="weekly", amount_cents=231)
        await client.subscribe()
        assert (await client.subscribe("same"))["plan_code"] == "same"
        # 52 times 2.31 is more than 12 times 10.00.
        assert (await client.subscribe("weekly"))["plan_code"] == "weekly"
        # 12 times 10.00 is less than 52 times 2.31.
        assert (await client.subscribe("basic"))["next_plan_code"] == "basic"


async def test_a_downgrade_waits_for_the_end_of_the_period() -> None:
    async with metered(amount_cents=3000) as client:
        await with_plans(client)
        await client.subscribe(subscription_at="2025-05-01T00:00:00Z")
        await client.use(100, "2025-06-12 10:00")
        answer = await client.subscribe("free")
        assert (answer["plan_code"], answer["next_plan_code"]) == ("basic", "free")
        assert answer["downgrade_plan_date"] == "2025-07-01"
        assert await listed(client, "status[]=active&status[]=pending") == [("free", "pending"), ("basic", "active")]
        client.advance("2025-07-01 00:09")
        assert await listed(client) == [("basic", "active")]
        client.advance("2025-07-01 00:10")
        assert await listed(client) == [("free", "active")]
        (invoice,) = await client.invoices()
        assert fees(invoice) == [("subscription", "1.0", 3000), ("charge", "100.0", 500)]
        found = (await client.get("/subscriptions/sub"))["subscription"]
        assert (found["started_at"], found["previous_plan_code"]) == ("2025-07-01T00:10:00.000Z", "basic")
        client.advance("2025-08-01 00:10")
        assert len(await client.invoices()) == 2


async def test_a_downgrade_can_be_taken_back_or_overtaken_by_an_upgrade() -> None:
    async with metered(amount_cents=3000) as client:
        await with_plans(client)
        await client.subscribe()
        await client.subscribe("free")
        await client.delete("/subscriptions/sub?status=pending")
        assert (await client.get("/subscriptions/sub"))["subscription"]["next_plan_code"] is None
        await client.subscribe("free")
        await client.subscribe("pro")
        assert await listed(client) == [("pro", "active")]
        assert sorted(await listed(client, "status[]=canceled")) == [("free", "canceled"), ("free", "canceled")]
        client.advance("2025-07-01 00:10")
        assert await listed(client) == [("pro", "active")]


async def test_termination_bills_up_to_now() -> None:
    async with metered(amount_cents=3000) as client:
        await client.subscribe(subscription_at="2025-05-01T00:00:00Z")
        await client.use(100, "2025-06-10 12:00")
        ended = (await client.delete("/subscriptions/sub"))["subscription"]
        assert (ended["status"], ended["terminated_at"]) == ("terminated", "2025-06-10T12:00:00Z")
        assert ended["current_billing_period_ending_at"] == "2025-06-10T12:00:00Z"
        (invoice,) = await client.invoices()
        assert fees(invoice) == [("subscription", "1.0", 1000), ("charge", "100.0", 500)]
        refused = await client.refused(
            "GET", "/customers/tpp/current_usage?external_subscription_id=sub", checked=False
        )
        assert refused == (405, "no_active_subscription")
        client.advance("2025-08-01 00:10")
        assert len(await client.invoices()) == 1
        assert await client.refused("DELETE", "/subscriptions/sub") == (404, "subscription_not_found")


async def test_termination_before_the_billing_of_the_day_bills_the_period_before() -> None:
    async with metered(amount_cents=3000) as client:
        await client.subscribe(subscription_at="2025-05-01T00:00:00Z")
        await client.use(100, "2025-06-20 12:00")
        client.advance("2025-07-01 00:05")
        await client.delete("/subscriptions/sub")
        (invoice,) = await client.invoices()
        assert fees(invoice) == [("subscription", "1.0", 3000), ("charge", "100.0", 500)]
        client.advance("2025-07-01 00:10")
        assert len(await client.invoices()) == 1


async def test_termination_cancels_what_was_to_follow() -> None:
    async with metered(amount_cents=3000) as client:
        await with_plans(client)
        await client.subscribe()
        await client.subscribe("free")
        await client.delete("/subscriptions/sub")
        assert await listed(client, "status[]=pending") == []
        client.advance("2025-07-02 00:00")
        assert await listed(client) == []


async def test_termination_need_not_bill() -> None:
    async with metered(amount_cents=3000) as client:
        await client.subscribe()
        await client.delete("/subscriptions/sub?on_termination_invoice=skip")
        assert await client.invoices() == []


async def test_unused_days_of_a_plan_in_advance_become_a_credit_for_the_next_invoice() -> None:
    async with metered(amount_cents=3000, pay_in_advance=True) as client:
        await client.subscribe(subscription_at="2025-06-10T00:00:00Z")
        client.advance("2025-06-20 12:00")
        await client.delete("/subscriptions/sub")
        await client.subscribe(external_id="again")
        # Ten days were left, from the 21st; eleven are billed, from the 20th.
        invoice = (await client.invoices())[-1]
        assert (fees(invoice), invoice["credit_notes_amount_cents"]) == ([("subscription", "1.0", 1100)], 1000)
        assert invoice["total_amount_cents"] == 100


@pytest.mark.parametrize(("in_advance", "query"), [(False, ""), (True, "?on_termination_credit_note=skip")])
async def test_there_is_no_credit_for_a_plan_in_arrears_or_if_none_is_wanted(in_advance: bool, query: str) -> None:
    async with metered(amount_cents=3000, pay_in_advance=in_advance) as client:
        await client.subscribe(subscription_at="2025-05-31T00:00:00Z")
        client.advance("2025-07-05 00:00")
        await client.delete(f"/subscriptions/sub{query}")
        await client.subscribe(external_id="again")
        client.advance("2025-08-01 00:10")
        assert [item["credit_notes_amount_cents"] for item in await client.invoices() if item["credits"]] == []


async def test_a_subscription_ends_on_the_day_it_was_given() -> None:
    async with metered(amount_cents=3000) as client:
        await client.subscribe(ending_at="2025-06-15T10:00:00Z")
        client.advance("2025-06-15 00:04")
        assert await listed(client) == [("basic", "active")]
        client.advance("2025-06-15 00:05")
        assert await listed(client) == []
        assert len(await client.invoices()) == 1


async def test_a_subscription_can_be_renamed_and_given_an_end() -> None:
    async with metered() as client:
        await client.subscribe()
        given = {"name": "Renamed", "ending_at": "2025-12-31T00:00:00Z"}
        changed = (await client.put("/subscriptions/sub", {"subscription": given}))["subscription"]
        assert {name: changed[name] for name in given} == given
        bad = {"subscription": {"ending_at": "2024-01-01T00:00:00Z"}}
        assert await client.refused("PUT", "/subscriptions/sub", bad) == (422, {"ending_at": ["invalid_date"]})
        assert await client.refused("PUT", "/subscriptions/none", bad) == (404, "subscription_not_found")


async def test_plan_overrides_are_one_subscriptions_own() -> None:
    async with metered() as client:
        plan = (await client.get("/plans/basic"))["plan"]
        charge = {"id": plan["charges"][0]["lago_id"], "properties": {"amount": "0.20"}}
        overrides = {"amount_cents": 500, "name": "Deal", "charges": [charge]}
        deal: Any = await client.subscribe(plan_overrides=overrides)
        await client.subscribe(external_id="plain")
        assert (deal["plan"]["name"], deal["plan"]["parent_id"]) == ("Deal", plan["lago_id"])
        assert deal["plan"]["charges"][0]["properties"] == {"amount": "0.20"}
        assert (await client.get("/plans/basic"))["plan"] == plan
        await client.use(10, "2025-06-10 12:00")
        assert (await client.usage())["amount_cents"] == 200
        shown = (await client.get("/subscriptions/sub"))["subscription"]["plan"]
        assert shown["charges"][0]["properties"] == {"amount": "0.20"}
        bad = {"external_customer_id": "tpp", "plan_code": "basic", "external_id": "bad"}
        bad |= {"plan_overrides": {"charges": [{**charge, "properties": {"amount": 1}}]}}  # type: ignore[dict-item]
        refused = await client.refused("POST", "/subscriptions", {"subscription": bad})
        assert refused == (422, {"amount": ["invalid_amount"]})


async def test_without_a_licence_overrides_are_forbidden() -> None:
    async with metered(config(premium=False)) as client:
        body = {
            "external_customer_id": "tpp",
            "plan_code": "basic",
            "external_id": "sub",
            "plan_overrides": {"name": "x"},
        }
        refused = await client.refused("POST", "/subscriptions", {"subscription": body}, checked=False)
        assert refused == (403, "feature_unavailable")


async def test_lists_are_filtered_and_paged() -> None:
    async with metered() as client:
        for number in range(5):
            await client.subscribe(external_id=f"s{number}", external_customer_id=f"c{number % 2}")
        answer = await client.get("/subscriptions?per_page=2&page=2")
        assert answer["meta"] == {
            "current_page": 2, "next_page": 3, "prev_page": 1, "total_pages": 3, "total_count": 5,
        }  # fmt: skip
        assert [item["external_id"] for item in answer["subscriptions"]] == ["s2", "s1"]
        assert len(await listed(client, "external_customer_id=c0")) == 3
        assert await listed(client, "external_id=s3") == [("basic", "active")]
        assert await listed(client, "external_id=none&external_id=s3") == [("basic", "active")]
        assert await listed(client, "plan_code=none") == []
        assert (await client.get("/subscriptions?external_id=none"))["meta"] == {
            "current_page": 0, "next_page": None, "prev_page": None, "total_pages": 0, "total_count": 0,
        }  # fmt: skip


async def test_deleting_a_plan_or_a_customer_ends_what_runs() -> None:
    async with metered(amount_cents=3000) as client:
        await client.subscribe()
        await client.delete("/plans/basic")
        assert await listed(client) == []
        assert len(await client.invoices()) == 1
        await client.plan("other")
        await client.subscribe("other", "second")
        wallet = await client.wallet()
        await client.delete("/customers/tpp")
        assert await listed(client) == []
        assert (await client.get(f"/wallets/{wallet['lago_id']}"))["wallet"]["status"] == "terminated"
        assert await client.refused("GET", "/customers/tpp") == (404, "customer_not_found")


async def test_a_running_server_bills_by_itself() -> None:
    """With ``auto_bill`` whoever looks finds everything billed that was due."""
    now = [1_749_556_800.0]
    given = config(period_s=2, auto_bill=True)
    live = type(given)(**{name: getattr(given, name) for name in given.__dataclass_fields__} | {"now": lambda: now[0]})
    async with running(live) as client:
        await client.customer()
        await client.plan(charges=[standard(await client.metric(), "0.05")], amount_cents=100)
        await client.subscribe()
        await client.subscribe("basic")
        now[0] += 5
        assert [fees(item) for item in await client.invoices()] == [[("subscription", "1.0", 100)]] * 2


async def test_periods_of_seconds_upgrade_downgrade_and_end_by_the_second() -> None:
    async with metered(config("2025-06-10 12:00:00", period_s=10), amount_cents=100) as client:
        await with_plans(client)
        await client.subscribe()
        client.advance("2025-06-10 12:00:04")
        await client.subscribe("pro")
        assert [fees(item) for item in await client.invoices()] == [[("subscription", "1.0", 40)]]
        await client.subscribe("free", ending_at="2025-06-10T12:00:20Z")
        client.advance("2025-06-10 12:00:10")
        assert await listed(client) == [("free", "active")]
        assert fees((await client.invoices())[-1]) == [("subscription", "1.0", 5400)]
        client.advance("2025-06-10 12:00:20")
        assert await listed(client) == []
