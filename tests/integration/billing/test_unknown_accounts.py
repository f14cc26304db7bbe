"""Accounts that are not in the ledger yet: one reload request, one loop that looks, an answer for all who wait."""

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
from sidecar.ledger.client.unknown_accounts import AccountLookup, UnknownAccounts, UnknownAccountSettings
from sidecar.ledger.keys import Keys
from sidecar.valkey.topology import Client
from tests.support.fault_proxy import FaultProxy

SETTINGS = UnknownAccountSettings(wait_s=0.6, refused_s=30.0)
DEADLINE_S = 20


class Lago:
    """The control plane's part: hears requests, loads accounts or marks them absent."""

    def __init__(self, client: Client, keys: Keys) -> None:
        self.client = client
        self.keys = keys
        self.reload_requests = ReloadRequests(client, keys)
        self.requests: Counter[str] = Counter()

    async def request_reload(self, name: str) -> None:
        self.requests[name] += 1
        await self.reload_requests.add([name])

    async def load(self, account: str) -> None:
        await self.client.hset(self.keys.account(account), "view", b"x")

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


Open = Callable[..., UnknownAccounts]


@pytest.fixture
async def open_lookup(client: Redis, keys: Keys, lago: Lago, clock: Time) -> AsyncIterator[Open]:
    opened: list[UnknownAccounts] = []

    def open_(settings: UnknownAccountSettings = SETTINGS, **options: Any) -> UnknownAccounts:
        request_reload: Callable[[str], Awaitable[None]] = options.get("request_reload", lago.request_reload)
        lookup = UnknownAccounts(options.get("client", client), keys, request_reload, settings, clock=clock)
        opened.append(lookup)
        return lookup

    yield open_
    for each in opened:
        await each.close()
        assert each.waiting == 0
    assert not searches()


def ask(lookup: UnknownAccounts, account: str) -> asyncio.Future[AccountLookup]:
    future: asyncio.Future[AccountLookup] = asyncio.get_running_loop().create_future()
    lookup.ask(account, future.set_result)
    return future


def searches() -> list[asyncio.Task[Any]]:
    return [task for task in asyncio.all_tasks() if "UnknownAccounts" in repr(task.get_coro())]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0.002)


async def test_an_account_that_is_loaded_after_the_ring_is_known(open_lookup: Open, lago: Lago) -> None:
    lookup = open_lookup()
    answer = ask(lookup, "tpp-1")
    await until(lambda: lago.requests["account:tpp-1"] == 1)
    assert not answer.done()
    await lago.load("tpp-1")
    assert await answer is AccountLookup.KNOWN
    assert [request.name for request in await lago.reload_requests.waiting(10)] == ["account:tpp-1"]


async def test_any_number_who_wait_for_an_account_ring_once_and_are_all_told(open_lookup: Open, lago: Lago) -> None:
    lookup = open_lookup()
    answers = [ask(lookup, "tpp-1") for _ in range(500)]
    await until(lambda: bool(lago.requests))
    answers += [ask(lookup, "tpp-1") for _ in range(100)]
    await lago.load("tpp-1")
    assert set(await asyncio.gather(*answers)) == {AccountLookup.KNOWN}
    assert lago.requests == {"account:tpp-1": 1}
    assert (lookup.counters.known, lookup.counters.asks) == (600, 1)


async def test_an_account_that_is_there_already_is_known_without_a_request(open_lookup: Open, lago: Lago) -> None:
    await lago.load("tpp-1")
    assert await ask(open_lookup(), "tpp-1") is AccountLookup.KNOWN
    assert not lago.requests


async def test_one_that_lago_does_not_know_is_absent_for_all(open_lookup: Open, lago: Lago) -> None:
    lookup = open_lookup()
    answers = [ask(lookup, "nobody") for _ in range(10)]
    await until(lambda: bool(lago.requests))
    await lago.deny("nobody")
    assert set(await asyncio.gather(*answers)) == {AccountLookup.ABSENT}


async def test_the_absence_that_another_gateway_found_is_an_answer_without_a_request(
    open_lookup: Open, lago: Lago
) -> None:
    await lago.deny("nobody")
    assert await ask(open_lookup(), "nobody") is AccountLookup.ABSENT
    assert not lago.requests


