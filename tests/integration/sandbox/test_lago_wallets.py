"""Wallets, top-ups, voids, and how wallets pay invoices."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from sidecar.sandbox.lago.lago_wire import Json
from tests.integration.sandbox.lago_kit import Client, config, fees, metered, running, standard


async def transactions(client: Client, wallet: Json, query: str = "") -> list[Any]:
    listed = await client.get(f"/wallets/{wallet['lago_id']}/wallet_transactions?{query}")
    return listed["wallet_transactions"]  # type: ignore[no-any-return]


async def assert_books_balance(client: Client, wallet: Json) -> None:
    """A wallet's balance is the settled inbound less the settled outbound transactions, and what remains of those."""
    found = (await client.get(f"/wallets/{wallet['lago_id']}"))["wallet"]
    listed = await transactions(client, wallet)
    settled = [item for item in listed if item["status"] == "settled"]
    signs = {"inbound": 1, "outbound": -1}
    total = sum(signs[item["transaction_type"]] * Decimal(item["amount"]) * 100 for item in settled)
    remaining = sum(item["remaining_amount_cents"] or 0 for item in settled)
    assert found["balance_cents"] == total == remaining


async def test_first_credits_arrive_after_the_answer() -> None:
    async with running() as client:
        await client.customer()
        given = {"external_customer_id": "tpp", "rate_amount": "2", "currency": "EUR", "granted_credits": "10"}
        answer = (await client.post("/wallets", {"wallet": given}))["wallet"]
        assert (answer["balance_cents"], answer["credits_balance"]) == (0, "0.0")
        found = (await client.get("/wallets?external_customer_id=tpp"))["wallets"][0]
        assert (found["balance_cents"], found["credits_balance"], found["rate_amount"]) == (2000, "10.0", "2.0")


async def test_granted_credits_settle_at_once_and_paid_ones_with_their_invoice() -> None:
    async with running() as client:
        await client.customer()
        wallet = await client.wallet(name="Main Wallet")
        assert wallet["code"] == "main_wallet"
        made = await client.top_up(wallet, paid_credits="30.00", granted_credits="10.00")
        assert [(item["transaction_status"], item["status"]) for item in made] == [
            ("purchased", "pending"),
            ("granted", "settled"),
        ]
        assert await client.balance(wallet) == 4000
        listed = await transactions(client, wallet, "transaction_status=purchased")
        assert [item["status"] for item in listed] == ["settled"]
        (invoice,) = await client.invoices("invoice_type=credit")
        assert (invoice["status"], invoice["payment_status"], invoice["total_amount_cents"]) == (
            "finalized",
            "succeeded",
            3000,
        )
        assert (invoice["taxes_amount_cents"], fees(invoice)) == (0, [("credit", "30.0", 3000)])
        assert listed[0]["lago_invoice_id"] == invoice["lago_id"]
        await assert_books_balance(client, wallet)


async def test_a_payment_that_is_held_settles_nothing_until_it_is_made() -> None:
    async with running(config(payments="hold")) as client:
        await client.customer()
        wallet = await client.wallet(paid_credits="30")
        assert await client.balance(wallet) == 0
        (invoice,) = await client.invoices("invoice_type=credit")
        assert (invoice["payment_status"], invoice["total_due_amount_cents"]) == ("pending", 3000)
        await client.post(f"/sandbox/invoices/{invoice['lago_id']}/pay", {"succeed": True})
        assert await client.balance(wallet) == 3000
        assert (await client.call("POST", f"/sandbox/invoices/{invoice['lago_id']}/pay"))[0] == 405


