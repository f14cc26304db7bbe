"""Invoices at the end of periods: what they cover, what they cost, when they become final."""

from __future__ import annotations

from typing import Any

import pytest

from sidecar.sandbox.lago.lago_wire import Json
from tests.integration.sandbox.lago_kit import Client, config, fees, metered, running, standard


def charges_span(invoice: Any, at: int = 0) -> tuple[str, str]:
    period = invoice["billing_periods"][at]
    return period["charges_from_datetime"], period["charges_to_datetime"]


async def test_a_period_is_billed_ten_minutes_into_the_day_after_it() -> None:
    async with metered() as client:
        await client.subscribe(subscription_at="2025-05-20T08:00:00Z")
        await client.use(100, "2025-06-30 23:59")
        client.advance("2025-07-01 00:09")
        assert await client.invoices() == []
        client.advance("2025-07-01 00:10")
        (invoice,) = await client.invoices()
        assert (invoice["status"], invoice["created_at"]) == ("finalized", "2025-07-01T00:10:00Z")
        assert charges_span(invoice) == ("2025-06-01T00:00:00Z", "2025-06-30T23:59:59Z")
        assert invoice["billing_periods"][0]["invoicing_reason"] == "subscription_periodic"
        assert fees(invoice) == [("charge", "100.0", 500)]
        client.advance("2025-07-31 23:59")
        assert len(await client.invoices()) == 1
        client.advance("2025-08-01 00:10")
        assert len(await client.invoices()) == 2


async def test_a_fixed_charge_is_billed_with_each_period_whatever_was_used() -> None:
    support = {"code": "support", "charge_model": "standard", "units": "2", "properties": {"amount": "2.50"}}
    async with running() as client:
        metric = await client.metric()
        await client.customer()
        made = await client.plan(charges=[standard(metric, "0.05")], fixed_charges=[support])
        assert [each["code"] for each in made["fixed_charges"]] == ["support"]
        subscription = await client.subscribe()
        assert "fixed_charges" not in subscription["plan"]
        (listed,) = (await client.get("/subscriptions/sub/fixed_charges"))["fixed_charges"]
        assert (listed["code"], listed["units"], listed["properties"]) == ("support", 2.0, {"amount": "2.5"})
        assert (await client.refused("GET", "/subscriptions/none/fixed_charges"))[1] == "subscription_not_found"
        client.advance("2025-07-01 00:10")
        (invoice,) = await client.invoices()
        assert ("fixed_charge", "2.0", 500) in fees(invoice)
        client.advance("2025-08-01 00:10")
        assert len(await client.invoices()) == 2


async def test_the_minute_of_billing_can_be_set() -> None:
    async with metered(config(bill_minute=1)) as client:
        await client.subscribe()
        client.advance("2025-07-01 00:00:59")
        assert await client.invoices() == []
        client.advance("2025-07-01 00:01")
        assert len(await client.invoices()) == 1


async def test_an_event_for_a_period_that_was_billed_is_never_billed() -> None:
    async with metered() as client:
        await client.subscribe()
        await client.use(10, "2025-06-30 20:00")
        client.advance("2025-07-01 00:10")
        await client.use(5, "2025-06-30 21:00")
        await client.use(1, "2025-07-01 00:00")
        assert (await client.usage())["amount_cents"] == 5
        client.advance("2025-08-01 00:10")
        assert [fees(invoice) for invoice in await client.invoices()] == [
            [("charge", "10.0", 50)],
            [("charge", "1.0", 5)],
        ]


async def test_periods_are_those_of_the_customers_time_zone() -> None:
    async with metered() as client:
        await client.customer(timezone="America/New_York")
        subscription = await client.subscribe()
        assert subscription["current_billing_period_started_at"] == "2025-06-10T12:00:00Z"
        assert subscription["current_billing_period_ending_at"] == "2025-07-01T03:59:59Z"
        await client.use(1, "2025-07-01 03:59")
        await client.use(2, "2025-07-01 04:00")
        client.advance("2025-07-01 04:09")
        assert await client.invoices() == []
        client.advance("2025-07-01 04:10")
        (invoice,) = await client.invoices()
        assert charges_span(invoice) == ("2025-06-10T12:00:00Z", "2025-07-01T03:59:59Z")
        assert fees(invoice) == [("charge", "1.0", 5)]