async def test_an_account_that_is_loaded_is_known_though_the_mark_is_still_there(open_lookup: Open, lago: Lago) -> None:
    await lago.deny("tpp-1")
    await lago.load("tpp-1")
    assert await ask(open_lookup(), "tpp-1") is AccountLookup.KNOWN


async def test_a_refusal_is_remembered_here_for_a_while_and_then_asked_for_again(
    open_lookup: Open, lago: Lago, client: Redis, keys: Keys, clock: Time
) -> None:
    lookup = open_lookup()
    await lago.deny("nobody")
    assert await ask(lookup, "nobody") is AccountLookup.ABSENT
    await client.delete(keys.absent("nobody"))
    await lago.load("nobody")
    answer = ask(lookup, "nobody")
    assert answer.done()  # without a question to Valkey
    assert answer.result() is AccountLookup.ABSENT
    clock.ahead_s = SETTINGS.refused_s
    assert await ask(lookup, "nobody") is AccountLookup.KNOWN


async def test_the_memory_of_refusals_is_bounded_and_the_oldest_goes_first(open_lookup: Open, lago: Lago) -> None:
    lookup = open_lookup(UnknownAccountSettings(wait_s=0.6, refused_max=2))
    for account in ("a", "b", "c"):
        await lago.deny(account)
        await ask(lookup, account)
    assert [ask(lookup, account).done() for account in ("c", "b", "a")] == [True, True, False]


async def test_who_has_waited_long_enough_is_told_that_it_is_pending(open_lookup: Open, lago: Lago) -> None:
    lookup = open_lookup()
    started_s = time.monotonic()
    assert await ask(lookup, "tpp-1") is AccountLookup.PENDING
    assert SETTINGS.wait_s - 0.05 <= time.monotonic() - started_s < SETTINGS.wait_s + 2
    assert lookup.counters.pending == 1
    await until(lambda: "0 wait for 0 accounts" in repr(lookup))


async def test_each_waits_from_its_own_beginning_and_the_request_is_made_again_for_the_later(
    open_lookup: Open, lago: Lago
) -> None:
    lookup = open_lookup()
    first = ask(lookup, "tpp-1")
    await asyncio.sleep(0.45)
    second = ask(lookup, "tpp-1")
    assert await first is AccountLookup.PENDING
    assert not second.done()
    await until(lambda: lago.requests["account:tpp-1"] == 2)
    await lago.load("tpp-1")
    assert await second is AccountLookup.KNOWN


async def test_no_more_wait_than_may(open_lookup: Open) -> None:
    lookup = open_lookup(UnknownAccountSettings(wait_s=0.6, waiting_max=3))
    answers = [ask(lookup, f"tpp-{n % 2}") for n in range(5)]
    assert [answer.done() for answer in answers] == [False, False, False, True, True]
    assert answers[4].result() is AccountLookup.PENDING
    assert (lookup.waiting, lookup.counters.refused_by_limit) == (3, 2)
    await asyncio.gather(*answers)
    assert not ask(lookup, "tpp-1").done()


async def test_no_more_new_accounts_are_asked_for_than_a_second_may_bring(
    open_lookup: Open, lago: Lago, clock: Time
) -> None:
    lookup = open_lookup(UnknownAccountSettings(wait_s=0.3, asks_per_second_max=5))
    answers = [ask(lookup, f"tpp-{n}") for n in range(50)]
    assert sum(answer.done() for answer in answers) == 45
    assert not ask(lookup, "tpp-0").done()  # one that is asked for already costs no question
    await asyncio.gather(*answers)
    assert len(lago.requests) == 5
    clock.ahead_s = 1
    assert not ask(lookup, "tpp-49").done()


async def test_a_valkey_that_cannot_be_reached_makes_it_pending_at_once_and_is_said_once(
    keys: Keys, open_lookup: Open, valkey_server: Any
) -> None:
    async with (
        FaultProxy(valkey_server.host, valkey_server.port) as proxy,
        Redis(host="127.0.0.1", port=proxy.listening_port, retry=Retry(NoBackoff(), 0)) as through,
    ):
        proxy.refuse()
        lookup = open_lookup(UnknownAccountSettings(wait_s=DEADLINE_S), client=through)
        with capture_logs() as logs:
            answers = await asyncio.gather(*(ask(lookup, f"tpp-{n % 7}") for n in range(50)))
        assert set(answers) == {AccountLookup.PENDING}
        assert [log["log_level"] for log in logs] == ["warning"]


