"""Accounts that are not in the ledger yet: one ring, one look-out, an answer for all who wait."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError
from structlog.testing import capture_logs

from sidecar.billing.reconcile.reload_requests import ReloadRequests
from sidecar.ledger.client.unknown_accounts import FirstSight, FirstSightSettings, Sight
from sidecar.ledger.keys import Keys
from sidecar.valkey.topology import Client
from tests.support.fault_proxy import FaultProxy

SETTINGS = FirstSightSettings(wait_s=0.6, refused_s=30.0)
PATIENCE_S = 20


class Lago:
    """The control plane's part: hears requests, loads accounts or marks them absent."""

    def __init__(self, client: Client, keys: Keys) -> None:
        self.client = client
        self.keys = keys
        self.reload_requests = ReloadRequests(client, keys)
        self.requests: Counter[str] = Counter()

    async def ring(self, name: str) -> None:
        self.requests[name] += 1
        await self.reload_requests.add([name])

    async def load(self, account: str) -> None:
        await self.client.hset(self.keys.account(account), "terms", b"x")

    async def deny(self, account: str) -> None:
        await self.client.set(self.keys.absent(account), b"1", px=60_000)


class Time:
    ahead_s = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead_s


@pytest.fixture
def clock() -> Time:
    return Time()


@pytest.fixture
def lago(client: Redis, keys: Keys) -> Lago:
    return Lago(client, keys)


Open = Callable[..., FirstSight]


@pytest.fixture
async def open_sight(client: Redis, keys: Keys, lago: Lago, clock: Time) -> AsyncIterator[Open]:
    opened: list[FirstSight] = []

    def open_(settings: FirstSightSettings = SETTINGS, **options: Any) -> FirstSight:
        ring: Callable[[str], Awaitable[None]] = options.get("ring", lago.ring)
        sight = FirstSight(options.get("client", client), keys, ring, settings, clock=clock)
        opened.append(sight)
        return sight

    yield open_
    for each in opened:
        await each.close()
        assert each.waiting == 0
    assert not searches()


def ask(sight: FirstSight, account: str) -> asyncio.Future[Sight]:
    future: asyncio.Future[Sight] = asyncio.get_running_loop().create_future()
    sight.ask(account, future.set_result)
    return future


def searches() -> list[asyncio.Task[Any]]:
    return [task for task in asyncio.all_tasks() if "FirstSight" in repr(task.get_coro())]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.002)


async def test_an_account_that_is_loaded_after_the_ring_is_known(open_sight: Open, lago: Lago) -> None:
    sight = open_sight()
    answer = ask(sight, "tpp-1")
    await until(lambda: lago.requests["account:tpp-1"] == 1)
    assert not answer.done()
    await lago.load("tpp-1")
    assert await answer is Sight.KNOWN
    assert [request.name for request in await lago.reload_requests.waiting(10)] == ["account:tpp-1"]


async def test_any_number_who_wait_for_an_account_ring_once_and_are_all_told(open_sight: Open, lago: Lago) -> None:
    sight = open_sight()
    answers = [ask(sight, "tpp-1") for _ in range(500)]
    await until(lambda: bool(lago.requests))
    answers += [ask(sight, "tpp-1") for _ in range(100)]
    await lago.load("tpp-1")
    assert set(await asyncio.gather(*answers)) == {Sight.KNOWN}
    assert lago.requests == {"account:tpp-1": 1}
    assert (sight.counters.known, sight.counters.asks) == (600, 1)


async def test_an_account_that_is_there_already_is_known_without_a_ring(open_sight: Open, lago: Lago) -> None:
    await lago.load("tpp-1")
    assert await ask(open_sight(), "tpp-1") is Sight.KNOWN
    assert not lago.requests


async def test_one_that_lago_does_not_know_is_absent_for_all(open_sight: Open, lago: Lago) -> None:
    sight = open_sight()
    answers = [ask(sight, "nobody") for _ in range(10)]
    await until(lambda: bool(lago.requests))
    await lago.deny("nobody")
    assert set(await asyncio.gather(*answers)) == {Sight.ABSENT}


async def test_a_mark_of_another_gateway_s_question_is_an_answer_without_a_ring(open_sight: Open, lago: Lago) -> None:
    await lago.deny("nobody")
    assert await ask(open_sight(), "nobody") is Sight.ABSENT
    assert not lago.requests


