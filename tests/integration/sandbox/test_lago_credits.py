"""Coupons and credit notes of the stand-in: what they take off an invoice, in Lago's order."""

from __future__ import annotations

from typing import Any

import pytest

from tests.integration.sandbox.lago_kit import Client, metered


async def apply_coupon(client: Client, cents: int | None = 200, code: str = "start", **more: object) -> Any:
    given = {"code": code, "name": code, "coupon_type": "fixed_amount", "amount_cents": cents, "amount_currency": "EUR",
             "frequency": "once", "expiration": "no_expiration", **more}  # fmt: skip
    await client.post("/coupons", {"coupon": given})
    applied = {"external_customer_id": "tpp", "coupon_code": code}
    return (await client.post("/applied_coupons", {"applied_coupon": applied}))["applied_coupon"]


async def coupons(client: Client, status: str = "active") -> list[Any]:
    found = await client.get(f"/applied_coupons?external_customer_id=tpp&status={status}")
    return found["applied_coupons"]  # type: ignore[no-any-return]


async def test_a_coupon_comes_before_taxes_and_wallets() -> None:
    """20 % of 500 less 200."""
    async with metered() as client:
        await client.post("/taxes", {"tax": {"name": "VAT", "code": "vat", "rate": "20"}})
        await client.customer(tax_codes=["vat"])
        wallet = await client.wallet(granted_credits="10")
        await client.subscribe()
        await apply_coupon(client)
        await client.use(100, "2025-06-11 12:00")
        client.advance("2025-07-01 00:10")
        (invoice,) = await client.invoices()
        assert (invoice["fees_amount_cents"], invoice["coupons_amount_cents"]) == (500, 200)
        assert (invoice["taxes_amount_cents"], invoice["prepaid_credit_amount_cents"]) == (60, 360)
        assert (invoice["sub_total_excluding_taxes_amount_cents"], invoice["total_amount_cents"]) == (300, 0)
        (credit,) = invoice["credits"]
        assert (credit["before_taxes"], credit["item"]["type"], credit["amount_cents"]) == (True, "coupon", 200)
        assert await client.balance(wallet) == 640
        assert await coupons(client) == []


async def test_what_an_invoice_does_not_need_of_a_coupon_is_for_the_next() -> None:
    async with metered() as client:
        await client.subscribe()
        await apply_coupon(client, 700)
        await client.use(100, "2025-06-11 12:00")
        client.advance("2025-07-01 00:10")
        (left,) = await coupons(client)
        assert (left["amount_cents"], left["amount_cents_remaining"]) == (700, 200)
        await client.use(100, "2025-07-11 12:00")
        client.advance("2025-08-01 00:10")
        invoices = await client.invoices()
        assert [each["total_amount_cents"] for each in invoices] == [0, 300]
        assert await coupons(client) == []


async def test_a_void_invoice_gives_its_coupon_back() -> None:
    async with metered() as client:
        await client.subscribe()
        await apply_coupon(client, 200)
        await client.use(100, "2025-06-11 12:00")
        client.advance("2025-07-01 00:10")
        (invoice,) = await client.invoices()
        await client.post(f"/invoices/{invoice['lago_id']}/void")
        (back,) = await coupons(client)
        assert back["amount_cents_remaining"] == 200


@pytest.mark.parametrize(
    ("more", "taken", "stays"),
    [
        ({"coupon_type": "percentage", "percentage_rate": "50"}, 250, False),
        ({"frequency": "forever"}, 200, True),
        ({"frequency": "recurring", "frequency_duration": 2}, 200, True),
        ({"frequency": "recurring", "frequency_duration": 1}, 200, False),
        ({"amount_currency": "USD"}, 0, True),
        ({"applies_to": {"billable_metric_codes": ["api_calls"]}}, 200, False),
        ({"applies_to": {"plan_codes": ["other"]}}, 0, True),
    ],
)
async def test_what_a_coupon_takes_off(more: dict[str, object], taken: int, stays: bool) -> None:
    async with metered() as client:
        await client.subscribe()
        applied = await apply_coupon(client, **more)
        await client.use(100, "2025-06-11 12:00")
        client.advance("2025-07-01 00:10")
        (invoice,) = await client.invoices()
        assert invoice["coupons_amount_cents"] == taken
        assert [each["lago_id"] for each in await coupons(client)] == ([applied["lago_id"]] if stays else [])


async def test_a_coupon_that_is_taken_away_is_not_applied() -> None:
    async with metered() as client:
        await client.subscribe()
        first, second = await apply_coupon(client), await apply_coupon(client, code="second")
        await client.delete(f"/customers/tpp/applied_coupons/{first['lago_id']}")
        await client.delete("/coupons/second")
        assert await coupons(client) == []
        assert {each["lago_id"] for each in await coupons(client, "terminated")} == {
            first["lago_id"],
            second["lago_id"],
        }
        assert (await client.refused("GET", "/coupons/second"))[1] == "coupon_not_found"


async def test_a_credit_note_comes_after_taxes_and_before_wallets() -> None:
    async with metered() as client:
        wallet = await client.wallet(granted_credits="10")
        await client.subscribe()
        await client.use(100, "2025-06-11 12:00")
        client.advance("2025-07-01 00:10")
        (first,) = await client.invoices()
        note = {"invoice_id": first["lago_id"], "reason": "other", "credit_amount_cents": 150}
        await client.post("/credit_notes", {"credit_note": note})
        await client.use(100, "2025-07-11 12:00")
        client.advance("2025-08-01 00:10")
        second = (await client.invoices())[-1]
        assert (second["credit_notes_amount_cents"], second["prepaid_credit_amount_cents"]) == (150, 350)
        assert await client.balance(wallet) == 1000 - 500 - 350
        (used,) = (await client.get("/credit_notes?external_customer_id=tpp"))["credit_notes"]
        assert (used["credit_status"], used["balance_amount_cents"]) == ("consumed", 0)
        assert (await client.get("/credit_notes?credit_status=available"))["credit_notes"] == []


async def test_a_credit_note_is_at_most_what_the_invoice_came_to_and_can_be_voided() -> None:
    async with metered() as client:
        await client.subscribe()
        await client.use(100, "2025-06-11 12:00")
        client.advance("2025-07-01 00:10")
        (invoice,) = await client.invoices()
        note = {"invoice_id": invoice["lago_id"], "reason": "other", "credit_amount_cents": 501}
        status, details = await client.refused("POST", "/credit_notes", {"credit_note": note})
        assert (status, details) == (422, {"base": ["higher_than_remaining_invoice_amount"]})
        made = (await client.post("/credit_notes", {"credit_note": note | {"credit_amount_cents": 500}}))["credit_note"]
        voided = (await client.put(f"/credit_notes/{made['lago_id']}/void"))["credit_note"]
        assert (voided["credit_status"], voided["balance_amount_cents"]) == ("voided", 0)
        assert (await client.refused("PUT", f"/credit_notes/{made['lago_id']}/void"))[0] == 405