async def test_a_valkey_that_hangs_keeps_nobody_longer_than_the_wait(
    keys: Keys, open_lookup: Open, valkey_server: Any
) -> None:
    async with (
        FaultProxy(valkey_server.host, valkey_server.port) as proxy,
        Redis(host="127.0.0.1", port=proxy.listening_port, socket_timeout=60) as through,
    ):
        proxy.stall()
        lookup = open_lookup(client=through)
        answers = await asyncio.wait_for(asyncio.gather(*(ask(lookup, f"tpp-{n}") for n in range(40))), DEADLINE_S)
        assert set(answers) == {AccountLookup.PENDING}
        await asyncio.wait_for(lookup.close(), DEADLINE_S)


async def test_a_ring_that_fails_makes_it_pending(open_lookup: Open) -> None:
    async def broken(_: str) -> None:
        raise ConnectionError("gone")

    assert (
        await ask(open_lookup(UnknownAccountSettings(wait_s=DEADLINE_S), request_reload=broken), "tpp-1")
        is AccountLookup.PENDING
    )


async def test_many_accounts_at_once_leave_connections_of_the_client_to_others(
    open_lookup: Open, lago: Lago, keys: Keys, valkey_server: Any
) -> None:
    for n in range(200):
        await lago.load(f"tpp-{n}")
    async with Redis(host=valkey_server.host, port=valkey_server.port, max_connections=20) as narrow:
        lookup = open_lookup(UnknownAccountSettings(wait_s=DEADLINE_S, asks_per_second_max=300), client=narrow)
        answers = await asyncio.gather(*(ask(lookup, f"tpp-{n}") for n in range(200)))
        assert set(answers) == {AccountLookup.KNOWN}


async def test_closing_tells_everyone_and_ends_every_search(open_lookup: Open) -> None:
    lookup = open_lookup(UnknownAccountSettings(wait_s=DEADLINE_S))
    answers = [ask(lookup, f"tpp-{n % 5}") for n in range(20)]
    assert len(searches()) == 5
    await asyncio.sleep(0.05)
    await lookup.close()
    assert [answer.result() for answer in answers] == [AccountLookup.PENDING] * 20
    assert not searches()
    assert ask(lookup, "tpp-1").result() is AccountLookup.PENDING


async def test_one_who_fails_to_take_the_answer_keeps_it_from_nobody_else(open_lookup: Open, lago: Lago) -> None:
    lookup = open_lookup()

    def broken(_: AccountLookup) -> None:
        raise RuntimeError("a defect")

    lookup.ask("tpp-1", broken)
    answer = ask(lookup, "tpp-1")
    with capture_logs() as logs:
        await lago.load("tpp-1")
        assert await answer is AccountLookup.KNOWN
    assert [log["log_level"] for log in logs] == ["error"]


async def test_who_asks_again_from_the_answer_starts_a_new_search(open_lookup: Open, lago: Lago) -> None:
    lookup = open_lookup()
    sights: list[AccountLookup] = []

    def again(first: AccountLookup) -> None:
        sights.append(first)
        lookup.ask("tpp-1", sights.append)

    lookup.ask("tpp-1", again)
    await lago.load("tpp-1")
    await until(lambda: len(sights) == 2)
    assert sights == [AccountLookup.KNOWN, AccountLookup.KNOWN]


async def test_looks_become_rarer_while_nothing_is_seen(open_lookup: Open, client: Redis) -> None:
    await client.config_resetstat()
    await ask(open_lookup(UnknownAccountSettings(wait_s=1.5)), "tpp-1")
    calls = (await client.info("commandstats"))["cmdstat_hexists"]["calls"]
    assert 5 <= calls <= 14


async def test_it_works_on_every_kind_of_valkey(any_client: Client, keys: Keys) -> None:
    lago = Lago(any_client, keys)
    lookup = UnknownAccounts(any_client, keys, lago.request_reload, SETTINGS)
    try:
        await lago.deny("nobody")
        known, absent, pending = ask(lookup, "tpp-1"), ask(lookup, "nobody"), ask(lookup, "tpp-2")
        await until(lambda: len(lago.requests) == 2)
        await lago.load("tpp-1")
        assert [await known, await absent, await pending] == [
            AccountLookup.KNOWN,
            AccountLookup.ABSENT,
            AccountLookup.PENDING,
        ]
    finally:
        await lookup.close()