async def test_a_payment_that_fails_fails_the_transaction_and_a_later_success_settles_it_once() -> None:
    async with running(config(payments="fail")) as client:
        await client.customer()
        wallet = await client.wallet()
        await client.top_up(wallet, paid_credits="30")
        assert [item["status"] for item in await transactions(client, wallet)] == ["failed"]
        (invoice,) = await client.invoices("invoice_type=credit&payment_status=failed")
        for _ in range(2):
            await client.put(f"/invoices/{invoice['lago_id']}", {"invoice": {"payment_status": "succeeded"}})
        assert await client.balance(wallet) == 3000
        await client.put(f"/invoices/{invoice['lago_id']}", {"invoice": {"payment_status": "failed"}})
        assert await client.balance(wallet) == 3000
        await assert_books_balance(client, wallet)


async def test_the_payment_switch_can_be_thrown_while_running() -> None:
    async with running() as client:
        await client.customer()
        wallet = await client.wallet()
        assert await client.post("/sandbox/payments", {"mode": "hold"}) == {"mode": "hold"}
        await client.top_up(wallet, paid_credits="5")
        assert await client.balance(wallet) == 0
        assert await client.post("/sandbox/payments", {"mode": "succeed"}) == {"mode": "succeed"}
        (invoice,) = await client.invoices("invoice_type=credit")
        await client.post(f"/invoices/{invoice['lago_id']}/retry_payment")
        assert await client.balance(wallet) == 500
        assert (await client.call("POST", "/sandbox/payments", {"mode": "maybe"}))[0] == 400


async def test_voided_credits_count_as_consumed_and_never_exceed_the_balance() -> None:
    async with running() as client:
        await client.customer()
        wallet = await client.wallet(granted_credits="10")
        await client.top_up(wallet, voided_credits="4")
        found = (await client.get(f"/wallets/{wallet['lago_id']}"))["wallet"]
        assert (found["balance_cents"], found["consumed_credits"]) == (600, "4.0")
        given = {"wallet_id": wallet["lago_id"], "voided_credits": "6.01"}
        refused = await client.refused("POST", "/wallet_transactions", {"wallet_transaction": given})
        assert refused == (422, {"voided_credits": ["insufficient_credits"]})
        await assert_books_balance(client, wallet)


async def test_one_grant_can_be_voided_by_its_id() -> None:
    async with running() as client:
        await client.customer()
        wallet = await client.wallet(granted_credits="10")
        (second,) = await client.top_up(wallet, granted_credits="3")
        await client.top_up(wallet, voided_transaction_id=second["lago_id"])
        assert await client.balance(wallet) == 1000
        again = {"wallet_id": wallet["lago_id"], "voided_transaction_id": second["lago_id"]}
        refused = await client.refused("POST", "/wallet_transactions", {"wallet_transaction": again})
        assert refused == (422, {"voided_transaction_id": ["no_remaining_amount"]})


@pytest.mark.parametrize(
    ("given", "details"),
    [
        ({"paid_credits": 10}, {"paid_credits": ["invalid_paid_credits", "invalid_amount"]}),
        ({"granted_credits": "-1"}, {"granted_credits": ["invalid_granted_credits", "invalid_amount"]}),
        ({"granted_credits": "NaN"}, {"granted_credits": ["invalid_granted_credits", "invalid_amount"]}),
        ({"granted_credits": "0.004"}, {"granted_credits": ["amount_rounds_to_zero"]}),
        ({"voided_credits": "x"}, {"voided_credits": ["invalid_voided_credits", "invalid_amount"]}),
        ({"wallet_id": "none"}, {"wallet_id": ["wallet_not_found"]}),
        ({"granted_credits": "1", "metadata": [{"key": "a"}]}, {"metadata": ["invalid_key_value_pair"]}),
        ({"granted_credits": "1", "metadata": [{"key": "k" * 21, "value": "v"}]}, {"metadata": ["key_too_long"]}),
        ({"granted_credits": "1", "metadata": {"key": "v"}}, {"metadata": ["invalid_type"]}),
        ({"paid_credits": "0.5"}, {"paid_credits": ["amount_below_minimum"]}),
        ({"paid_credits": "101"}, {"paid_credits": ["amount_above_maximum"]}),
    ],
)
async def test_a_bad_top_up_is_refused_and_moves_nothing(given: Json, details: Json) -> None:
    async with running() as client:
        await client.customer()
        wallet = await client.wallet(paid_top_up_min_amount_cents=100, paid_top_up_max_amount_cents=10_000)
        body = {"wallet_transaction": {"wallet_id": wallet["lago_id"], **given}}
        assert await client.refused("POST", "/wallet_transactions", body) == (422, details)
        assert await transactions(client, wallet) == []


