"""What the client does when Lago, or what lies between, does not answer as it should."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from random import Random
from typing import Any

import pytest
from aiohttp import web
from structlog.testing import capture_logs

from sidecar.billing.lago.client import LagoClient
from sidecar.billing.lago.errors import (
    LagoError,
    LagoMalformed,
    LagoRejected,
    LagoSetupError,
    LagoUnauthorized,
    LagoUnavailable,
)
from sidecar.billing.lago.models import Event
from sidecar.sandbox.server import Server
from tests.conftest import free_port
from tests.integration.billing.lago_client.kit import (
    KEY,
    Reply,
    Request,
    ScriptedLago,
    SkippingClock,
    raw_server,
    settings,
    talking,
)
from tests.unit.billing.lago import samples

WALLET: Reply = (200, {"wallet": samples.wallet()})
HTML = b"<html><body><h1>502 Bad Gateway</h1></body></html>"
CONFLICT = {"status": 409, "error": "Conflict"}
EVENT = Event("om:1", "sub-1", "api_calls", Decimal(1), {})

# Whether a request may be sent a second time though the first one may have had an effect.
SAFE: dict[str, Callable[[LagoClient], Any]] = {
    "GET": lambda c: c.wallet("w1"),
    "PUT": lambda c: c.update("/plans/pro", {}),
    "DELETE": lambda c: c.delete("/plans/pro"),
    "events": lambda c: c.send_event(EVENT),
    "upsert": lambda c: c.create_customer({}),
}
UNSAFE: dict[str, Callable[[LagoClient], Any]] = {
    "top up": lambda c: c.top_up({}),
    "wallet": lambda c: c.create_wallet({}),
    "subscription": lambda c: c.create_subscription({}),
    "create": lambda c: c.create("/plans", {}),
}
EVERYTHING = {
    "wallet": samples.wallet(),
    "event": samples.event(),
    "customer": samples.customer(),
    "subscription": samples.subscription(),
    "wallet_transactions": [samples.wallet_transaction()],
}


async def failure(client: LagoClient, ask: Callable[[LagoClient], Any] = SAFE["GET"]) -> LagoError:
    with pytest.raises(LagoError) as failed:
        await ask(client)
    return failed.value


# Attempts


@pytest.mark.parametrize(
    "reply", [(500, HTML), (503, b""), (200, HTML), (404, HTML), (200, b'{"wallet": {'), (409, CONFLICT)]
)
@pytest.mark.parametrize("ask", SAFE.values(), ids=SAFE)
async def test_what_may_pass_is_tried_again_where_that_is_safe(reply: Reply, ask: Callable[[LagoClient], Any]) -> None:
    clock = SkippingClock()
    async with talking([reply, reply, (200, EVERYTHING)], clock) as (client, lago):
        await ask(client)
    assert len(lago.requests) == 3
    assert client.metrics.retries == 2
    assert len(clock.waits) == 2


@pytest.mark.parametrize("reply", [(500, HTML), (503, b"", {"Retry-After": "1"}), (200, HTML), (409, CONFLICT)])
@pytest.mark.parametrize("ask", UNSAFE.values(), ids=UNSAFE)
async def test_what_lago_would_do_twice_is_not_sent_twice(reply: Reply, ask: Callable[[LagoClient], Any]) -> None:
    async with talking([reply, (200, EVERYTHING)]) as (client, lago):
        assert (await failure(client, ask)).transient
    assert len(lago.requests) == 1


@pytest.mark.parametrize("ask", (SAFE | UNSAFE).values(), ids=SAFE | UNSAFE)
async def test_what_was_refused_for_haste_is_sent_again_whatever_it_is(ask: Callable[[LagoClient], Any]) -> None:
    async with talking([(429, b""), (200, EVERYTHING)]) as (client, lago):
        await ask(client)
    assert len(lago.requests) == 2


@pytest.mark.parametrize("ask", (SAFE | UNSAFE).values(), ids=SAFE | UNSAFE)
async def test_what_never_left_is_sent_again_whatever_it_is(ask: Callable[[LagoClient], Any]) -> None:
    """Nobody listens at first; the server comes while the client waits for its second attempt."""
    port = free_port()
    lago = ScriptedLago([(200, EVERYTHING)])
    server = Server(lago.app(), port=port)

    class Starting(SkippingClock):
        async def wait(self, event: asyncio.Event, timeout_s: float) -> bool:
            if not self.waits:
                await server.start()
            return await super().wait(event, timeout_s)

    try:
        async with LagoClient(settings(f"http://127.0.0.1:{port}"), clock=Starting(), random=Random(1)) as client:
            await ask(client)
            assert client.metrics.failures == {"network": 1}
    finally:
        await server.close()
    assert len(lago.requests) == 1


@pytest.mark.parametrize(
    "reply",
    [(422, {"code": "validation_errors"}), (404, {"code": "x"}), (400, {"error": "BadRequest: no"}), (413, b"")],
)
async def test_a_refusal_is_final(reply: Reply) -> None:
    async with talking([reply, (200, EVERYTHING)]) as (client, lago):
        error = await failure(client)
    assert isinstance(error, LagoRejected)
    assert not error.transient
    assert len(lago.requests) == 1
    assert client.metrics.failures == {"rejected": 1}


@pytest.mark.parametrize("attempts", [1, 3])
async def test_attempts_have_an_end(attempts: int) -> None:
    async with talking([(500, HTML)], attempts_max=attempts) as (client, lago):
        error = await failure(client)
    assert isinstance(error, LagoUnavailable)
    assert str(error).startswith("GET /wallets/{id}: 500: ")
    assert len(lago.requests) == attempts
    assert client.metrics.failures == {"status": attempts}
    assert client.metrics.retries == attempts - 1


async def test_waits_between_attempts_are_random_below_a_bound_that_doubles() -> None:
    clock = SkippingClock()
    async with talking([(500, b"")], clock, attempts_max=12) as (client, _):
        await failure(client)
    bounds = [min(10.0, 0.2 * 2**n) for n in range(11)]
    assert len(clock.waits) == 11
    assert all(0 <= wait_s <= bound for wait_s, bound in zip(clock.waits, bounds, strict=True))
    assert len(set(clock.waits)) == 11
    assert max(clock.waits) > 0.4


async def test_a_server_that_asks_for_time_gets_it_up_to_a_bound() -> None:
    clock = SkippingClock()
    replies = [(503, b"", {"Retry-After": "20"}), (503, b"", {"Retry-After": "86400"}), WALLET]
    async with talking(replies, clock) as (client, _):
        await client.wallet("w1")
    assert clock.waits == [20.0, 60.0]


# Pauses


@pytest.mark.parametrize(
    ("headers", "pause_s"),
    [({"Retry-After": "7"}, 7), ({"X-RateLimit-Reset": "3"}, 3), ({}, 1), ({"X-RateLimit-Reset": "86400"}, 60)],
)
async def test_after_too_many_requests_the_whole_client_pauses(headers: dict[str, str], pause_s: float) -> None:
    clock = SkippingClock()
    starts: list[float] = []

    def script(request: Request) -> Reply:
        starts.append(clock.now_s())
        return (429, b"", headers) if len(starts) == 1 else WALLET

    async with talking(script, clock) as (client, _):
        began_s = clock.now_s()
        first = asyncio.create_task(client.wallet("w1"))
        while not client.metrics.pauses:
            await asyncio.sleep(0.001)
        await asyncio.gather(first, *(client.wallet("w1") for _ in range(5)))
    assert [at - began_s >= pause_s for at in starts] == [False] + [True] * 6
    assert max(starts) - began_s < pause_s + 0.25, "a little more than asked for, and not all over again"
    assert client.metrics.pauses == 1
    assert client.metrics.failures == {"throttled": 1}
    assert client.metrics.throttled_s == pytest.approx(pause_s, abs=0.25)


async def test_requests_keep_to_the_pace_of_the_settings() -> None:
    clock = SkippingClock()
    async with talking([WALLET], clock, requests_per_second=20) as (client, _):
        began_s = clock.now_s()
        await asyncio.gather(*(client.wallet("w1") for _ in range(22)))
    assert clock.now_s() - began_s == pytest.approx(1.0)


# Answers


async def test_a_field_of_the_wrong_type_is_not_asked_for_again() -> None:
    async with talking([(200, {"wallet": samples.wallet(balance_cents="much")})]) as (client, lago):
        error = await failure(client)
    assert isinstance(error, LagoMalformed)
    assert str(error) == ("GET /wallets/{id}: wallet.balance_cents is not a whole number up to 10^18: it is 'much'")
    assert not error.transient
    assert len(lago.requests) == 1
    assert client.metrics.failures == {"malformed": 1}


@pytest.mark.parametrize("location", ["http://127.0.0.1:1/elsewhere", "/api/v1/wallets/w2"])
async def test_redirects_are_not_followed(location: str) -> None:
    async with talking([(302, b"", {"Location": location})], attempts_max=1) as (client, lago):
        error = await failure(client)
    assert isinstance(error, LagoMalformed)
    assert len(lago.requests) == 1


async def test_an_answer_that_is_too_large_is_not_read_to_its_end() -> None:
    sent = 0

    async def endless(request: Request) -> Reply:
        return 200, web.Response()

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 900000000\r\n\r\n")
        while sent < 900_000_000:
            writer.write(b" " * 65_536)
            sent += 65_536
            await writer.drain()

    async with raw_server(flood) as url, LagoClient(settings(url, answer_bytes_max=100_000)) as client:
        error = await failure(client)
    assert isinstance(error, LagoMalformed)
    assert "larger than lago.answer_bytes_max, 100000 bytes" in str(error)
    assert not error.transient
    assert sent < 20_000_000


async def test_an_answer_of_just_the_largest_size_is_read() -> None:
    body = json.dumps({"wallet": samples.wallet()}).encode()
    async with talking([(200, body.ljust(65_536))], answer_bytes_max=65_536) as (client, _):
        assert await client.wallet("w1") is not None
    async with talking([(200, body.ljust(65_537))], answer_bytes_max=65_536) as (client, _):
        assert "larger" in str(await failure(client))


async def test_an_answer_that_is_compressed_though_nobody_asked_is_refused() -> None:
    body = gzip.compress(json.dumps({"wallet": samples.wallet()}).encode())
    async with talking([(200, body, {"Content-Encoding": "gzip"})], attempts_max=1) as (client, lago):
        assert "gzip was not asked for" in str(await failure(client))
    assert lago.requests[0].headers["accept-encoding"] == "identity"


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Le",
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 500\r\n\r\n{\"wallet\": {",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{\"wal\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 300_000 + b"\r\n\r\n{}",
    ],
    ids=["nothing", "half a head", "half a body", "half a chunk", "another protocol", "a head without end"],
)  # fmt: skip
async def test_half_an_answer_is_none(answer: bytes) -> None:
    asked = 0

    async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        await reader.readuntil(b"\r\n\r\n")
        asked += 1
        writer.write(answer)
        await writer.drain()

    async with raw_server(cut) as url, LagoClient(settings(url, attempts_max=2), clock=SkippingClock()) as client:
        error = await failure(client)
        assert isinstance(error, LagoUnavailable)
        assert error.kind == "network"
        assert not error.unsent
        assert asked == 2
        await failure(client, UNSAFE["top up"])
        assert asked == 3


@pytest.mark.parametrize("drip", [False, True])
async def test_an_answer_that_does_not_come_in_time_is_given_up_as_a_whole(drip: bool) -> None:
    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        while drip:
            # Each piece comes in time; all together never do.
            writer.write(b" ")
            await writer.drain()
            await asyncio.sleep(0.02)
        await asyncio.sleep(5)

    started = asyncio.get_running_loop().time()
    async with raw_server(slow) as url, LagoClient(settings(url, timeout_ms=200, attempts_max=1)) as client:
        error = await failure(client)
        assert isinstance(error, LagoUnavailable)
        assert (error.kind, error.unsent) == ("timeout", False)
        assert str(error) == "GET /wallets/{id}: no answer in 200 ms"
    assert asyncio.get_running_loop().time() - started < 3


async def test_a_lost_answer_frees_its_place() -> None:
    async def never(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(5)

    short = {"timeout_ms": 100, "attempts_max": 1, "requests_in_flight_max": 1}
    async with raw_server(never) as url, LagoClient(settings(url, **short)) as client:
        for _ in range(4):
            assert isinstance(await failure(client), LagoUnavailable)
    assert client.metrics.failures == {"timeout": 4}


async def test_one_who_is_cancelled_frees_its_place() -> None:
    hold = asyncio.Event()

    async def script(request: Request) -> Reply:
        if request.path.endswith("/slow"):
            await hold.wait()
        return WALLET

    async with talking(script, requests_in_flight_max=1) as (client, lago):
        slow = asyncio.create_task(client.wallet("slow"))
        while not lago.requests:
            await asyncio.sleep(0.001)
        slow.cancel()
        assert await client.wallet("w1") is not None
        with pytest.raises(asyncio.CancelledError):
            await slow


# Who may ask


async def test_a_key_that_was_replaced_is_read_again_and_used_at_once(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("old-key\n")

    def script(request: Request) -> Reply:
        return WALLET if request.headers["authorization"] == "Bearer new-key" else (401, {"error": "Unauthorized"})

    async with talking(script, api_key=None, api_key_file=file, attempts_max=1) as (client, lago):
        assert isinstance(await failure(client), LagoUnauthorized)
        assert len(lago.requests) == 1, "the file had not changed, so nothing else could come of it"
        file.write_text("new-key\n")
        found = await asyncio.gather(*(client.wallet("w1") for _ in range(5)))
    assert all(found)
    keys = [each.headers["authorization"] for each in lago.requests]
    assert keys.count("Bearer new-key") == 5
    assert set(keys[-2:]) == {"Bearer new-key"}


@pytest.mark.parametrize("content", [None, b"", b"two words", b"x" * 20_000])
async def test_a_file_that_cannot_be_used_leaves_the_key_as_it_was(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "key"
    file.write_bytes(b"old-key")
    async with talking([(401, b""), WALLET], api_key=None, api_key_file=file) as (client, lago):
        if content is None:
            file.unlink()
        else:
            file.write_bytes(content)
        with capture_logs() as logs:
            assert isinstance(await failure(client), LagoUnauthorized)
        assert await client.wallet("w1") is not None
    assert "cannot read lago.api_key_file, the previous key stays in use" in [entry["event"] for entry in logs]
    assert {each.headers["authorization"] for each in lago.requests} == {"Bearer old-key"}


async def test_a_key_that_is_refused_for_good_is_tried_once_more_and_no_longer(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("key-0")

    def script(request: Request) -> Reply:
        file.write_text(f"key-{len(lago.requests)}")  # another one each time, and none is right
        return 403, {"status": 403, "error": "Forbidden", "code": "feature_unavailable"}

    async with talking(script, api_key=None, api_key_file=file) as (client, lago):
        error = await failure(client)
    assert str(error) == "GET /wallets/{id}: 403 feature_unavailable"
    assert len(lago.requests) == 2


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"url": None}, "lago.url is not set"),
        ({"api_key": None, "api_key_file": Path("/nonexistent/key")}, "lago.api_key_file: /nonexistent/key: No such"),
        ({"api_key": None, "api_key_file": Path("/dev/null")}, "lago.api_key_file: /dev/null: a token is one or more"),
        ({"api_key": None, "api_key_file": Path("/dev/zero")}, "lago.api_key_file: /dev/zero is larger than 16384"),
        ({"ca_file": Path("/nonexistent/ca")}, "lago.ca_file: /nonexistent/ca: No such file"),
        ({"ca_file": Path("/dev/null")}, "lago.ca_file: /dev/null"),
    ],
)
async def test_what_cannot_work_is_said_at_the_start(changes: dict[str, Any], says: str) -> None:
    how = settings("http://127.0.0.1:9", **changes)
    with pytest.raises(LagoSetupError) as refused:
        async with LagoClient(how):
            pass
    assert says in str(refused.value)


async def test_the_key_is_nowhere_but_in_its_header() -> None:
    echo = f"you sent Authorization: Bearer {KEY}".encode()
    replies: list[Reply] = [
        (500, echo),
        (403, echo),
        (404, echo),
        (200, echo),
        (422, {"code": "validation_errors", "error_details": {"key": [KEY]}}),
        (200, {"wallet": samples.wallet(balance_cents=KEY)}),
    ]
    with capture_logs() as logs:
        async with talking(replies, attempts_max=1) as (client, _):
            errors = [await failure(client) for _ in replies]
            seen = "".join([str(errors), *map(str, errors), repr(client), repr(client._transport), repr(logs)])
    assert KEY not in seen
    assert KEY not in str(client.metrics)


async def test_no_cookie_is_kept_and_no_proxy_of_the_environment_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    async with talking([(200, {"wallet": samples.wallet()}, {"Set-Cookie": "a=b; Path=/"})]) as (client, lago):
        await client.wallet("w1")
        await client.wallet("w1")
    assert "cookie" not in lago.requests[1].headers


# Beginning and end


async def test_a_client_that_is_closed_fails_at_once_and_ends_what_waits() -> None:
    client = LagoClient(settings("http://127.0.0.1:9"))
    assert isinstance(await failure(client), LagoUnavailable)
    assert repr(client) == "LagoClient(http://127.0.0.1:9, closed)"
    hold = asyncio.Event()

    async def script(request: Request) -> Reply:
        await hold.wait()
        return WALLET

    async with talking(script, requests_in_flight_max=1) as (client, lago):
        waiting = [asyncio.create_task(client.wallet("w1")) for _ in range(3)]
        while not lago.requests:
            await asyncio.sleep(0.001)
        await client.__aexit__(None, None, None)
        hold.set()
        found = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 5)
        assert isinstance(await failure(client), LagoUnavailable)
    assert [type(each) for each in found] == [LagoUnavailable] * 3


async def test_trouble_is_logged_once_when_it_begins_and_once_when_it_ends() -> None:
    with capture_logs() as logs:
        async with talking([(500, b""), (500, b""), WALLET, WALLET, (429, b""), WALLET]) as (client, _):
            for _ in range(3):
                await client.wallet("w1")
    assert [entry["event"] for entry in logs] == [
        "requests to lago fail",
        "requests to lago succeed again",
    ] * 2
