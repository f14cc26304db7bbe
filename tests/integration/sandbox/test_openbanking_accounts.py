from __future__ import annotations

from typing import Any

import aiohttp
import pytest

from sidecar.sandbox.bank.bank_server import SampleApi

AISP = "/open-banking/v3.1/aisp"


async def get(client: aiohttp.ClientSession, url: str, **headers: str) -> tuple[int, Any, Any]:
    async with client.get(url, headers=headers) as answer:
        return answer.status, await answer.json(), answer.headers


async def test_the_list_and_the_single_account_say_the_same(client: aiohttp.ClientSession, bank_url: str) -> None:
    status, listed, _ = await get(client, f"{bank_url}{AISP}/accounts")
    accounts = listed["Data"]["Account"]
    assert status == 200
    assert [(a["AccountId"], a["Currency"]) for a in accounts] == [
        ("acc-001", "GBP"),
        ("acc-002", "GBP"),
        ("acc-003", "EUR"),
    ]
    assert listed["Links"] == {"Self": f"{bank_url}{AISP}/accounts"}
    for account in accounts:
        _, single, _ = await get(client, f"{bank_url}{AISP}/accounts/{account['AccountId']}")
        assert single["Data"]["Account"] == [account]


async def test_balances_come_alone_and_together(client: aiohttp.ClientSession, bank_url: str) -> None:
    _, all_of_them, _ = await get(client, f"{bank_url}{AISP}/balances")
    _, one, _ = await get(client, f"{bank_url}{AISP}/accounts/acc-003/balances")
    amounts = {item["AccountId"]: item["Amount"]["Amount"] for item in all_of_them["Data"]["Balance"]}
    assert amounts == {"acc-001": "1500.00", "acc-002": "25000.00", "acc-003": "3200.50"}
    assert one["Data"]["Balance"] == [all_of_them["Data"]["Balance"][2]]


@pytest.mark.parametrize(
    ("path", "count"),
    [("accounts/acc-001/transactions", 36), ("accounts/acc-003/transactions", 24), ("transactions", 108)],
)
async def test_following_next_from_page_to_page_shows_every_transaction_once(
    client: aiohttp.ClientSession, bank_url: str, path: str, count: int
) -> None:
    url, seen, pages = f"{bank_url}{AISP}/{path}", list[str](), 0
    while url:
        _, page, _ = await get(client, url)
        seen += [item["TransactionId"] for item in page["Data"]["Transaction"]]
        pages += 1
        assert page["Links"]["Last"].endswith(f"page={page['Meta']['TotalPages']}")
        assert ("Prev" in page["Links"]) == (pages > 1)
        url = page["Links"].get("Next", "")
    assert (len(seen), len(set(seen)), pages) == (count, count, page["Meta"]["TotalPages"])


@pytest.mark.parametrize(
    ("query", "count"),
    [
        ("fromBookingDateTime=2025-06-20T00:00:00&toBookingDateTime=2025-06-25T00:00:00", None),
        # A zone is ignored, escaped or not; a date alone is its midnight.
        ("fromBookingDateTime=2025-06-20T00:00:00%2B01:00&toBookingDateTime=2025-06-25T00:00:00Z", None),
        ("fromBookingDateTime=2025-06-20T00:00:00+01:00&toBookingDateTime=2025-06-25", None),
        ("fromBookingDateTime=2025-07-01T00:00:00", 0),
        ("toBookingDateTime=2020-01-01T00:00:00", 0),
    ],
)
async def test_booking_times_choose_transactions(
    client: aiohttp.ClientSession, bank_url: str, query: str, count: int | None
) -> None:
    status, found, _ = await get(client, f"{bank_url}{AISP}/accounts/acc-002/transactions?{query}")
    booked = [item["BookingDateTime"] for item in found["Data"]["Transaction"]]
    assert (status, found["Meta"]["TotalPages"]) == (200, 1)
    if count is None:
        assert len(booked) > 2
        assert all("2025-06-20" <= when < "2025-06-25" for when in booked)
    else:
        assert len(booked) == count


async def test_bounds_of_booking_times_belong_to_the_range(client: aiohttp.ClientSession, bank_url: str) -> None:
    url = f"{bank_url}{AISP}/accounts/acc-001/transactions"
    _, page, _ = await get(client, url)
    first = page["Data"]["Transaction"][0]
    when = first["BookingDateTime"].removesuffix("+00:00")
    _, found, _ = await get(client, f"{url}?fromBookingDateTime={when}&toBookingDateTime={when}")
    assert found["Data"]["Transaction"] == [first]


@pytest.mark.parametrize(
    ("path", "status", "code", "at"),
    [
        ("accounts/acc-009", 400, "UK.OBIE.Resource.NotFound", "AccountId"),
        ("accounts/acc-009/balances", 400, "UK.OBIE.Resource.NotFound", "AccountId"),
        ("accounts/acc-001/transactions?page=0", 400, "UK.OBIE.Field.Invalid", "page"),
        ("accounts/acc-001/transactions?page=5", 400, "UK.OBIE.Field.Invalid", "page"),
        ("accounts/acc-001/transactions?page=x", 400, "UK.OBIE.Field.Invalid", "page"),
        ("transactions?fromBookingDateTime=junk", 400, "UK.OBIE.Field.InvalidDate", "fromBookingDateTime"),
        ("transactions?toBookingDateTime=2025-02-30", 400, "UK.OBIE.Field.InvalidDate", "toBookingDateTime"),
        ("card-accounts", 404, "UK.OBIE.Resource.NotFound", None),
    ],
)
async def test_a_refusal_is_an_obie_error_that_names_the_parameter(
    client: aiohttp.ClientSession, bank_url: str, path: str, status: int, code: str, at: str | None
) -> None:
    got, body, _ = await get(client, f"{bank_url}{AISP}/{path}")
    assert got == status
    assert body["Code"].startswith(f"{status} ")
    assert {"Code", "Id", "Message", "Errors"} == set(body)
    assert [(error["ErrorCode"], error.get("Path")) for error in body["Errors"]] == [(code, at)]


async def test_a_wrong_method_is_405_with_the_right_ones(client: aiohttp.ClientSession, bank_url: str) -> None:
    async with client.delete(f"{bank_url}{AISP}/accounts") as answer:
        assert (answer.status, answer.headers["Allow"]) == (405, "GET,HEAD")


async def test_the_interaction_id_comes_back_or_is_made_up(client: aiohttp.ClientSession, bank_url: str) -> None:
    given = "93bac548-d2de-4546-b106-880a5018460d"
    for path in (f"{AISP}/accounts", f"{AISP}/accounts/none", "/open-banking/nowhere"):
        _, _, headers = await get(client, bank_url + path, **{"x-fapi-interaction-id": given})
        assert headers["x-fapi-interaction-id"] == given
    _, _, one = await get(client, f"{bank_url}{AISP}/accounts")
    _, _, two = await get(client, f"{bank_url}{AISP}/accounts")
    assert len(one["x-fapi-interaction-id"]) == 36
    assert one["x-fapi-interaction-id"] != two["x-fapi-interaction-id"]


async def test_calls_are_counted_by_route(client: aiohttp.ClientSession, bank: SampleApi, bank_url: str) -> None:
    await get(client, f"{bank_url}{AISP}/accounts/acc-001")
    await get(client, f"{bank_url}{AISP}/accounts/acc-009")
    await get(client, f"{bank_url}/nowhere/at/all")
    assert bank.calls == {f"GET {AISP}/accounts/{{AccountId}}": 2, "GET (no such route)": 1}