async def test_an_account_that_is_loaded_is_known_though_the_mark_is_still_there(open_sight: Open, lago: Lago) -> None:
    await lago.deny("tpp-1")
    await lago.load("tpp-1")
    assert await ask(open_sight(), "tpp-1") is Sight.KNOWN


async def test_a_refusal_is_remembered_here_for_a_while_and_then_asked_for_again(
    open_sight: Open, lago: Lago, client: Redis, keys: Keys, clock: Time
) -> None:
    sight = open_sight()
    await lago.deny("nobody")
    assert await ask(sight, "nobody") is Sight.ABSENT
    await client.delete(keys.absent("nobody"))
    await lago.load("nobody")
    answer = ask(sight, "nobody")
    assert answer.done()  # without a question to Valkey
    assert answer.result() is Sight.ABSENT
    clock.ahead_s = SETTINGS.refused_s
    assert await ask(sight, "nobody") is Sight.KNOWN


async def test_the_memory_of_refusals_is_bounded_and_the_oldest_goes_first(open_sight: Open, lago: Lago) -> None:
    sight = open_sight(FirstSightSettings(wait_s=0.6, refused_max=2))
    for account in ("a", "b", "c"):
        await lago.deny(account)
        await ask(sight, account)
    assert [ask(sight, account).done() for account in ("c", "b", "a")] == [True, True, False]


async def test_who_has_waited_long_enough_is_told_that_it_is_pending(open_sight: Open, lago: Lago) -> None:
    sight = open_sight()
    started_s = time.monotonic()
    assert await ask(sight, "tpp-1") is Sight.PENDING
    assert SETTINGS.wait_s - 0.05 <= time.monotonic() - started_s < SETTINGS.wait_s + 2
    assert sight.counters.pending == 1
    await until(lambda: "0 wait for 0 accounts" in repr(sight))


async def test_each_waits_from_its_own_beginning_and_the_bell_is_rung_again_for_the_later(
    open_sight: Open, lago: Lago
) -> None:
    sight = open_sight()
    first = ask(sight, "tpp-1")
    await asyncio.sleep(0.45)
    second = ask(sight, "tpp-1")
    assert await first is Sight.PENDING
    assert not second.done()
    await until(lambda: lago.requests["account:tpp-1"] == 2)
    await lago.load("tpp-1")
    assert await second is Sight.KNOWN


async def test_no_more_wait_than_may(open_sight: Open) -> None:
    sight = open_sight(FirstSightSettings(wait_s=0.6, waiting_max=3))
    answers = [ask(sight, f"tpp-{n % 2}") for n in range(5)]
    assert [answer.done() for answer in answers] == [False, False, False, True, True]
    assert answers[4].result() is Sight.PENDING
    assert (sight.waiting, sight.counters.refused_by_limit) == (3, 2)
    await asyncio.gather(*answers)
    assert not ask(sight, "tpp-1").done()


async def test_no_more_new_accounts_are_asked_for_than_a_second_may_bring(
    open_sight: Open, lago: Lago, clock: Time
) -> None:
    sight = open_sight(FirstSightSettings(wait_s=0.3, asks_per_second_max=5))
    answers = [ask(sight, f"tpp-{n}") for n in range(50)]
    assert sum(answer.done() for answer in answers) == 45
    assert not ask(sight, "tpp-0").done()  # one that is asked for already costs no question
    await asyncio.gather(*answers)
    assert len(lago.requests) == 5
    clock.ahead_s = 1
    assert not ask(sight, "tpp-49").done()


async def test_a_valkey_that_cannot_be_reached_makes_it_pending_at_once_and_is_said_once(
    keys: Keys, open_sight: Open, valkey_server: Any
) -> None:
    async with (
        FaultProxy(valkey_server.host, valkey_server.port) as proxy,
        Redis(host="127.0.0.1", port=proxy.listening_port, retry=Retry(NoBackoff(), 0)) as through,
    ):
        proxy.refuse()
        sight = open_sight(FirstSightSettings(wait_s=PATIENCE_S), client=through)
        with capture_logs() as logs:
            answers = await asyncio.gather(*(ask(sight, f"tpp-{n % 7}") for n in range(50)))
        assert set(answers) == {Sight.PENDING}
        assert [log["log_level"] for log in logs] == ["warning"]


