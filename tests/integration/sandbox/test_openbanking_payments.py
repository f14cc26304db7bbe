from __future__ import annotations

import asyncio
import copy
from typing import Any

import aiohttp
import pytest

from sidecar.sandbox.bank.bank_server import SampleApi

PISP = "/open-banking/v3.1/pisp"
CONSENTS, PAYMENTS = f"{PISP}/domestic-payment-consents", f"{PISP}/domestic-payments"

INITIATION: dict[str, Any] = {
    "InstructionIdentification": "ACME412",
    "EndToEndIdentification": "FRESCO.21302.GFX.20",
    "InstructedAmount": {"Amount": "165.88", "Currency": "GBP"},
    "CreditorAccount": {
        "SchemeName": "UK.OBIE.SortCodeAccountNumber",
        "Identification": "08080021325698",
        "Name": "ACME Inc",
    },
}
CONSENT: dict[str, Any] = {"Data": {"Initiation": INITIATION}, "Risk": {}}


async def post(client: aiohttp.ClientSession, url: str, body: object, key: str | None) -> tuple[int, Any]:
    headers = {} if key is None else {"x-idempotency-key": key}
    async with client.post(url, json=body, headers=headers) as answer:
        return answer.status, await answer.json()


async def consent_id(client: aiohttp.ClientSession, url: str, key: str = "consent") -> str:
    status, body = await post(client, url + CONSENTS, CONSENT, key)
    assert status == 201
    return str(body["Data"]["ConsentId"])


def payment(consent: str, **change: Any) -> dict[str, Any]:
    return {"Data": {"ConsentId": consent, "Initiation": {**INITIATION, **change}}, "Risk": {}}


async def test_a_consent_leads_to_one_payment_and_is_consumed(client: aiohttp.ClientSession, bank_url: str) -> None:
    status, body = await post(client, bank_url + CONSENTS, CONSENT, "k1")
    assert (status, body["Data"]["Status"], body["Data"]["Initiation"]) == (201, "AwaitingAuthorisation", INITIATION)
    consent = body["Data"]["ConsentId"]
    async with client.get(body["Links"]["Self"]) as answer:
        assert (await answer.json())["Data"]["Status"] == "Authorised"

    status, made = await post(client, bank_url + PAYMENTS, payment(consent), "k2")
    assert (status, made["Data"]["Status"]) == (201, "AcceptedSettlementInProcess")
    async with client.get(made["Links"]["Self"]) as answer:
        assert (await answer.json())["Data"] == made["Data"]
    async with client.get(body["Links"]["Self"]) as answer:
        assert (await answer.json())["Data"]["Status"] == "Consumed"

    status, again = await post(client, bank_url + PAYMENTS, payment(consent), "k3")
    assert (status, again["Errors"][0]["ErrorCode"]) == (400, "UK.OBIE.Resource.InvalidConsentStatus")


async def test_the_same_key_and_body_give_the_same_answer_and_one_payment(
    client: aiohttp.ClientSession, bank: SampleApi, bank_url: str
) -> None:
    body = payment(await consent_id(client, bank_url))
    answers = await asyncio.gather(*(post(client, bank_url + PAYMENTS, body, "same") for _ in range(20)))
    assert {status for status, _ in answers} == {201}
    assert len({answer["Data"]["DomesticPaymentId"] for _, answer in answers}) == 1
    assert bank.payments.payments == 1


async def test_the_same_key_with_another_body_is_refused(client: aiohttp.ClientSession, bank_url: str) -> None:
    await post(client, bank_url + CONSENTS, CONSENT, "k")
    status, body = await post(client, bank_url + CONSENTS, {**CONSENT, "Risk": {"x": 1}}, "k")
    assert (status, body["Errors"][0]["ErrorCode"], body["Errors"][0]["Path"]) == (
        400,
        "UK.OBIE.Header.Invalid",
        "x-idempotency-key",
    )


async def test_a_key_belongs_to_its_route(client: aiohttp.ClientSession, bank_url: str) -> None:
    consent = await consent_id(client, bank_url, "shared")
    status, _ = await post(client, bank_url + PAYMENTS, payment(consent), "shared")
    assert status == 201


