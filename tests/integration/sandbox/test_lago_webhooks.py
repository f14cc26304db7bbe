"""Webhooks: which are sent, how they are signed, when they are sent again."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac

import jwt
import pytest
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from tests.integration.sandbox.lago_kit import HMAC_KEY, Client, Receiver, config, metered, receiving, running

FAST = config(webhook_retry_waits_s=(0.01, 0.02))


async def drained(client: Client, receiver: Receiver) -> list[str]:
    await client.lago.webhooks.drain()
    found = receiver.types()
    receiver.bodies.clear()
    return found


async def test_what_happens_is_told_by_webhooks_in_lagos_envelope() -> None:
    async with metered(config(payments="hold"), price="1") as client, receiving(client) as receiver:
        await client.customer(name="x")
        assert await drained(client, receiver) == ["customer.updated"]
        wallet = await client.wallet()
        assert await drained(client, receiver) == ["wallet.created"]
        await client.top_up(wallet, granted_credits="20")
        assert await drained(client, receiver) == ["wallet.updated", "wallet_transaction.created"]
        await client.top_up(wallet, paid_credits="5")
        assert await drained(client, receiver) == ["wallet_transaction.created", "invoice.paid_credit_added"]
        (invoice,) = await client.invoices("invoice_type=credit")
        await client.post(f"/sandbox/invoices/{invoice['lago_id']}/pay")
        assert await drained(client, receiver) == [
            "invoice.payment_status_updated",
            "wallet.updated",
            "wallet_transaction.updated",
        ]
        subscription = await client.subscribe()
        await client.lago.webhooks.drain()
        (envelope,) = receiver.received
        assert envelope["webhook_type"] == "subscription.started"
        assert envelope["object_type"] == "subscription"
        assert envelope["organization_id"] == client.lago.config.organization_id
        assert envelope.keys() == {"webhook_type", "object_type", "organization_id", "subscription"}
        (told,) = receiver.of_type("subscription.started")
        assert (told["lago_id"], told["customer"]["external_id"]) == (subscription["lago_id"], "tpp")
        assert told["plan"]["charges"][0]["billable_metric_code"] == "api_calls"
        await drained(client, receiver)
        await client.use(7, "2025-06-10 12:00")
        client.advance("2025-07-01 00:10")
        assert await drained(client, receiver) == ["wallet.updated", "wallet_transaction.created", "invoice.created"]


async def test_a_failed_payment_and_an_upgrade_and_a_void_are_told() -> None:
    async with metered(config(payments="fail"), price="1") as client, receiving(client) as receiver:
        wallet = await client.wallet()
        await drained(client, receiver)
        await client.top_up(wallet, paid_credits="5")
        await client.lago.webhooks.drain()
        assert receiver.types() == [
            "wallet_transaction.created",
            "invoice.paid_credit_added",
            "invoice.payment_status_updated",
            "invoice.payment_failure",
            "wallet_transaction.updated",
            "wallet_transaction.payment_failure",
        ]
        (transaction,) = receiver.of_type("wallet_transaction.updated")
        assert (transaction["status"], transaction["wallet"]["lago_id"]) == ("failed", wallet["lago_id"])
        (failure,) = receiver.of_type("wallet_transaction.payment_failure")
        assert failure["lago_wallet_transaction_id"] == transaction["lago_id"]
        await client.plan("pro", amount_cents=100)
        await client.subscribe()
        await drained(client, receiver)
        await client.subscribe("pro")
        await client.lago.webhooks.drain()
        (ended,) = receiver.of_type("subscription.terminated")
        (started,) = receiver.of_type("subscription.started")
        assert (ended["plan_code"], started["plan_code"]) == ("basic", "pro")
        assert ended["external_id"] == started["external_id"]
        (invoice,) = await client.invoices()
        await drained(client, receiver)
        await client.post(f"/invoices/{invoice['lago_id']}/void")
        assert await drained(client, receiver) == ["invoice.voided"]


async def test_drafts_trials_and_expired_wallets_are_told() -> None:
    given = config(invoice_grace_period_days=1)
    async with metered(given, trial_period=2, amount_cents=100) as client, receiving(client) as receiver:
        await client.wallet(expiration_at="2025-06-11T00:00:00Z", granted_credits="1")
        await client.subscribe()
        await drained(client, receiver)
        client.advance("2025-06-13 00:00")
        assert await drained(client, receiver) == ["wallet.terminated", "subscription.trial_ended"]
        client.advance("2025-07-01 00:10")
        assert await drained(client, receiver) == ["invoice.drafted", "invoice.ready_to_finalize"]
        client.advance("2025-07-02 00:20")
        assert await drained(client, receiver) == ["invoice.created", "invoice.payment_status_updated"]


async def test_a_depleted_balance_is_told_once_until_it_has_recovered() -> None:
    async with metered(price="1") as client:
        wallet = await client.wallet(granted_credits="5")
        await client.subscribe()
        async with receiving(client, event_types=["wallet.depleted_ongoing_balance"]) as receiver:
            for minute, calls in ((1, 5), (6, 1), (11, 1)):
                await client.use(calls, f"2025-06-10 12:{minute:02d}")
                client.advance(f"2025-06-10 12:{minute + 4:02d}")
            assert await drained(client, receiver) == ["wallet.depleted_ongoing_balance"]
            await client.top_up(wallet, granted_credits="10")
            await client.use(8, "2025-06-10 12:16")
            client.advance("2025-06-10 12:20")
            await client.lago.webhooks.drain()
            (told,) = receiver.of_type("wallet.depleted_ongoing_balance")
            assert (told["balance_cents"], told["ongoing_balance_cents"]) == (1500, 0)


async def test_hmac_signs_the_body_as_it_is_sent() -> None:
    async with running() as client, receiving(client) as receiver:
        await client.customer(name="Zoë")
        await client.lago.webhooks.drain()
        (body,), (headers,) = receiver.bodies, receiver.headers
        digest = hmac.digest(HMAC_KEY.encode(), body, hashlib.sha256)
        assert headers["X-Lago-Signature"] == base64.b64encode(digest).decode()
        assert headers["X-Lago-Signature-Algorithm"] == "hmac"
        assert headers["Content-Type"] == "application/json"


@pytest.mark.parametrize("issuer", ["https://lago.bank.example", ""])
async def test_a_jwt_holds_the_body_and_verifies_with_the_public_key(issuer: str) -> None:
    async with running(config(issuer=issuer)) as client, receiving(client, signature_algo="jwt") as receiver:
        await client.customer(name="Zoë")
        await client.lago.webhooks.drain()
        (body,), (headers,) = receiver.bodies, receiver.headers
        encoded = (await client.get("/webhooks/json_public_key"))["webhook"]["public_key"]
        assert encoded.count("\n") > 1
        assert await client.get("/webhooks/public_key") == encoded
        key = load_pem_public_key(base64.b64decode(encoded))
        claims = jwt.decode(headers["X-Lago-Signature"], key, algorithms=["RS256"])  # type: ignore[arg-type]
        assert claims == {"data": body.decode(), "iss": issuer or client.url}
        assert headers["X-Lago-Signature-Algorithm"] == "jwt"


async def test_an_endpoint_gets_the_types_that_it_asked_for() -> None:
    async with running() as client, receiving(client, event_types=["wallet.created"]) as receiver:
        await client.customer()
        await client.wallet()
        assert await drained(client, receiver) == ["wallet.created"]


@pytest.mark.parametrize(("answers", "status", "attempts"), [([500, 302], "succeeded", 3), ([503] * 3, "failed", 3)])
async def test_a_webhook_is_tried_three_times_with_the_same_body_and_key(
    answers: list[int], status: str, attempts: int
) -> None:
    async with running(FAST) as client, receiving(client) as receiver:
        receiver.answers = list(answers)
        await client.customer()
        await client.lago.webhooks.drain()
        assert len(receiver.bodies) == attempts
        assert len(set(receiver.bodies)) == 1
        assert len({headers["X-Lago-Unique-Key"] for headers in receiver.headers}) == 1
        (logged,) = (await client.get("/sandbox/webhooks"))["webhooks"]
        assert (logged["status"], logged["attempts"], logged["webhook_type"]) == (status, attempts, "customer.created")
        assert logged["payload"]["customer"]["external_id"] == "tpp"


@pytest.mark.parametrize("accepted", [200, 201, 202, 204])
async def test_four_statuses_are_taken_for_an_arrival(accepted: int) -> None:
    async with running(FAST) as client, receiving(client) as receiver:
        receiver.answers = [accepted]
        await client.customer()
        await client.lago.webhooks.drain()
        assert len(receiver.bodies) == 1


async def test_a_webhook_that_failed_can_be_sent_again_by_hand() -> None:
    async with running(FAST) as client, receiving(client) as receiver:
        receiver.answers = [500] * 3
        await client.customer()
        await client.lago.webhooks.drain()
        (logged,) = (await client.get("/sandbox/webhooks?status=failed"))["webhooks"]
        await client.post(f"/sandbox/webhooks/{logged['lago_id']}/retry")
        await client.lago.webhooks.drain()
        assert len(receiver.bodies) == 4
        assert (await client.get("/sandbox/webhooks?status=failed"))["webhooks"] == []
        assert (await client.call("POST", "/sandbox/webhooks/none/retry"))[0] == 404


async def test_a_receiver_that_is_gone_does_not_hold_up_the_api() -> None:
    async with running(FAST) as client:
        url = "http://127.0.0.1:9/hooks"
        await client.post("/webhook_endpoints", {"webhook_endpoint": {"webhook_url": url, "signature_algo": "hmac"}})
        async with asyncio.timeout(5):
            for number in range(20):
                await client.customer(f"c{number}")
            await client.lago.webhooks.drain()
        logged = (await client.get("/sandbox/webhooks"))["webhooks"]
        assert {(item["status"], item["http_status"]) for item in logged} == {("failed", None)}


async def test_the_payload_is_of_the_time_of_sending() -> None:
    async with running() as client, receiving(client, event_types=["wallet.created"]) as receiver:
        await client.post("/sandbox/webhooks", {"delay_s": [0.2, 0.2]})
        await client.customer()
        wallet = await client.wallet()
        await client.top_up(wallet, granted_credits="7")
        await client.lago.webhooks.drain()
        (told,) = receiver.of_type("wallet.created")
        assert told["balance_cents"] == 700


async def test_webhooks_can_be_mixed_up_doubled_and_lost() -> None:
    async with running() as client, receiving(client) as receiver:
        way = {"order": "shuffle", "duplicate": 0.5, "drop": 0.25, "delay_s": [0, 0.02]}
        assert await client.post("/sandbox/webhooks", way) == {"delivery": way}
        names = [f"c{number}" for number in range(60)]
        for name in names:
            await client.customer(name)
        await client.lago.webhooks.drain()
        told = [item["external_id"] for item in receiver.of_type("customer.created")]
        assert told != sorted(told, key=names.index)
        assert 20 < len(set(told)) < 60
        assert len(told) > len(set(told))
        logged = (await client.get("/sandbox/webhooks?status=dropped"))["webhooks"]
        assert len(logged) == 60 - len(set(told))


async def test_a_repeated_payload_is_the_first_one_even_if_things_have_changed_since() -> None:
    slow, types = config(webhook_retry_waits_s=(0.3,)), ["customer.created"]
    async with running(slow) as client, receiving(client, event_types=types) as receiver:
        receiver.answers = [500]
        await client.customer(name="before")
        while not receiver.bodies:
            await asyncio.sleep(0.01)
        await client.customer(name="after")
        await client.lago.webhooks.drain()
        assert [item["name"] for item in receiver.of_type("customer.created")] == ["before", "before"]


@pytest.mark.parametrize(("order", "overlap"), [("fifo", False), ("shuffle", True)])
async def test_in_order_a_slow_answer_holds_up_what_follows(order: str, overlap: bool) -> None:
    async with running() as client, receiving(client) as receiver:
        await client.post("/sandbox/webhooks", {"order": order})
        receiver.first_takes_s = 0.3
        for number in range(5):
            await client.customer(f"c{number}")
        await client.lago.webhooks.drain()
        assert len(receiver.bodies) == 5
        assert (receiver.at_once_most > 1) is overlap


async def test_a_payment_status_that_stays_the_same_is_not_told_again() -> None:
    async with metered(config(payments="hold")) as client:
        await client.wallet(paid_credits="5")
        (invoice,) = await client.invoices("invoice_type=credit")
        async with receiving(client, event_types=["invoice.payment_status_updated"]) as receiver:
            for _ in range(3):
                await client.put(f"/invoices/{invoice['lago_id']}", {"invoice": {"payment_status": "succeeded"}})
            assert await drained(client, receiver) == ["invoice.payment_status_updated"]


async def test_in_order_means_in_order() -> None:
    async with running() as client, receiving(client) as receiver:
        names = [f"c{number}" for number in range(30)]
        await asyncio.gather(*(client.customer(name) for name in names))
        await client.lago.webhooks.drain()
        made = [item.external_id for item in client.lago.store.customers.values()]
        assert [item["external_id"] for item in receiver.of_type("customer.created")] == made


@pytest.mark.parametrize(
    "way",
    [{"order": "random"}, {"duplicate": 2}, {"drop": "all"}, {"delay_s": [2, 1]}, {"delay_s": 1}, {"colour": 1}, []],
)
async def test_an_odd_way_of_travel_is_refused(way: object) -> None:
    async with running() as client:
        before = (await client.get("/sandbox/webhooks"))["delivery"]
        assert (await client.call("POST", "/sandbox/webhooks", way))[0] == 422
        assert (await client.get("/sandbox/webhooks"))["delivery"] == before