async def test_transactions_can_be_found_by_status_type_and_metadata_and_bad_filters_are_ignored() -> None:
    async with running() as client:
        await client.customer()
        wallet = await client.wallet()
        pair = {"key": "order", "value": "o-1"}
        (marked,) = await client.top_up(wallet, granted_credits="3", metadata=[pair], name="gift", priority=2)
        await client.top_up(wallet, granted_credits="4")
        await client.top_up(wallet, voided_credits="1")
        assert (marked["metadata"], marked["name"], marked["priority"]) == ([pair], "gift", 2)
        assert [item["lago_id"] for item in await transactions(client, wallet, "metadata[order]=o-1")] == [
            marked["lago_id"]
        ]
        assert len(await transactions(client, wallet, "transaction_type=outbound")) == 1
        assert len(await transactions(client, wallet, "transaction_status=granted&status=settled")) == 2
        assert len(await transactions(client, wallet, "status=unheard-of")) == 3
        assert (await client.get(f"/wallet_transactions/{marked['lago_id']}"))["wallet_transaction"] == marked | {
            "remaining_amount_cents": 200,
            "remaining_credit_amount": "2.0",
        }


async def test_lists_have_the_terminated_ones_too_newest_first() -> None:
    async with running() as client:
        await client.customer()
        first = await client.wallet(granted_credits="5")
        await client.delete(f"/wallets/{first['lago_id']}")
        second = await client.wallet()
        listed = (await client.get("/wallets?external_customer_id=tpp"))["wallets"]
        assert [(item["lago_id"], item["status"], item["balance_cents"]) for item in listed] == [
            (second["lago_id"], "active", 0),
            (first["lago_id"], "terminated", 500),
        ]
        refused = await client.refused("GET", "/wallets?external_customer_id=nobody", checked=False)
        assert refused == (404, "customer_not_found")


async def test_a_seventh_active_wallet_is_refused() -> None:
    async with running() as client:
        await client.customer()
        for number in range(6):
            await client.wallet(code=f"w{number}")
        body = {"wallet": {"external_customer_id": "tpp", "rate_amount": "1", "currency": "EUR"}}
        assert await client.refused("POST", "/wallets", body) == (422, {"customer": ["wallet_limit_reached"]})


@pytest.mark.parametrize(
    ("given", "details"),
    [
        ({"external_customer_id": "nobody"}, {"customer": ["customer_not_found"]}),
        ({"rate_amount": "0"}, {"rate_amount": ["value_is_out_of_range"]}),
        ({"priority": 51}, {"priority": ["value_is_invalid"]}),
        ({"expiration_at": "2025-06-01T00:00:00Z"}, {"expiration_at": ["invalid_date"]}),
        ({"granted_credits": 5}, {"granted_credits": ["invalid_granted_credits", "invalid_amount"]}),
        ({"applies_to": {"fee_types": ["tips"]}}, {"applies_to": ["invalid_limitations"]}),
        ({"applies_to": {"billable_metric_codes": ["none"]}}, {"applies_to": ["invalid_limitations"]}),
    ],
)
async def test_a_bad_wallet_is_refused(given: Json, details: Json) -> None:
    async with running() as client:
        await client.customer()
        body = {"wallet": {"external_customer_id": "tpp", "rate_amount": "1", "currency": "EUR", **given}}
        assert await client.refused("POST", "/wallets", body) == (422, details)
        assert (await client.get("/wallets?external_customer_id=tpp"))["wallets"] == []