async def test_a_refused_request_leaves_its_key_free(client: aiohttp.ClientSession, bank_url: str) -> None:
    status, _ = await post(client, bank_url + CONSENTS, {}, "k")
    assert status == 400
    assert (await post(client, bank_url + CONSENTS, CONSENT, "k"))[0] == 201


@pytest.mark.parametrize(
    ("key", "code"),
    [(None, "UK.OBIE.Header.Missing"), (" ", "UK.OBIE.Header.Missing"), ("k" * 41, "UK.OBIE.Header.Invalid")],
)
async def test_a_post_without_a_proper_key_is_refused(
    client: aiohttp.ClientSession, bank_url: str, key: str | None, code: str
) -> None:
    status, body = await post(client, bank_url + CONSENTS, CONSENT, key)
    assert (status, body["Errors"][0]["ErrorCode"]) == (400, code)


def changed(*path: str, to: object) -> dict[str, Any]:
    body = copy.deepcopy(CONSENT)
    parent = body
    for name in path[:-1]:
        parent = parent[name]
    parent[path[-1]] = to
    return body


@pytest.mark.parametrize(
    ("body", "at"),
    [
        ({}, "Data"),
        ({"Data": 7}, "Data"),
        ({"Data": {}}, "Data.Initiation"),
        (changed("Risk", to=None), "Risk"),
        (changed("Data", "Initiation", "InstructedAmount", to="10.00"), "Data.Initiation.InstructedAmount"),
        (
            changed("Data", "Initiation", "InstructedAmount", "Amount", to="ten"),
            "Data.Initiation.InstructedAmount.Amount",
        ),
        (
            changed("Data", "Initiation", "InstructedAmount", "Currency", to="gbp"),
            "Data.Initiation.InstructedAmount.Currency",
        ),
        (changed("Data", "Initiation", "EndToEndIdentification", to=None), "Data.Initiation.EndToEndIdentification"),
        (
            changed("Data", "Initiation", "EndToEndIdentification", to="e" * 36),
            "Data.Initiation.EndToEndIdentification",
        ),
        (changed("Data", "Initiation", "CreditorAccount", "Name", to=7), "Data.Initiation.CreditorAccount.Name"),
    ],
)
async def test_a_consent_with_a_mistake_is_refused_by_the_field(
    client: aiohttp.ClientSession, bank_url: str, body: object, at: str
) -> None:
    status, answer = await post(client, bank_url + CONSENTS, body, "k")
    assert (status, answer["Errors"][0]["Path"]) == (400, at)


async def test_a_payment_must_say_what_its_consent_said(client: aiohttp.ClientSession, bank_url: str) -> None:
    consent = await consent_id(client, bank_url)
    other = payment(consent, InstructedAmount={"Amount": "9999.00", "Currency": "GBP"})
    status, body = await post(client, bank_url + PAYMENTS, other, "k")
    assert (status, body["Errors"][0]["ErrorCode"]) == (400, "UK.OBIE.Resource.ConsentMismatch")
    status, body = await post(client, bank_url + PAYMENTS, payment("pdc-none"), "k")
    assert (status, body["Errors"][0]["ErrorCode"]) == (400, "UK.OBIE.Resource.NotFound")


async def test_what_does_not_exist_is_400_as_the_standard_has_it(client: aiohttp.ClientSession, bank_url: str) -> None:
    for path in (f"{CONSENTS}/none", f"{PAYMENTS}/none"):
        async with client.get(bank_url + path) as answer:
            assert answer.status == 400
            assert (await answer.json())["Errors"][0]["ErrorCode"] == "UK.OBIE.Resource.NotFound"


@pytest.mark.parametrize(
    ("raw", "content_type", "status"),
    [
        (b"{", "application/json", 400),
        (b"[]", "application/json", 400),
        (b"[" * 60_000, "application/json", 400),
        (b" " * (64 * 1024 + 1), "application/json", 413),
        (b"{}", "text/plain", 415),
    ],
)
async def test_a_body_that_is_no_small_json_object_is_refused(
    client: aiohttp.ClientSession, bank_url: str, raw: bytes, content_type: str, status: int
) -> None:
    headers = {"x-idempotency-key": "k", "Content-Type": content_type}
    async with client.post(bank_url + CONSENTS, data=raw, headers=headers) as answer:
        assert (answer.status, (await answer.json())["Code"][:3]) == (status, str(status))
