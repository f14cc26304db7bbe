"""``POST /webhooks/lago`` over real sockets."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, suppress
from typing import Any

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from structlog.testing import capture_logs

from sidecar.basics.clock import SystemClock
from sidecar.billing.reconcile.reload_requests import SWEEP, ReloadRequests
from sidecar.billing.settings import WebhookSettings
from sidecar.billing.webhooks import body as body_module
from sidecar.billing.webhooks.receiver import SWEEP_PAUSE_S, WebhookReceiver, _idempotency_key
from sidecar.ledger.keys import Keys
from tests.conftest import start_valkey
from tests.integration.billing.webhooks.kit import Lago, body_of, headers_of, sending, serving
from tests.support.fault_proxy import FaultProxy
from tests.unit.billing.webhooks.kit import HMAC_KEY, ISSUER, HandClock, SigningKey, hmac_signature

SETTINGS = WebhookSettings(hmac_key=SecretStr(HMAC_KEY), requests_per_second_max=10_000)


async def no_key() -> bytes:
    raise OSError("there is no Lago here")


Open = Callable[..., Any]


@pytest.fixture
def reload_requests(client: Redis, keys: Keys) -> ReloadRequests:
    return ReloadRequests(client, keys)


@pytest.fixture
async def open_receiver(reload_requests: ReloadRequests) -> AsyncIterator[Open]:
    async with AsyncExitStack() as stack:

        async def open_(settings: WebhookSettings = SETTINGS, **options: Any) -> tuple[Lago, WebhookReceiver]:
            options = {"fetch_public_key": no_key, **options}
            receiver = WebhookReceiver(settings, options.pop("reload_requests", reload_requests), **options)
            port = await stack.enter_async_context(serving(receiver))
            return await stack.enter_async_context(sending(port)), receiver

        yield open_


async def names(reload_requests: ReloadRequests) -> list[str]:
    return sorted(request.name for request in await reload_requests.waiting(1000))


async def test_a_signed_webhook_has_requested_a_reload_when_it_is_answered(
    open_receiver: Open, reload_requests: ReloadRequests
) -> None:
    lago, receiver = await open_receiver()
    answer = await lago.send(body_of())
    assert (answer.status, answer.body) == (200, b"")
    assert await names(reload_requests) == ["account:tpp-1"]
    assert receiver.metrics.taken == {("wallet.updated", "reload"): 1}
    assert sum(receiver.metrics.seconds_buckets) == 1


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"signature": None}, 401),
        ({"algorithm": None}, 401),
        ({"signature": None, "algorithm": None, "key": None}, 401),
        ({"signature": ""}, 401),
        ({"signature": "AAAA"}, 401),
        ({"signature": hmac_signature(body_of(), "another key")}, 401),
        ({"signature": hmac_signature(body_of() + b" ")}, 401),
        ({"algorithm": "jwt"}, 401),
        ({"algorithm": "none"}, 401),
        ({"algorithm": "HMAC"}, 401),
        ({"key": "k" * 129}, 400),
    ],
)
async def test_what_lago_has_not_signed_is_refused_without_a_hint_and_rings_nothing(
    open_receiver: Open, reload_requests: ReloadRequests, changes: dict[str, str | None], status: int
) -> None:
    lago, receiver = await open_receiver()
    body = body_of()
    answer = await lago.send(body, headers_of(body, **changes))
    assert answer.status == status
    assert answer.detail in (
        "The signature is missing or not valid.",
        "The X-Lago headers are not as Lago sends them.",
    )
    assert await names(reload_requests) == []
    assert sum(receiver.metrics.refused.values()) == 1
    assert not receiver.metrics.taken


@pytest.mark.parametrize("name", ["X-Lago-Signature", "X-Lago-Signature-Algorithm", "X-Lago-Unique-Key"])
async def test_a_header_that_comes_twice_is_refused(open_receiver: Open, name: str) -> None:
    lago, _ = await open_receiver()
    body = body_of()
    twice = [*headers_of(body).items(), (name, headers_of(body)[name])]
    async with lago.session.post(lago.url, data=body, headers=twice) as response:
        assert response.status == 400


async def test_a_body_changed_on_its_way_is_refused(open_receiver: Open, reload_requests: ReloadRequests) -> None:
    lago, _ = await open_receiver()
    body = body_of()
    for changed in (body[:-1], body + b" ", body.replace(b"tpp-1", b"tpp-2"), b""):
        assert (await lago.send(changed, headers_of(body))).status == 401
    assert await names(reload_requests) == []


async def test_the_bytes_are_verified_and_not_the_json(open_receiver: Open) -> None:
    lago, _ = await open_receiver()
    odd = body_of().replace(b": ", b" :\n\t").replace(b"tpp-1", b"tpp\\u002d1")
    assert (await lago.send(odd)).status == 200


@pytest.mark.parametrize(
    ("body", "words"), [(b"", "not JSON"), (b"{", "not JSON"), (b"[1]", "not a JSON object"), (b"{}", "webhook_type")]
)
async def test_who_signs_nonsense_is_told_what_is_wrong(open_receiver: Open, body: bytes, words: str) -> None:
    lago, _ = await open_receiver()
    answer = await lago.send(body)
    assert answer.status == 400
    assert words in answer.detail


async def test_without_a_key_the_address_says_that_webhooks_are_not_configured(open_receiver: Open) -> None:
    lago, receiver = await open_receiver(WebhookSettings())
    answer = await lago.send(body_of())
    assert answer.status == 404
    assert "not configured" in answer.detail
    assert not receiver.is_configured


# limits


async def test_a_body_larger_than_the_limit_is_refused_announced_or_not(
    open_receiver: Open, reload_requests: ReloadRequests
) -> None:
    lago, receiver = await open_receiver(SETTINGS.model_copy(update={"body_bytes_max": 1024}))
    fits, large = (body_of(name="x" * (size - len(body_of(name="")))) for size in (1024, 1025))
    assert (len(fits), len(large)) == (1024, 1025)

    async def pieces(body: bytes) -> AsyncIterator[bytes]:
        for at in range(0, len(body), 100):
            yield body[at : at + 100]

    assert (await lago.send(large)).status == 413
    assert (await lago.send(pieces(large), headers_of(large))).status == 413
    assert await names(reload_requests) == []
    assert (await lago.send(fits)).status == 200
    assert (await lago.send(pieces(fits), headers_of(fits, "k2"))).status == 200
    assert receiver._bodies.buffered_bytes == 0


async def test_all_bodies_together_are_bounded(open_receiver: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body_module.BodyReader.__init__, "__kwdefaults__", {"buffered_bytes_max": 1, "timeout_s": 10.0})
    lago, receiver = await open_receiver(SETTINGS.model_copy(update={"body_bytes_max": 100_000}))
    body = body_of(name="x" * 60_000)
    release = asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield body[:50_001]
        await release.wait()
        yield body[50_001:]

    waiting = asyncio.create_task(lago.send(slow(), headers_of(body)))
    while receiver._bodies.buffered_bytes < 50_001:
        await asyncio.sleep(0.005)
    refused = await lago.send(body, headers_of(body, "k2"))
    assert (refused.status, refused.headers["Retry-After"]) == (503, "1")
    release.set()
    assert (await waiting).status == 200
    assert (await lago.send(body, headers_of(body, "k2"))).status == 200
    assert receiver._bodies.buffered_bytes == 0


async def test_a_body_that_does_not_come_is_not_waited_for_for_ever(
    open_receiver: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        body_module.BodyReader.__init__, "__kwdefaults__", {"buffered_bytes_max": 10**6, "timeout_s": 0.1}
    )
    lago, _ = await open_receiver()
    body = body_of()

    async def half() -> AsyncIterator[bytes]:
        yield body[:10]
        await asyncio.sleep(5)

    assert (await lago.send(half(), headers_of(body))).status == 408


async def test_a_sender_that_breaks_off_requests_nothing_and_leaves_nothing(
    open_receiver: Open, reload_requests: ReloadRequests
) -> None:
    lago, receiver = await open_receiver()
    body = body_of()

    async def half() -> AsyncIterator[bytes]:
        yield body[:10]
        raise ConnectionError("gone")

    with suppress(Exception):
        await lago.send(half(), headers_of(body))
    while not receiver.metrics.refused:
        await asyncio.sleep(0.01)
    assert receiver.metrics.refused == {"cut_short": 1}
    assert receiver._bodies.buffered_bytes == 0
    assert await names(reload_requests) == []


async def test_an_encoded_body_is_refused_before_it_is_read(open_receiver: Open) -> None:
    lago, _ = await open_receiver()
    body = gzip.compress(body_of())
    assert (await lago.send(body, {**headers_of(body), "Content-Encoding": "gzip"})).status == 415


async def test_forged_webhooks_take_nothing_away_from_genuine_ones(open_receiver: Open) -> None:
    clock = HandClock()
    lago, receiver = await open_receiver(SETTINGS.model_copy(update={"requests_per_second_max": 2}), clock=clock)
    body = body_of()
    forged = headers_of(body, signature="c2lnbmF0dXJl")

    answers = [await lago.send(body, forged) for _ in range(20)]
    genuine = [await lago.send(body, headers_of(body, f"k{n}")) for n in range(3)]

    assert {answer.status for answer in answers} == {401}
    assert [answer.status for answer in genuine] == [200, 200, 429]
    assert receiver.metrics.refused["signature"] == 20


async def test_more_webhooks_than_a_second_may_bring_are_told_when_to_come_again(
    open_receiver: Open, reload_requests: ReloadRequests
) -> None:
    clock = HandClock()
    lago, receiver = await open_receiver(SETTINGS.model_copy(update={"requests_per_second_max": 2}), clock=clock)
    answers = [await lago.send(body_of(), headers_of(body_of(), f"k{n}")) for n in range(3)]
    assert [answer.status for answer in answers] == [200, 200, 429]
    assert answers[2].headers["Retry-After"] == "1"
    clock.at_s += 1
    assert (await lago.send(body_of())).status == 200
    assert receiver.metrics.refused == {"too_many": 1}


async def test_strangers_do_not_fill_the_log(open_receiver: Open) -> None:
    lago, receiver = await open_receiver()
    body = body_of()
    with capture_logs() as logs:
        for _ in range(20):
            await lago.send(body, headers_of(body, signature="AAAA"))
    assert len(logs) == 1
    assert receiver.metrics.refused["signature"] == 20


async def test_neither_key_nor_signature_nor_body_shows_in_the_log(open_receiver: Open) -> None:
    lago, receiver = await open_receiver()
    with capture_logs() as logs:
        for body in (body_of(), b"{}", body_of(account="")):
            await lago.send(body)
            await lago.send(body, headers_of(body, signature=hmac_signature(body, "other")))
    said = repr((logs, receiver))
    assert HMAC_KEY not in said
    assert hmac_signature(body_of()) not in said
    assert hmac_signature(body_of(), "other") not in said
    assert "tpp-1" not in said


# repeats


async def test_a_retry_of_lago_is_answered_and_requests_no_more(
    open_receiver: Open, reload_requests: ReloadRequests
) -> None:
    lago, receiver = await open_receiver()
    await lago.send(body_of())
    await reload_requests.complete(await reload_requests.waiting(10))
    assert [(await lago.send(body_of())).status for _ in range(2)] == [200, 200]
    assert await names(reload_requests) == []
    assert receiver.metrics.taken == {("wallet.updated", "reload"): 1, ("wallet.updated", "repeated"): 2}


async def test_a_key_seen_before_does_not_silence_another_body(
    open_receiver: Open, reload_requests: ReloadRequests
) -> None:
    lago, _ = await open_receiver()
    await lago.send(body_of(account="tpp-1"), headers_of(body_of(account="tpp-1"), "k1"))
    await lago.send(body_of(account="tpp-2"), headers_of(body_of(account="tpp-2"), "k1"))
    assert await names(reload_requests) == ["account:tpp-1", "account:tpp-2"]


async def test_a_change_that_is_undone_and_done_again_rings_each_time_though_its_bytes_are_the_same(
    open_receiver: Open, reload_requests: ReloadRequests
) -> None:
    lago, _ = await open_receiver()
    for key, account in (("k1", "old terms"), ("k2", "new terms"), ("k3", "old terms")):
        body = body_of(name=account)
        await lago.send(body, headers_of(body, key))
        requests = await reload_requests.waiting(10)
        assert [request.name for request in requests] == ["account:tpp-1"]
        await reload_requests.complete(requests)


async def test_without_a_key_nothing_is_taken_for_a_repeat(
    open_receiver: Open, reload_requests: ReloadRequests
) -> None:
    lago, _ = await open_receiver()
    for _ in range(2):
        assert (await lago.send(body_of(), headers_of(body_of(), None))).status == 200
        assert await reload_requests.complete(await reload_requests.waiting(10)) == 1


def test_key_and_body_cannot_be_shifted_into_each_other() -> None:
    assert _idempotency_key(b" {}", "k") != _idempotency_key(b"{}", "k ")


async def test_a_repeat_is_forgotten_in_time(open_receiver: Open, reload_requests: ReloadRequests) -> None:
    lago, _ = await open_receiver(SETTINGS.model_construct(**{**SETTINGS.__dict__, "remember_s": 1}))
    await lago.send(body_of())
    await reload_requests.complete(await reload_requests.waiting(10))
    await asyncio.sleep(1.1)
    await lago.send(body_of())
    assert await names(reload_requests) == ["account:tpp-1"]


# what is in them


async def test_what_is_ignored_is_counted_by_its_type_and_the_unknown_together(
    open_receiver: Open, reload_requests: ReloadRequests
) -> None:
    lago, receiver = await open_receiver()
    for number, type_ in enumerate(["feature.created", "quote.voided", "new.one", "new.two"]):
        body = json.dumps({"webhook_type": type_, "object_type": "x", "x": {}}).encode()
        assert (await lago.send(body, headers_of(body, str(number)))).status == 200
    assert await names(reload_requests) == []
    assert receiver.metrics.taken == {
        ("feature.created", "ignore"): 1,
        ("quote.voided", "ignore"): 1,
        ("other", "ignore"): 2,
    }


async def test_one_that_names_nobody_is_said_aloud_and_everything_is_looked_at(
    open_receiver: Open, reload_requests: ReloadRequests
) -> None:
    lago, receiver = await open_receiver()
    with capture_logs() as logs:
        body = json.dumps({"webhook_type": "wallet.updated", "object_type": "wallet", "wallet": {}}).encode()
        assert (await lago.send(body)).status == 200
    assert await names(reload_requests) == [SWEEP]
    assert receiver.metrics.taken == {("wallet.updated", "malformed"): 1}
    assert [log["type"] for log in logs] == ["wallet.updated"]


async def test_a_sweep_asked_for_too_soon_is_put_off_and_not_left_out(
    open_receiver: Open, reload_requests: ReloadRequests, client: Redis, keys: Keys
) -> None:
    class Ahead(SystemClock):
        ahead_s = 0.0

        def monotonic_s(self) -> float:
            return super().monotonic_s() + self.ahead_s

    clock = Ahead()
    lago, _ = await open_receiver(clock=clock)
    body = json.dumps({"webhook_type": "billable_metric.updated", "object_type": "x", "x": {}}).encode()
    await lago.send(body, headers_of(body, "k1"))
    await reload_requests.complete(await reload_requests.waiting(10))
    for key in ("k2", "k3"):
        assert (await lago.send(body, headers_of(body, key))).status == 200
    assert await names(reload_requests) == []
    assert await client.zrange(keys.scheduled_reloads(), 0, -1) == [SWEEP.encode()]
    at_ms = await client.zscore(keys.scheduled_reloads(), SWEEP)
    seconds = int((await client.time())[0])
    assert at_ms is not None
    assert SWEEP_PAUSE_S - 10 < float(at_ms) / 1000 - seconds <= SWEEP_PAUSE_S + 1

    clock.ahead_s = SWEEP_PAUSE_S
    await lago.send(body, headers_of(body, "k4"))
    assert await names(reload_requests) == [SWEEP]


async def test_usage_that_lago_cannot_bill_is_said_aloud(open_receiver: Open, reload_requests: ReloadRequests) -> None:
    lago, receiver = await open_receiver()
    errors = {"invalid_code": ["om:1"], "missing_group_key": []}
    body = json.dumps(
        {"webhook_type": "events.errors", "object_type": "events_errors", "events_errors": errors}
    ).encode()
    with capture_logs() as logs:
        await lago.send(body)
    assert [(log["log_level"], log["errors"]) for log in logs] == [("warning", ["invalid_code: 1 (om:1)"])]
    assert await names(reload_requests) == []
    assert receiver.metrics.taken == {("events.errors", "note"): 1}


async def test_balances_in_a_webhook_reach_nothing_but_a_reload_request(
    open_receiver: Open, reload_requests: ReloadRequests, client: Redis
) -> None:
    lago, _ = await open_receiver()
    await lago.send(body_of(balance_cents=10**15, credits_balance="9" * 30))
    stored = sorted([key.decode() async for key in client.scan_iter()])
    keys = Keys()
    assert stored == [keys.reload_requests(), keys.webhooks_seen()]
    assert await client.zrange(keys.reload_requests(), 0, -1) == [b"account:tpp-1"]


# Valkey


async def test_while_valkey_is_away_lago_is_told_to_come_again(keys: Keys, open_receiver: Open) -> None:
    server = start_valkey()
    try:
        async with (
            FaultProxy(server.host, server.port) as proxy,
            Redis(host="127.0.0.1", port=proxy.listening_port) as through,
            Redis(host=server.host, port=server.port) as direct,
        ):
            lago, receiver = await open_receiver(reload_requests=ReloadRequests(through, keys))
            proxy.refuse()
            answer = await lago.send(body_of())
            assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
            assert receiver.metrics.refused == {"ledger": 1}

            proxy.accept()
            assert (await lago.send(body_of())).status == 200
            assert await names(ReloadRequests(direct, keys)) == ["account:tpp-1"]
    finally:
        server.stop()


async def test_when_the_answer_of_valkey_is_lost_the_retry_is_taken_for_one(
    valkey_server: Any, client: Redis, keys: Keys, open_receiver: Open
) -> None:
    async with (
        FaultProxy(valkey_server.host, valkey_server.port) as proxy,
        Redis(host="127.0.0.1", port=proxy.listening_port, retry=Retry(NoBackoff(), 0), socket_timeout=1) as through,
    ):
        lago, receiver = await open_receiver(reload_requests=ReloadRequests(through, keys))
        proxy.faults.append("drop after")
        assert (await lago.send(body_of())).status == 503
        assert await names(ReloadRequests(client, keys)) == ["account:tpp-1"]
        assert (await lago.send(body_of())).status == 200
        assert receiver.metrics.taken == {("wallet.updated", "repeated"): 1}


async def test_a_valkey_that_hangs_is_not_waited_for_for_ever(
    valkey_server: Any, keys: Keys, open_receiver: Open
) -> None:
    async with (
        FaultProxy(valkey_server.host, valkey_server.port) as proxy,
        Redis(host="127.0.0.1", port=proxy.listening_port, socket_timeout=60) as through,
    ):
        lago, _ = await open_receiver(reload_requests=ReloadRequests(through, keys))
        proxy.stall()
        answers = await asyncio.gather(*(lago.send(body_of(), headers_of(body_of(), str(n))) for n in range(40)))
        assert {answer.status for answer in answers} == {503}
        proxy.flow()
        assert (await lago.send(body_of(), headers_of(body_of(), "last"))).status == 200


async def test_more_at_once_than_the_client_of_valkey_has_connections_are_all_taken(
    open_receiver: Open, reload_requests: ReloadRequests
) -> None:
    _, receiver = await open_receiver()
    async with serving(receiver) as port, sending(port, connections=300) as lago:
        bodies = [body_of(account=f"tpp-{n}") for n in range(300)]
        answers = await asyncio.gather(*(lago.send(body) for body in bodies))
    assert {answer.status for answer in answers} == {200}
    assert await reload_requests.count() == 300


# JWT


class KeyServer:
    def __init__(self) -> None:
        self.key = SigningKey()
        self.up = True
        self.asked = 0

    async def __call__(self) -> bytes:
        self.asked += 1
        if not self.up:
            raise OSError("no route")
        return self.key.pem


JWT = WebhookSettings(jwt=True, requests_per_second_max=10_000)


async def test_a_jwt_larger_than_usual_headers_is_taken(open_receiver: Open, reload_requests: ReloadRequests) -> None:
    fetch = KeyServer()
    lago, receiver = await open_receiver(JWT, fetch_public_key=fetch, lago_url=ISSUER)
    body = body_of(name='"' * 40_000)
    assert len(fetch.key.sign(body)) > 100_000
    answer = await lago.send(body, headers_of(body, signature=fetch.key.sign(body), algorithm="jwt"))
    assert answer.status == 200
    assert await names(reload_requests) == ["account:tpp-1"]
    assert receiver.metrics.key_fetches == 1


async def test_hmac_is_refused_where_only_jwt_is_configured(open_receiver: Open) -> None:
    lago, _ = await open_receiver(JWT, fetch_public_key=KeyServer(), lago_url=ISSUER)
    assert (await lago.send(body_of())).status == 401


async def test_while_lago_s_key_cannot_be_had_a_jwt_is_to_come_again(open_receiver: Open) -> None:
    fetch, clock = KeyServer(), HandClock()
    fetch.up = False
    lago, _ = await open_receiver(JWT, fetch_public_key=fetch, lago_url=ISSUER, clock=clock)
    headers = headers_of(body_of(), signature=fetch.key.sign(body_of()), algorithm="jwt")
    assert (await lago.send(body_of(), headers)).status == 503
    fetch.up = True
    clock.at_s += 10
    assert (await lago.send(body_of(), headers)).status == 200


async def test_both_algorithms_may_be_in_use_while_lago_is_moved_from_one_to_the_other(
    open_receiver: Open, reload_requests: ReloadRequests
) -> None:
    fetch = KeyServer()
    both = SETTINGS.model_copy(update={"jwt": True})
    lago, _ = await open_receiver(both, fetch_public_key=fetch, lago_url=ISSUER)
    one, two = body_of(account="tpp-1"), body_of(account="tpp-2")
    assert (await lago.send(one)).status == 200
    assert (await lago.send(two, headers_of(two, signature=fetch.key.sign(two), algorithm="jwt"))).status == 200
    assert await names(reload_requests) == ["account:tpp-1", "account:tpp-2"]