@pytest.mark.parametrize(
    ("interval", "billing_time", "billed", "ends"),
    [
        ("weekly", "calendar", "2025-06-16 00:10", "2025-06-15T23:59:59Z"),
        ("weekly", "anniversary", "2025-06-17 00:10", "2025-06-16T23:59:59Z"),
        ("monthly", "anniversary", "2025-07-10 00:10", "2025-07-09T23:59:59Z"),
        ("quarterly", "calendar", "2025-07-01 00:10", "2025-06-30T23:59:59Z"),
        ("quarterly", "anniversary", "2025-09-10 00:10", "2025-09-09T23:59:59Z"),
        ("semiannual", "calendar", "2025-07-01 00:10", "2025-06-30T23:59:59Z"),
        ("yearly", "calendar", "2026-01-01 00:10", "2025-12-31T23:59:59Z"),
        ("yearly", "anniversary", "2026-06-10 00:10", "2026-06-09T23:59:59Z"),
    ],
)
async def test_plans_bill_at_their_interval(interval: str, billing_time: str, billed: str, ends: str) -> None:
    async with metered(interval=interval) as client:
        subscription = await client.subscribe(billing_time=billing_time)
        assert subscription["current_billing_period_ending_at"] == ends
        client.advance(billed.replace("00:10", "00:09"))
        assert await client.invoices() == []
        client.advance(billed)
        (invoice,) = await client.invoices()
        assert charges_span(invoice) == ("2025-06-10T12:00:00Z", ends)


async def test_a_fee_in_arrears_is_prorated_by_days_for_the_first_period() -> None:
    async with metered(amount_cents=3000) as client:
        await client.subscribe()
        client.advance("2025-07-01 00:10")
        client.advance("2025-08-01 00:10")
        first, second = await client.invoices()
        # From the 10th to the 30th of June: 21 of 30 days.
        assert fees(first) == [("subscription", "1.0", 2100)]
        assert first["billing_periods"][0]["subscription_from_datetime"] == "2025-06-10T00:00:00Z"
        assert fees(second) == [("subscription", "1.0", 3000)]


async def test_a_fee_in_advance_is_billed_at_the_start_and_then_for_the_period_that_begins() -> None:
    async with metered(amount_cents=3000, pay_in_advance=True) as client:
        await client.subscribe()
        (first,) = await client.invoices()
        assert (fees(first), first["created_at"]) == ([("subscription", "1.0", 2100)], "2025-06-10T12:00:00Z")
        assert first["billing_periods"][0]["invoicing_reason"] == "subscription_starting"
        await client.use(100, "2025-06-20 10:00")
        client.advance("2025-07-01 00:10")
        second = (await client.invoices())[-1]
        assert fees(second) == [("subscription", "1.0", 3000), ("charge", "100.0", 500)]
        period = second["billing_periods"][0]
        assert (period["subscription_from_datetime"], period["subscription_to_datetime"]) == (
            "2025-07-01T00:00:00Z",
            "2025-07-31T23:59:59Z",
        )
        assert charges_span(second) == ("2025-06-10T12:00:00Z", "2025-06-30T23:59:59Z")


async def test_charges_of_a_yearly_plan_may_be_billed_monthly() -> None:
    async with metered(interval="yearly", amount_cents=36500, bill_charges_monthly=True) as client:
        subscription = await client.subscribe(subscription_at="2024-12-31T00:00:00Z")
        assert subscription["current_billing_period_ending_at"] == "2025-06-30T23:59:59Z"
        await client.use(100, "2025-06-20 10:00")
        client.advance("2025-07-01 00:10")
        assert [fees(invoice) for invoice in await client.invoices()] == [[("charge", "100.0", 500)]]
        client.advance("2026-01-01 00:10")
        assert fees((await client.invoices())[-1]) == [("subscription", "1.0", 36500)]


async def test_a_trial_waives_the_fee_and_not_the_usage() -> None:
    async with metered(amount_cents=3000, trial_period=30) as client:
        await client.subscribe()
        await client.use(10, "2025-06-20 10:00")
        client.advance("2025-07-01 00:10")
        client.advance("2025-07-10 12:34")
        assert (await client.get("/subscriptions/sub"))["subscription"]["trial_ended_at"] is None
        client.advance("2025-07-10 12:35")
        found = (await client.get("/subscriptions/sub"))["subscription"]
        assert found["trial_ended_at"] == "2025-07-10T12:00:00Z"
        client.advance("2025-08-01 00:10")
        first, second = await client.invoices()
        assert fees(first) == [("charge", "10.0", 50)]
        # From the 10th to the 31st of July: 22 of 31 days.
        assert fees(second) == [("subscription", "1.0", 2129)]