async def test_a_valkey_that_hangs_keeps_nobody_longer_than_the_wait(
    keys: Keys, open_sight: Open, valkey_server: Any
) -> None:
    async with (
        FaultProxy(valkey_server.host, valkey_server.port) as proxy,
        Redis(host="127.0.0.1", port=proxy.listening_port, socket_timeout=60) as through,
    ):
        proxy.stall()
        sight = open_sight(client=through)
        answers = await asyncio.wait_for(asyncio.gather(*(ask(sight, f"tpp-{n}") for n in range(40))), PATIENCE_S)
        assert set(answers) == {Sight.PENDING}
        await asyncio.wait_for(sight.close(), PATIENCE_S)


async def test_a_ring_that_fails_makes_it_pending(open_sight: Open) -> None:
    async def broken(_: str) -> None:
        raise ConnectionError("gone")

    assert await ask(open_sight(FirstSightSettings(wait_s=PATIENCE_S), ring=broken), "tpp-1") is Sight.PENDING


async def test_many_accounts_at_once_leave_connections_of_the_client_to_others(
    open_sight: Open, lago: Lago, keys: Keys, valkey_server: Any
) -> None:
    for n in range(200):
        await lago.load(f"tpp-{n}")
    async with Redis(host=valkey_server.host, port=valkey_server.port, max_connections=20) as narrow:
        sight = open_sight(FirstSightSettings(wait_s=PATIENCE_S, asks_per_second_max=300), client=narrow)
        answers = await asyncio.gather(*(ask(sight, f"tpp-{n}") for n in range(200)))
        assert set(answers) == {Sight.KNOWN}


async def test_closing_tells_everyone_and_ends_every_search(open_sight: Open) -> None:
    sight = open_sight(FirstSightSettings(wait_s=PATIENCE_S))
    answers = [ask(sight, f"tpp-{n % 5}") for n in range(20)]
    assert len(searches()) == 5
    await asyncio.sleep(0.05)
    await sight.close()
    assert [answer.result() for answer in answers] == [Sight.PENDING] * 20
    assert not searches()
    assert ask(sight, "tpp-1").result() is Sight.PENDING


async def test_one_who_fails_to_take_the_answer_keeps_it_from_nobody_else(open_sight: Open, lago: Lago) -> None:
    sight = open_sight()

    def broken(_: Sight) -> None:
        raise RuntimeError("a defect")

    sight.ask("tpp-1", broken)
    answer = ask(sight, "tpp-1")
    with capture_logs() as logs:
        await lago.load("tpp-1")
        assert await answer is Sight.KNOWN
    assert [log["log_level"] for log in logs] == ["error"]


async def test_who_asks_again_from_the_answer_starts_a_new_search(open_sight: Open, lago: Lago) -> None:
    sight = open_sight()
    sights: list[Sight] = []

    def again(first: Sight) -> None:
        sights.append(first)
        sight.ask("tpp-1", sights.append)

    sight.ask("tpp-1", again)
    await lago.load("tpp-1")
    await until(lambda: len(sights) == 2)
    assert sights == [Sight.KNOWN, Sight.KNOWN]


async def test_looks_become_rarer_while_nothing_is_seen(open_sight: Open, client: Redis) -> None:
    await client.config_resetstat()
    await ask(open_sight(FirstSightSettings(wait_s=1.5)), "tpp-1")
    calls = (await client.info("commandstats"))["cmdstat_hexists"]["calls"]
    assert 5 <= calls <= 14


async def test_it_works_on_every_kind_of_valkey(any_client: Client, keys: Keys) -> None:
    lago = Lago(any_client, keys)
    sight = FirstSight(any_client, keys, lago.ring, SETTINGS)
    try:
        await lago.deny("nobody")
        known, absent, pending = ask(sight, "tpp-1"), ask(sight, "nobody"), ask(sight, "tpp-2")
        await until(lambda: len(lago.requests) == 2)
        await lago.load("tpp-1")
        assert [await known, await absent, await pending] == [Sight.KNOWN, Sight.ABSENT, Sight.PENDING]
    finally:
        await sight.close()
