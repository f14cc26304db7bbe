"""A receiver as a process: thousands of webhooks at once, and death in the middle of them."""

from __future__ import annotations

import asyncio
import re
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import aiohttp
from pydantic import SecretStr
from redis.asyncio import Redis

from sidecar.billing.reconcile.reload_requests import ReloadRequests
from sidecar.billing.settings import WebhookSettings
from sidecar.ledger.keys import Keys
from tests.integration.billing.webhooks.kit import body_of, headers_of, sending
from tests.unit.billing.webhooks.kit import HMAC_KEY

ROOT = Path(__file__).parents[4]
SETTINGS = WebhookSettings(hmac_key=SecretStr(HMAC_KEY), requests_per_second_max=100_000)
TIMEOUT_S = 60


@asynccontextmanager
async def receiver(client: Redis, settings: WebhookSettings = SETTINGS) -> AsyncIterator[tuple[Process, int]]:
    where = client.connection_pool.connection_kwargs
    how = settings.model_dump_json().replace("**********", HMAC_KEY)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.integration.billing.webhooks.runner", where["host"], str(where["port"]), how,
        cwd=ROOT, stdout=PIPE, stderr=DEVNULL,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        yield process, int(await asyncio.wait_for(process.stdout.readline(), TIMEOUT_S))
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def resident_bytes(process: Process) -> int:
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


async def test_a_storm_is_answered_whole_and_rings_each_account_once(
    client: Redis, keys: Keys, record_property: Callable[[str, object], None]
) -> None:
    accounts = [f"tpp-{n}" for n in range(250)]
    distinct = [(body_of(account=a, balance_cents=v, note="x" * 2000), f"{a}-{v}") for a in accounts for v in range(16)]
    storm = distinct + distinct[:1000]  # what Lago sends again since it saw no answer
    Random(7).shuffle(storm)
    seconds: list[float] = []
    statuses: list[int] = []

    async with receiver(client) as (process, port), sending(port, connections=100) as lago:
        await lago.send(*warm())
        before = resident_bytes(process)

        async def send(body: bytes, key: str) -> None:
            started_s = time.perf_counter()
            statuses.append((await lago.send(body, headers_of(body, key))).status)
            seconds.append(time.perf_counter() - started_s)

        work = iter(storm)

        async def sender() -> None:
            for body, key in work:
                await send(body, key)

        started_s = time.perf_counter()
        await asyncio.gather(*(sender() for _ in range(100)))
        took_s = time.perf_counter() - started_s
        grown = resident_bytes(process) - before

    assert statuses == [200] * 5000
    assert grown < 64 * 1024 * 1024
    assert await ReloadRequests(client, keys).count() == len(accounts) + 1
    assert await client.zcard(keys.webhooks_seen()) == len(distinct) + 1
    seconds.sort()
    record_property("webhooks_per_second", round(5000 / took_s))
    record_property("p50_ms", round(seconds[2500] * 1000, 1))
    record_property("p99_ms", round(seconds[4950] * 1000, 1))
    record_property("grown_kb", grown // 1024)


def warm() -> tuple[bytes, dict[str, str]]:
    body = body_of(account="warm")
    return body, headers_of(body, "warm")


async def test_a_storm_beyond_the_rate_ends_with_every_account_rung_when_the_refused_come_again(
    client: Redis, keys: Keys
) -> None:
    settings = SETTINGS.model_copy(update={"requests_per_second_max": 100})
    waiting = [(body_of(account=f"tpp-{n}"), f"k{n}") for n in range(250)]
    refusals = 0
    async with receiver(client, settings) as (_, port), sending(port) as lago:
        while waiting:
            answers = await asyncio.gather(*(lago.send(body, headers_of(body, key)) for body, key in waiting))
            assert {answer.status for answer in answers} <= {200, 429}
            waiting = [each for each, answer in zip(waiting, answers, strict=True) if answer.status == 429]
            refusals += len(waiting)
            if waiting:
                await asyncio.sleep(0.5)
    assert refusals > 0
    assert await ReloadRequests(client, keys).count() == 250


async def test_what_was_answered_before_a_kill_rings_after_it(client: Redis, keys: Keys) -> None:
    async with receiver(client) as (process, port), sending(port) as lago:
        assert (await lago.send(body_of(account="tpp-9"))).status == 200
        process.kill()
        await process.wait()
    assert [request.name for request in await ReloadRequests(client, keys).waiting(10)] == ["account:tpp-9"]


async def test_a_kill_in_the_middle_of_a_stream_loses_no_webhook(client: Redis, keys: Keys) -> None:
    bodies = {f"k{n}": body_of(account=f"tpp-{n}") for n in range(400)}
    answered: set[str] = set()

    async with receiver(client) as (process, port), sending(port, connections=20) as lago:

        async def send(key: str) -> None:
            try:
                answer = await lago.send(bodies[key], headers_of(bodies[key], key))
            except (aiohttp.ClientError, OSError):
                return
            assert answer.status == 200
            answered.add(key)
            if len(answered) == 150:
                process.kill()

        await asyncio.gather(*(send(key) for key in bodies))
    assert 150 <= len(answered) < 400

    reload_requests = ReloadRequests(client, keys)
    requested = {request.name for request in await reload_requests.waiting(1000)}
    assert {f"account:tpp-{key[1:]}" for key in answered} <= requested

    async with receiver(client) as (_, port), sending(port) as lago:
        left = bodies.keys() - answered
        answers = await asyncio.gather(*(lago.send(bodies[key], headers_of(bodies[key], key)) for key in left))
    assert {answer.status for answer in answers} == {200}
    assert {request.name for request in await reload_requests.waiting(1000)} == {f"account:tpp-{n}" for n in range(400)}