async def test_a_fee_in_advance_is_billed_when_the_trial_ends() -> None:
    async with metered(amount_cents=3100, pay_in_advance=True, trial_period=30) as client:
        await client.subscribe()
        assert await client.invoices() == []
        client.advance("2025-07-10 12:35")
        assert [fees(item) for item in await client.invoices() if item["fees"]] == [[("subscription", "1.0", 2200)]]


async def test_a_trial_counts_from_the_first_subscription_and_goes_on_after_an_upgrade() -> None:
    async with metered(amount_cents=3000, trial_period=30) as client:
        await client.plan("pro", amount_cents=9300, trial_period=30)
        await client.subscribe()
        client.advance("2025-07-05 12:00")
        await client.subscribe("pro")
        client.advance("2025-08-01 00:10")
        # From the 10th to the 31st of July: 22 of 31 days.
        assert fees((await client.invoices())[-1]) == [("subscription", "1.0", 6600)]


async def test_a_fee_in_advance_is_billed_once_on_a_day_on_which_a_trial_ends() -> None:
    for minute in (10, 50):
        given = config("2025-06-01 00:00", bill_minute=minute)
        async with metered(given, amount_cents=3100, pay_in_advance=True, trial_period=30) as client:
            await client.subscribe()
            client.advance("2025-07-01 23:59")
            billed = [fees(invoice) for invoice in await client.invoices()]
            assert [rows for rows in billed if rows] == [[("subscription", "1.0", 3100)]]


async def test_each_fee_is_rounded_once_half_away_from_zero() -> None:
    async with metered(price="0.005") as client:
        other = await client.metric("payments")
        await client.plan("two", [standard(other, "0.005")])
        await client.subscribe()
        await client.use(101, "2025-06-20 10:00")
        client.advance("2025-07-01 00:10")
        (invoice,) = await client.invoices()
        fee: Any = invoice["fees"][1]
        assert (fee["amount_cents"], fee["precise_amount"], fee["units"]) == (51, "0.505", "101.0")
        assert (fee["precise_unit_amount"], fee["events_count"]) == ("0.005", 1)


async def test_taxes_come_from_the_charge_the_plan_the_customer_or_the_organisation() -> None:
    async with running() as client:
        for code, rate in (("org", "10"), ("customer", "20"), ("plan", "30"), ("charge", "40")):
            given = {"code": code, "name": code, "rate": rate, "applied_to_organization": code == "org"}
            await client.post("/taxes", {"tax": given})
        own, of_plan = await client.metric("own"), await client.metric("of_plan")
        charges = [standard(own, "1", tax_codes=["charge"]), standard(of_plan, "1")]
        await client.plan("taxed", charges, tax_codes=["plan"])
        await client.plan("plain", [standard(of_plan, "1")])
        expected: dict[str, tuple[str, list[str], list[tuple[str, int]]]] = {
            "tpp-1": ("taxed", [], [("charge", 400), ("plan", 300)]),
            "tpp-2": ("plain", ["customer"], [("customer", 200)]),
            "tpp-3": ("plain", [], [("org", 100)]),
        }
        for name, (plan, codes, _) in expected.items():
            await client.customer(name, tax_codes=codes)
            await client.subscribe(plan, name, external_customer_id=name)
            for code in ("own", "of_plan"):
                await client.use(10, "2025-06-20 10:00", code=code, sub=name)
        client.advance("2025-07-01 00:10")
        for name, (_, _, taxes) in expected.items():
            (invoice,) = await client.invoices(f"external_customer_id={name}")
            applied: Any = invoice["applied_taxes"]
            found = {tax["tax_code"]: tax["amount_cents"] for tax in applied if tax["amount_cents"]}
            assert found == dict(taxes)
            assert invoice["total_amount_cents"] == invoice["fees_amount_cents"] + sum(cents for _, cents in taxes)