async def test_a_wallet_can_be_changed_until_it_is_terminated() -> None:
    async with running() as client:
        await client.customer()
        await client.metric()
        wallet = await client.wallet(code="main")
        scope = {"fee_types": ["charge"], "billable_metric_codes": ["api_calls"]}
        given = {"name": "Renamed", "priority": 3, "expiration_at": "2025-12-31T23:59:59Z", "applies_to": scope}
        changed = (await client.put(f"/wallets/{wallet['lago_id']}", {"wallet": given}))["wallet"]
        assert {name: changed[name] for name in given} == given
        assert (await client.get("/customers/tpp/wallets/main"))["wallet"] == changed
        await client.delete(f"/wallets/{wallet['lago_id']}")
        refused = await client.refused("PUT", f"/wallets/{wallet['lago_id']}", {"wallet": given})
        assert refused == (422, {"wallet_id": ["wallet_is_terminated"]})
        top_up = {"wallet_transaction": {"wallet_id": wallet["lago_id"], "granted_credits": "1"}}
        refused = await client.refused("POST", "/wallet_transactions", top_up)
        assert refused == (422, {"wallet_id": ["wallet_is_terminated"]})


async def test_wallets_expire_at_a_quarter_to_and_can_pay_until_then() -> None:
    async with running(config("2025-06-10 12:00")) as client:
        await client.customer()
        wallet = await client.wallet(granted_credits="5", expiration_at="2025-06-10T13:50:00Z")
        client.advance("2025-06-10 14:44")
        assert (await client.get(f"/wallets/{wallet['lago_id']}"))["wallet"]["status"] == "active"
        client.advance("2025-06-10 14:45")
        found = (await client.get(f"/wallets/{wallet['lago_id']}"))["wallet"]
        assert (found["status"], found["terminated_at"], found["balance_cents"]) == (
            "terminated",
            "2025-06-10T14:45:00.000Z",
            500,
        )


async def test_wallets_pay_by_priority_and_then_by_age() -> None:
    async with metered(price="1.00") as client:
        late = await client.wallet(code="late", granted_credits="100")
        first = await client.wallet(code="first", granted_credits="4", priority=1)
        later = await client.wallet(code="later", granted_credits="100")
        await client.subscribe()
        await client.use(10, "2025-06-20 10:00")
        client.advance("2025-07-01 00:10")
        assert [await client.balance(item) for item in (first, late, later)] == [0, 9400, 10000]
        (invoice,) = await client.invoices()
        assert (invoice["prepaid_credit_amount_cents"], invoice["total_amount_cents"]) == (1000, 0)
        assert (invoice["payment_status"], invoice["total_due_amount_cents"]) == ("succeeded", 0)
        paid = await transactions(client, late, "transaction_status=invoiced")
        assert [(item["amount"], item["lago_invoice_id"]) for item in paid] == [("6.0", invoice["lago_id"])]
        await assert_books_balance(client, late)


async def test_a_wallet_pays_only_what_is_in_its_scope_and_its_currency() -> None:
    async with metered(price="1.00", amount_cents=700) as client:
        scope = {"billable_metric_codes": ["api_calls"]}
        calls = await client.wallet(code="calls", granted_credits="100", applies_to=scope)
        dollars = await client.wallet(code="usd", granted_credits="100", currency="USD", priority=1)
        await client.subscribe(subscription_at="2025-05-31T00:00:00Z")
        await client.use(10, "2025-06-20 10:00")
        client.advance("2025-07-01 00:10")
        assert (await client.balance(calls), await client.balance(dollars)) == (9000, 10000)
        invoice = (await client.invoices())[-1]
        assert fees(invoice) == [("subscription", "1.0", 700), ("charge", "10.0", 1000)]
        assert (invoice["prepaid_credit_amount_cents"], invoice["total_amount_cents"]) == (1000, 700)


async def test_a_wallet_for_subscription_fees_leaves_usage_to_others() -> None:
    async with metered(price="1.00", amount_cents=700) as client:
        base = await client.wallet(granted_credits="100", applies_to={"fee_types": ["subscription"]})
        await client.subscribe(subscription_at="2025-05-31T00:00:00Z")
        await client.use(10, "2025-06-20 10:00")
        client.advance("2025-07-01 00:10")
        assert await client.balance(base) == 9300