async def test_tax_is_rounded_once_for_the_invoice() -> None:
    async with running() as client:
        await client.post(
            "/taxes", {"tax": {"code": "vat", "name": "VAT", "rate": "5", "applied_to_organization": True}}
        )
        await client.customer()
        charges = [standard(await client.metric(f"m{number}"), "0.10") for number in range(3)]
        await client.plan(charges=charges)
        await client.subscribe()
        for number in range(3):
            await client.use(1, "2025-06-20 10:00", code=f"m{number}")
        client.advance("2025-07-01 00:10")
        (invoice,) = await client.invoices()
        listed: Any = invoice["fees"]
        # 3 times 0.5 cents is 1.5 cents, rounded 2; rounded for each fee it would be 3.
        assert [fee["taxes_amount_cents"] for fee in listed[1:]] == [1, 1, 1]
        assert (invoice["taxes_amount_cents"], invoice["total_amount_cents"]) == (2, 32)


async def test_two_subscriptions_of_a_customer_share_an_invoice() -> None:
    async with metered() as client:
        await client.subscribe(external_id="one")
        await client.subscribe(external_id="two")
        await client.use(10, "2025-06-20 10:00", sub="one")
        await client.use(20, "2025-06-20 10:00", sub="two")
        client.advance("2025-07-01 00:10")
        (invoice,) = await client.invoices()
        periods: Any = invoice["billing_periods"]
        assert sorted(item["external_subscription_id"] for item in periods) == ["one", "two"]
        assert invoice["fees_amount_cents"] == 150


async def test_an_invoice_without_any_amount_is_final_or_invisible_as_configured() -> None:
    async with metered() as client:
        await client.subscribe()
        client.advance("2025-07-01 00:10")
        (invoice,) = await client.invoices()
        assert (invoice["total_amount_cents"], invoice["payment_status"], fees(invoice)) == (0, "succeeded", [])
    async with metered(config(finalize_zero_invoices=False)) as client:
        await client.subscribe()
        client.advance("2025-07-01 00:10")
        assert await client.invoices() == []
        (hidden,) = client.lago.store.invoices.values()
        assert hidden.status == "closed"
        assert (await client.refused("GET", f"/invoices/{hidden.id}")) == (404, "invoice_not_found")
        await client.customer(finalize_zero_amount_invoice="finalize")
        client.advance("2025-08-01 00:10")
        assert len(await client.invoices()) == 1


async def test_days_of_grace_leave_a_draft_that_late_events_still_join() -> None:
    async with metered(config(invoice_grace_period_days=3)) as client:
        wallet = await client.wallet(granted_credits="100")
        await client.subscribe()
        await client.use(10, "2025-06-20 10:00")
        client.advance("2025-07-01 00:10")
        (draft,) = await client.invoices()
        assert (draft["status"], draft["total_amount_cents"], draft["prepaid_credit_amount_cents"]) == ("draft", 50, 0)
        assert await client.balance(wallet) == 10_000
        client.advance("2025-07-02 00:00")
        await client.use(30, "2025-06-30 22:00")
        await client.use(7, "2025-07-01 22:00")
        client.advance("2025-07-02 00:05")
        assert fees((await client.invoices())[0]) == [("charge", "40.0", 200)]
        await client.use(2, "2025-06-30 23:00")
        client.advance("2025-07-04 00:19")
        assert (await client.invoices())[0]["status"] == "draft"
        client.advance("2025-07-04 00:20")
        (final,) = await client.invoices()
        assert (final["lago_id"], final["status"]) == (draft["lago_id"], "finalized")
        assert (fees(final), final["prepaid_credit_amount_cents"]) == ([("charge", "42.0", 210)], 210)
        assert await client.balance(wallet) == 9790


async def test_a_draft_can_be_refreshed_and_finalized_by_hand() -> None:
    async with metered() as client:
        await client.customer(billing_configuration={"invoice_grace_period": 5})
        await client.subscribe()
        client.advance("2025-07-01 00:10")
        (draft,) = await client.invoices()
        path = f"/invoices/{draft['lago_id']}"
        await client.use(10, "2025-06-20 10:00")
        assert (await client.put(f"{path}/refresh"))["invoice"]["fees_amount_cents"] == 50
        given = {"invoice": {"payment_status": "succeeded"}}
        refused = await client.refused("PUT", path, given, checked=False)
        assert refused == (405, "payment_status_update_on_draft_invoice")
        assert (await client.put(f"{path}/finalize"))["invoice"]["status"] == "finalized"
        assert await client.refused("PUT", f"{path}/finalize") == (404, "invoice_not_found")
        await client.use(10, "2025-06-21 10:00")
        assert (await client.put(f"{path}/refresh"))["invoice"]["fees_amount_cents"] == 50
        client.advance("2025-07-20 00:00")
        assert len(await client.invoices()) == 1