async def test_grants_are_consumed_before_purchases_and_the_invoice_says_how_much_of_each() -> None:
    async with metered(price="1.00") as client:
        wallet = await client.wallet(paid_credits="10", granted_credits="4")
        await client.subscribe()
        await client.use(9, "2025-06-20 10:00")
        client.advance("2025-07-01 00:10")
        (invoice,) = await client.invoices()
        parts = invoice["prepaid_granted_credit_amount_cents"], invoice["prepaid_purchased_credit_amount_cents"]
        assert parts == (400, 500)
        await assert_books_balance(client, wallet)


async def test_a_wallet_pays_the_largest_fees_first() -> None:
    async with running() as client:
        await client.customer()
        charges = [standard(await client.metric(code), "1") for code in ("small", "large")]
        await client.plan(charges=charges)
        first = await client.wallet(code="first", granted_credits="10", priority=1)
        scope = {"billable_metric_codes": ["small"]}
        second = await client.wallet(code="second", granted_credits="10", applies_to=scope)
        await client.subscribe()
        await client.use(3, "2025-06-20 10:00", code="small")
        await client.use(10, "2025-06-20 10:00", code="large")
        client.advance("2025-07-01 00:10")
        assert (await client.balance(first), await client.balance(second)) == (0, 700)


async def test_a_cent_that_rounding_has_added_is_paid_too() -> None:
    async with running() as client:
        await client.post(
            "/taxes", {"tax": {"code": "double", "name": "x", "rate": 100, "applied_to_organization": True}}
        )
        await client.customer()
        await client.plan(charges=[standard(await client.metric(code), "0.105") for code in ("a", "b")])
        wallet = await client.wallet(granted_credits="10")
        await client.subscribe()
        for code in ("a", "b"):
            await client.use(1, "2025-06-20 10:00", code=code)
        client.advance("2025-07-01 00:10")
        # 11 cents each and as much tax; unrounded it would be 10.5 cents of tax each, 43 in all.
        (invoice,) = await client.invoices()
        assert (invoice["prepaid_credit_amount_cents"], invoice["total_amount_cents"]) == (44, 0)
        assert await client.balance(wallet) == 956


async def test_a_wallet_in_its_scope_pays_what_credit_notes_have_left() -> None:
    async with metered(amount_cents=3000, pay_in_advance=True) as client:
        scope = {"fee_types": ["charge"]}
        await client.subscribe(external_id="given-up", subscription_at="2025-06-10T00:00:00Z")
        await client.subscribe(subscription_at="2025-05-31T00:00:00Z")
        client.advance("2025-06-20 12:00")
        await client.delete("/subscriptions/given-up")
        wallet = await client.wallet(granted_credits="100", applies_to=scope)
        await client.use(100, "2025-06-25 10:00")
        client.advance("2025-07-01 00:10")
        invoice = (await client.invoices())[-1]
        assert fees(invoice) == [("subscription", "1.0", 3000), ("charge", "100.0", 500)]
        # The credit of 10.00 is spread over 35.00 of fees: 1.43 of the charge's 5.00.
        assert (invoice["credit_notes_amount_cents"], invoice["prepaid_credit_amount_cents"]) == (1000, 357)
        assert await client.balance(wallet) == 9643


async def test_the_ongoing_balance_subtracts_drafts() -> None:
    async with metered(config(invoice_grace_period_days=3), price="1.00") as client:
        wallet = await client.wallet(granted_credits="10")
        await client.subscribe()
        await client.use(7, "2025-06-20 10:00")
        client.advance("2025-07-01 00:15")
        found = (await client.get(f"/wallets/{wallet['lago_id']}"))["wallet"]
        assert (found["balance_cents"], found["ongoing_balance_cents"]) == (1000, 300)
        client.advance("2025-07-04 00:20")
        found = (await client.get(f"/wallets/{wallet['lago_id']}"))["wallet"]
        assert (found["balance_cents"], found["ongoing_balance_cents"]) == (300, 300)


async def test_wallets_pay_totals_with_tax() -> None:
    async with running() as client:
        await client.post("/taxes", {"tax": {"code": "vat", "name": "VAT", "rate": "20"}})
        await client.customer(tax_codes=["vat"])
        await client.plan(charges=[standard(await client.metric(), "1.00")])
        wallet = await client.wallet(granted_credits="100")
        await client.subscribe()
        await client.use(10, "2025-06-20 10:00")
        assert (await client.usage())["total_amount_cents"] == 1200
        client.advance("2025-07-01 00:10")
        assert await client.balance(wallet) == 8800


async def test_a_voided_invoice_gives_its_wallet_money_back_as_a_grant() -> None:
    async with metered(price="1.00") as client:
        wallet = await client.wallet(paid_credits="20")
        await client.subscribe()
        await client.use(9, "2025-06-20 10:00")
        client.advance("2025-07-01 00:10")
        (invoice,) = await client.invoices()
        await client.post(f"/invoices/{invoice['lago_id']}/void")
        found = (await client.get(f"/wallets/{wallet['lago_id']}"))["wallet"]
        assert (found["balance_cents"], found["consumed_credits"]) == (2000, "0.0")
        back = (await transactions(client, wallet, "transaction_status=granted"))[0]
        assert (back["lago_voided_invoice_id"], back["amount"]) == (invoice["lago_id"], "9.0")
        voided = (await client.get(f"/invoices/{invoice['lago_id']}"))["invoice"]
        assert (voided["status"], voided["total_due_amount_cents"]) == ("voided", 0)
        again = await client.refused("POST", f"/invoices/{invoice['lago_id']}/void", checked=False)
        assert again == (405, "not_voidable")
        await assert_books_balance(client, wallet)


async def test_a_terminated_wallet_gets_nothing_back_from_a_voided_invoice() -> None:
    async with metered(price="1.00") as client:
        wallet = await client.wallet(granted_credits="20")
        await client.subscribe()
        await client.use(9, "2025-06-20 10:00")
        client.advance("2025-07-01 00:10")
        await client.delete(f"/wallets/{wallet['lago_id']}")
        (invoice,) = await client.invoices()
        await client.post(f"/invoices/{invoice['lago_id']}/void")
        assert await client.balance(wallet) == 1100


async def test_the_ongoing_balance_subtracts_usage_when_it_is_refreshed() -> None:
    async with metered(config("2025-06-10 12:01"), price="1.00") as client:
        wallet = await client.wallet(granted_credits="5")
        await client.subscribe()
        await client.use(7, "2025-06-10 12:01")
        before = (await client.get(f"/wallets/{wallet['lago_id']}"))["wallet"]
        assert (before["balance_cents"], before["ongoing_balance_cents"]) == (500, 500)
        client.advance("2025-06-10 12:05")
        after = (await client.get(f"/wallets/{wallet['lago_id']}"))["wallet"]
        assert (after["balance_cents"], after["ongoing_balance_cents"]) == (500, -200)
        assert (after["ongoing_usage_balance_cents"], after["credits_ongoing_balance"]) == (700, "-2.0")


async def test_without_a_licence_only_a_top_up_refreshes_the_ongoing_balance() -> None:
    async with metered(config(premium=False), price="1.00") as client:
        wallet = await client.wallet(granted_credits="5")
        await client.subscribe()
        await client.use(3, "2025-06-10 12:00")
        client.advance("2025-06-12 12:00")
        assert (await client.get(f"/wallets/{wallet['lago_id']}"))["wallet"]["ongoing_balance_cents"] == 500
        await client.top_up(wallet, granted_credits="1")
        assert (await client.get(f"/wallets/{wallet['lago_id']}"))["wallet"]["ongoing_balance_cents"] == 300