async def test_a_price_edited_in_mid_period_rates_the_whole_period_anew() -> None:
    async with metered() as client:
        await client.subscribe()
        await client.use(10, "2025-06-10 12:00")
        assert (await client.usage())["amount_cents"] == 50
        plan = (await client.get("/plans/basic"))["plan"]
        charge = {"id": plan["charges"][0]["lago_id"], "charge_model": "standard", "properties": {"amount": "0.10"}}
        await client.put("/plans/basic", {"plan": {"charges": [charge]}})
        assert (await client.usage())["amount_cents"] == 100
        client.advance("2025-07-01 00:10")
        assert fees((await client.invoices())[0]) == [("charge", "10.0", 100)]


async def test_a_recurring_metric_is_never_reset() -> None:
    async with running() as client:
        await client.customer()
        await client.plan(charges=[standard(await client.metric("seats", recurring=True), "1")])
        await client.subscribe()
        await client.use(3, "2025-06-20 10:00", code="seats")
        client.advance("2025-07-20 00:00")
        await client.use(2, "2025-07-20 00:00", code="seats")
        client.advance("2025-08-01 00:10")
        assert [fees(item) for item in await client.invoices()] == [[("charge", "3.0", 300)], [("charge", "5.0", 500)]]


async def test_a_filter_of_a_charge_has_a_price_of_its_own() -> None:
    async with running() as client:
        await client.customer()
        metric = await client.metric(filters=[{"key": "region", "values": ["eu", "us"]}])
        filter_ = {"invoice_display_name": "EU", "properties": {"amount": "1"}, "values": {"region": ["eu"]}}
        await client.plan(charges=[standard(metric, "2", filters=[filter_])])
        await client.subscribe()
        for number, region in enumerate(("eu", "us", "eu")):
            event = {
                "transaction_id": f"t{number}", "code": "api_calls", "external_subscription_id": "sub",
                "properties": {"calls": "10", "region": region},
            }  # fmt: skip
            await client.post("/events", {"event": event})
        used: Any = (await client.usage())["charges_usage"]
        assert [(item["units"], item["amount_cents"]) for item in used] == [("30.0", 4000)]
        assert [(item["units"], item["values"]) for item in used[0]["filters"]] == [
            ("20.0", {"region": ["eu"]}),
            ("10.0", None),
        ]
        client.advance("2025-07-01 00:10")
        assert fees((await client.invoices())[0]) == [("charge", "20.0", 2000), ("charge", "10.0", 2000)]


async def test_unpaid_invoices_say_what_is_due() -> None:
    async with metered(config(payments="hold"), price="1") as client:
        await client.subscribe()
        await client.use(10, "2025-06-20 10:00")
        client.advance("2025-07-01 00:10")
        (invoice,) = await client.invoices("payment_status=pending")
        assert (invoice["total_due_amount_cents"], invoice["total_paid_amount_cents"]) == (1000, 0)
        failed = await client.post(f"/sandbox/invoices/{invoice['lago_id']}/pay", {"succeed": False})
        assert (failed["invoice"]["payment_status"], failed["invoice"]["total_due_amount_cents"]) == ("failed", 1000)
        paid = await client.post(f"/sandbox/invoices/{invoice['lago_id']}/pay", {"succeed": True})
        assert (paid["invoice"]["payment_status"], paid["invoice"]["total_due_amount_cents"]) == ("succeeded", 0)


async def test_a_voided_invoice_can_be_made_anew_as_it_was_or_counted_again() -> None:
    async with metered(price="1") as client:
        wallet = await client.wallet(granted_credits="100")
        await client.subscribe()
        await client.use(10, "2025-06-20 10:00")
        client.advance("2025-07-01 00:10")
        (invoice,) = await client.invoices()
        path = f"/sandbox/invoices/{invoice['lago_id']}/regenerate"
        assert (await client.call("POST", path))[0] == 405  # It is not void yet.
        await client.post(f"/invoices/{invoice['lago_id']}/void")
        await client.use(5, "2025-06-21 10:00")
        same = (await client.post(path))["invoice"]
        assert (fees(same), same["prepaid_credit_amount_cents"]) == ([("charge", "10.0", 1000)], 1000)
        assert charges_span(same) == charges_span(invoice)
        await client.post(f"/invoices/{same['lago_id']}/void")
        counted = (await client.post(path, {"recount": True}))["invoice"]
        assert fees(counted) == [("charge", "15.0", 1500)]
        assert await client.balance(wallet) == 8500


async def test_invoices_can_be_found_by_customer_status_type_and_payment() -> None:
    async with metered(price="1") as client:
        await client.customer("other")
        await client.subscribe()
        await client.subscribe(external_id="theirs", external_customer_id="other")
        wallet = await client.wallet(paid_credits="5")
        assert await client.balance(wallet) == 500
        client.advance("2025-07-01 00:10")

        async def found(query: str) -> list[Json]:
            return (await client.get(f"/invoices?{query}"))["invoices"]  # type: ignore[no-any-return]

        assert len(await found("")) == 3
        assert len(await found("external_customer_id=tpp")) == 2
        assert len(await found("invoice_type=credit")) == 1
        assert len(await found("statuses[]=draft&statuses[]=finalized")) == 3
        assert await found("status=draft") == []
        assert len(await found("payment_status=succeeded&issuing_date_from=2025-07-01")) == 2
        assert len((await client.get("/customers/other/invoices"))["invoices"]) == 1
        assert len(await found("per_page=2&page=2")) == 1
        assert [item["issuing_date"] for item in await found("")] == ["2025-07-01", "2025-07-01", "2025-06-10"]
        assert len((await client.get("/fees?fee_type=credit"))["fees"]) == 1
        fee = (await client.get("/fees?external_customer_id=tpp"))["fees"][0]
        assert (await client.get(f"/fees/{fee['lago_id']}"))["fee"] == fee


async def drive(client: Client, months: int) -> None:
    for month in range(months):
        await client.use(100 + month, f"2025-{7 + month:02d}-15 10:00")
        client.advance(f"2025-{8 + month:02d}-01 00:10")


async def test_a_clock_moved_in_one_step_bills_as_one_moved_in_many() -> None:
    results = []
    for in_steps in (True, False):
        async with metered(config("2025-07-01 00:00"), price="0.01", amount_cents=500) as client:
            await client.subscribe()
            if in_steps:
                await drive(client, 3)
            else:
                for month in range(3):
                    await client.use(100 + month, f"2025-{7 + month:02d}-15 10:00")
                client.advance("2025-10-01 00:10")
            results.append([(item["created_at"], fees(item)) for item in await client.invoices()])
    assert results[0] == results[1]
    assert len(results[0]) == 3


async def test_periods_of_seconds_are_billed_right_when_they_end() -> None:
    async with metered(config("2025-06-10 12:00:03", period_s=10), amount_cents=100) as client:
        subscription = await client.subscribe()
        assert subscription["current_billing_period_ending_at"] == "2025-06-10T12:00:09Z"
        await client.use(10, "2025-06-10 12:00:09")
        await client.use(1, "2025-06-10 12:00:10")
        client.advance("2025-06-10 12:00:09")
        assert await client.invoices() == []
        client.advance("2025-06-10 12:00:25")
        first, second = await client.invoices()
        assert fees(first) == [("subscription", "1.0", 70), ("charge", "10.0", 50)]
        assert charges_span(first) == ("2025-06-10T12:00:03Z", "2025-06-10T12:00:09Z")
        assert fees(second) == [("subscription", "1.0", 100), ("charge", "1.0", 5)]


def _filter(amount: str, **values: list[str]) -> Any:
    return {"properties": {"amount": amount}, "values": values}


async def _billed(filters: list[Any], events: list[dict[str, str]], **properties: object) -> list[tuple[Any, Any, str]]:
    """Filter, group and units of each fee with usage, for events of one unit."""
    async with running() as client:
        await client.customer()
        keys = [{"key": "region", "values": ["eu", "us", "asia"]}, {"key": "tier", "values": ["1", "2"]}]
        charge = standard(await client.metric(filters=keys), "2", filters=filters)
        charge["properties"] = {"amount": "2", **properties}
        await client.plan(charges=[charge])
        await client.subscribe()
        for number, given in enumerate(events):
            event = {
                "transaction_id": f"t{number}", "code": "api_calls", "external_subscription_id": "sub",
                "properties": {"calls": "1", **given},
            }  # fmt: skip
            await client.post("/events", {"event": event})
        client.advance("2025-07-01 00:10")
        (invoice,) = await client.invoices()
        listed: Any = invoice["fees"]
        items = [(fee["item"], fee["units"]) for fee in listed if fee["item"]["type"] == "charge"]
        return [(item["filters"], item["grouped_by"], units) for item, units in items]


async def test_the_narrower_of_two_filters_takes_an_event() -> None:
    eu = {"region": "eu"}
    filters = [_filter("1", region=["eu", "us"]), _filter("3", region=["eu"]), _filter("4", region=["eu"], tier=["1"])]
    found = await _billed(filters, [eu, {"region": "us"}, {**eu, "tier": "1"}, {**eu, "tier": "9"}, {}])
    assert found == [
        ({"region": ["eu", "us"]}, {}, "1.0"), ({"region": ["eu"]}, {}, "2.0"),
        ({"region": ["eu"], "tier": ["1"]}, {}, "1.0"), (None, {}, "1.0"),
    ]  # fmt: skip


async def test_filters_that_overlap_bill_an_event_twice_and_the_second_of_two_equal_ones_bills_none() -> None:
    event = {"region": "eu", "tier": "1"}
    overlapping = await _billed([_filter("1", region=["eu"]), _filter("3", tier=["1"])], [event])
    assert overlapping == [({"region": ["eu"]}, {}, "1.0"), ({"tier": ["1"]}, {}, "1.0")]
    partly = await _billed([_filter("1", region=["eu", "us"]), _filter("3", region=["eu", "asia"])], [event])
    assert [units for _, _, units in partly] == ["1.0", "1.0"]
    equal = await _billed([_filter("1", region=["eu"]), _filter("3", region=["eu"])], [event])
    assert equal == [({"region": ["eu"]}, {}, "1.0")]


async def test_all_values_are_those_of_the_metric() -> None:
    found = await _billed([_filter("1", region=["__ALL_FILTER_VALUES__"])], [{"region": "asia"}, {"region": "mars"}])
    assert found == [({"region": ["__ALL_FILTER_VALUES__"]}, {}, "1.0"), (None, {}, "1.0")]


async def test_each_group_is_a_fee_also_that_of_events_without_the_property() -> None:
    events = [{"region": "eu"}, {"region": "us"}, {"region": "eu"}, {}]
    found = await _billed([], events, pricing_group_keys=["region"])
    assert found == [(None, {"region": "eu"}, "2.0"), (None, {"region": "us"}, "1.0"), (None, {"region": None}, "1.0")]


async def test_current_usage_shows_filters_within_groups() -> None:
    async with running() as client:
        await client.customer()
        metric = await client.metric(filters=[{"key": "region", "values": ["eu", "us"]}])
        eu = {"values": {"region": ["eu"]}, "properties": {"amount": "1", "grouped_by": ["tier"]}}
        plan: Any = await client.plan(charges=[standard(metric, "2", filters=[eu])])
        (filter_,) = plan["charges"][0]["filters"]
        assert filter_["charge_code"] == "api_calls"
        assert filter_["properties"]["pricing_group_keys"] == ["tier"], "answers have both names"
        await client.subscribe()
        for number, given in enumerate(({"region": "eu", "tier": "1"}, {"region": "eu", "tier": "2"}, {})):
            event = {
                "transaction_id": f"t{number}", "code": "api_calls", "external_subscription_id": "sub",
                "properties": {"calls": "10", **given},
            }  # fmt: skip
            await client.post("/events", {"event": event})
        used: Any = (await client.usage())["charges_usage"][0]
        assert (used["units"], used["amount_cents"]) == ("30.0", 4000)
        assert [(each["values"], each["units"]) for each in used["filters"]] == [
            ({"region": ["eu"]}, "20.0"), (None, "10.0"),
        ]  # fmt: skip
        shown = [
            (each["grouped_by"], [(one["values"], one["units"]) for one in each["filters"]])
            for each in used["grouped_usage"]
        ]
        assert shown == [
            ({"tier": "1"}, [({"region": ["eu"]}, "10.0")]), ({"tier": "2"}, [({"region": ["eu"]}, "10.0")]),
            ({}, [(None, "10.0")]),
        ]  # fmt: skip
