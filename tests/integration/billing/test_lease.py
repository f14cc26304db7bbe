"""One leader among several, through deaths, standstills and failures."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import cast

import pytest
import redis as blocking
from redis.asyncio import Redis

from sidecar.basics.clock import SystemClock
from sidecar.ledger.keys import Keys
from sidecar.valkey.lease import POLL_S, SAFE_SHARE, Lease, LeaseState, lead
from sidecar.valkey.topology import CLIENT_ERRORS, Client
from tests.support.fault_proxy import FaultProxy

ROOT = Path(__file__).parents[3]
TTL_MS = 900
TTL_S = TTL_MS / 1000
TIMEOUT_S = 20


class Skewed(SystemClock):
    """A clock that can be put forward."""

    ahead_s = 0.0

    def monotonic_s(self) -> float:
        return super().monotonic_s() + self.ahead_s


# one lease, on every kind of Valkey


@pytest.fixture
def pair(any_client: Client, keys: Keys) -> tuple[Lease, Lease]:
    return Lease(any_client, keys.lease("r"), "one", 400), Lease(any_client, keys.lease("r"), "two", 400)


async def test_one_of_two_gets_it_and_the_other_sees_who_has_it(pair: tuple[Lease, Lease]) -> None:
    one, two = pair
    token = await one.acquire()
    assert token is not None
    assert await two.acquire() is None
    assert one.state == LeaseState(held=True, token=token, leader="one", terms=1, failures=0)
    assert two.state == LeaseState(held=False, token=None, leader="one", terms=0, failures=0)


async def test_renewing_keeps_the_token_and_the_lease(pair: tuple[Lease, Lease]) -> None:
    one, two = pair
    token = await one.acquire()
    for _ in range(6):
        await asyncio.sleep(0.1)
        assert await one.renew()
        assert await two.acquire() is None
    assert await one.acquire() == token
    assert one.state.terms == 1


async def test_one_that_does_not_renew_loses_it_and_the_token_rises(pair: tuple[Lease, Lease]) -> None:
    one, two = pair
    first = await one.acquire()
    await asyncio.sleep(0.45)
    second = await two.acquire()
    assert first is not None
    assert second is not None
    assert second > first
    assert not await one.renew()
    assert not one.is_held
    assert await one.acquire() is None
    assert not await one.release()
    assert two.is_held
    assert await two.renew()


async def test_a_term_that_has_run_out_is_not_renewed_though_nobody_took_it(pair: tuple[Lease, Lease]) -> None:
    one, _ = pair
    first = await one.acquire()
    await asyncio.sleep(0.45)
    assert not await one.renew()
    second = await one.acquire()
    assert first is not None
    assert second is not None
    assert second > first
    assert one.state.terms == 2


async def test_a_released_lease_is_free_at_once_and_its_token_is_not_used_again(pair: tuple[Lease, Lease]) -> None:
    one, two = pair
    tokens = []
    for _ in range(5):
        for each in (one, two):
            tokens.append(await each.acquire())
            assert await each.release()
            assert not each.is_held
    assert None not in tokens
    assert len(set(tokens)) == 10
    assert tokens == sorted(tokens, key=lambda token: token or 0)


async def test_only_the_token_of_the_term_that_goes_on_is_current(pair: tuple[Lease, Lease]) -> None:
    one, two = pair
    first = await one.acquire()
    assert first is not None
    assert await one.is_current(first)
    assert not await one.is_current(first - 1)
    assert not await two.is_current(first)
    await one.release()
    assert not await one.is_current(first)


async def test_the_token_rises_even_when_valkey_has_lost_its_data(
    pair: tuple[Lease, Lease], any_client: Client
) -> None:
    one, two = pair
    first = await one.acquire()
    await any_client.flushall()
    await asyncio.sleep(0.002)
    second = await two.acquire()
    assert first is not None
    assert second is not None
    assert second > first


async def test_leases_of_different_names_do_not_meet(any_client: Client, keys: Keys) -> None:
    assert await Lease(any_client, keys.lease("reconciler"), "one", 400).acquire()
    assert await Lease(any_client, keys.lease("sync"), "two", 400).acquire()


async def test_a_holder_gives_up_by_its_own_clock_before_the_lease_has_ended(client: Redis, keys: Keys) -> None:
    clock = Skewed()
    lease = Lease(client, keys.lease("r"), "one", 10_000, clock=clock)
    token = await lease.acquire()
    assert token is not None
    clock.ahead_s = 10 * SAFE_SHARE - 0.5
    assert lease.is_held
    clock.ahead_s = 10 * SAFE_SHARE
    assert not lease.is_held
    assert await lease.is_current(token)  # there is time left for the work to end in


async def test_a_failure_is_counted_and_raised(keys: Keys) -> None:
    async with Redis(port=1, socket_connect_timeout=0.5) as nowhere:
        lease = Lease(nowhere, keys.lease("r"), "one", 400)
        with pytest.raises(CLIENT_ERRORS):
            await lease.acquire()
    assert lease.state.failures == 1


# leading


class Work:
    """Records what it is told to do and is being done."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.running = 0
        self.most_running = 0
        self.started = asyncio.Event()

    async def __call__(self, token: int) -> None:
        self.tokens.append(token)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        self.started.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.running -= 1


@asynccontextmanager
async def leading(lease: Lease, work: Work) -> AsyncIterator[tuple[asyncio.Task[None], asyncio.Event]]:
    stop = asyncio.Event()
    task = asyncio.create_task(lead(lease, work, stop))
    try:
        yield task, stop
    finally:
        stop.set()
        await asyncio.wait_for(task, TIMEOUT_S)


async def test_work_runs_with_the_token_until_it_is_stopped(client: Redis, keys: Keys) -> None:
    lease, work = Lease(client, keys.lease("r"), "one", TTL_MS), Work()
    async with leading(lease, work) as (task, stop):
        await asyncio.wait_for(work.started.wait(), TIMEOUT_S)
        await asyncio.sleep(2 * TTL_S)
        assert (work.tokens, work.running) == ([lease.state.token], 1)
        stop.set()
        await asyncio.wait_for(task, TIMEOUT_S)
    assert (work.running, lease.is_held) == (0, False)
    assert await Lease(client, keys.lease("r"), "two", TTL_MS).acquire()


async def test_three_take_turns_and_never_work_at_once(client: Redis, keys: Keys) -> None:
    work = Work()
    leases = [Lease(client, keys.lease("r"), name, 10_000) for name in ("one", "two", "three")]
    async with AsyncExitStack() as stack:
        stops = [(await stack.enter_async_context(leading(lease, work)))[1] for lease in leases]
        for turn in (1, 2, 3):
            started_s = time.monotonic()
            await asyncio.wait_for(work.started.wait(), TIMEOUT_S)
            assert time.monotonic() - started_s < POLL_S + 4  # not after the ttl
            assert len(work.tokens) == turn
            work.started.clear()
            (leader,) = (number for number, lease in enumerate(leases) if lease.is_held)
            stops[leader].set()
    assert work.tokens == sorted(set(work.tokens))
    assert (len(work.tokens), work.most_running) == (3, 1)


async def test_work_that_returns_ends_the_leading_and_frees_the_lease(client: Redis, keys: Keys) -> None:
    async def once(token: int) -> None:
        assert token > 0

    await asyncio.wait_for(lead(Lease(client, keys.lease("r"), "one", TTL_MS), once, asyncio.Event()), TIMEOUT_S)
    assert await Lease(client, keys.lease("r"), "two", TTL_MS).acquire()


async def test_what_the_work_raises_is_raised_and_the_lease_is_freed(client: Redis, keys: Keys) -> None:
    async def broken(_: int) -> None:
        raise RuntimeError("a defect")

    with pytest.raises(RuntimeError, match="a defect"):
        await asyncio.wait_for(lead(Lease(client, keys.lease("r"), "one", TTL_MS), broken, asyncio.Event()), TIMEOUT_S)
    assert await Lease(client, keys.lease("r"), "two", TTL_MS).acquire()


async def test_cancelling_the_leading_cancels_the_work_and_frees_the_lease(client: Redis, keys: Keys) -> None:
    lease, work = Lease(client, keys.lease("r"), "one", TTL_MS), Work()
    task = asyncio.create_task(lead(lease, work, asyncio.Event()))
    await asyncio.wait_for(work.started.wait(), TIMEOUT_S)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await asyncio.wait_for(task, TIMEOUT_S)
    assert (task.cancelled(), work.running) == (True, 0)
    assert await Lease(client, keys.lease("r"), "two", TTL_MS).acquire()
    assert len(asyncio.all_tasks()) == 1


async def test_work_that_is_slow_to_end_keeps_the_next_term_waiting(
    client: Redis, keys: Keys, valkey: blocking.Redis
) -> None:
    running = most = 0
    terms = 0

    async def stubborn(_: int) -> None:
        nonlocal running, most, terms
        running, terms = running + 1, terms + 1
        most = max(most, running)
        deadline_s = time.monotonic() + 0.7
        if terms > 1:
            running -= 1
            return
        while time.monotonic() < deadline_s:  # swallows every cancellation until then
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(0.05)
        running -= 1

    async def rob() -> None:
        await asyncio.sleep(0.2)
        valkey.hset(keys.lease("r"), mapping={"holder": "robber", "until_us": 0})

    await asyncio.gather(lead(Lease(client, keys.lease("r"), "one", 300), stubborn, asyncio.Event()), rob())
    assert (terms, most) == (2, 1)


async def test_the_work_ends_before_the_lease_does_when_valkey_is_out_of_reach(
    client: Redis, keys: Keys, valkey: blocking.Redis
) -> None:
    where = valkey.connection_pool.connection_kwargs
    async with (
        FaultProxy(where["host"], where["port"]) as proxy,
        Redis(port=proxy.listening_port, socket_timeout=30) as through,
    ):
        lease, work = Lease(through, keys.lease("r"), "one", TTL_MS), Work()
        async with leading(lease, work):
            await asyncio.wait_for(work.started.wait(), TIMEOUT_S)
            proxy.stall()  # nothing is refused, nothing is answered
            while work.running:
                await asyncio.sleep(0.005)
            held_until_us = float(await client.hget(keys.lease("r"), "until_us") or 0)
            seconds, micros = await client.time()
            assert seconds * 1_000_000 + micros < held_until_us

            other = Lease(client, keys.lease("r"), "two", TTL_MS)
            while await other.acquire() is None:
                await asyncio.sleep(0.01)
            await other.release()

            proxy.flow()
            work.started.clear()
            await asyncio.wait_for(work.started.wait(), TIMEOUT_S)
            assert work.most_running == 1
            assert work.tokens == sorted(set(work.tokens))


async def test_an_answer_that_comes_after_a_later_one_changes_nothing(
    client: Redis, keys: Keys, valkey: blocking.Redis
) -> None:
    where = valkey.connection_pool.connection_kwargs
    async with FaultProxy(where["host"], where["port"]) as proxy, Redis(port=proxy.listening_port) as through:
        lease = Lease(through, keys.lease("r"), "one", 60_000)
        token = await lease.acquire()
        proxy.stall()
        renewing, acquiring = asyncio.create_task(lease.renew()), asyncio.create_task(lease.acquire())
        await asyncio.sleep(0.05)
        await Lease(client, keys.lease("r"), "one", 60_000).acquire()
        await client.hset(keys.lease("r"), "holder", "robber")
        lease._ask()  # what a further question does first
        proxy.flow()
        assert (await renewing, await acquiring) == (False, None)
        assert lease.state.token == token


async def test_a_short_failure_of_valkey_costs_no_term(keys: Keys, valkey: blocking.Redis) -> None:
    where = valkey.connection_pool.connection_kwargs
    async with FaultProxy(where["host"], where["port"]) as proxy, Redis(port=proxy.listening_port) as through:
        lease, work = Lease(through, keys.lease("r"), "one", 1500), Work()
        async with leading(lease, work):
            await asyncio.wait_for(work.started.wait(), TIMEOUT_S)
            for _ in range(4):
                await asyncio.sleep(0.5)
                proxy.cut()
            assert len(work.tokens) == 1


# processes


class Contender:
    def __init__(self, process: Process, name: str) -> None:
        self.process = process
        self.name = name

    async def says(self, words: str) -> str:
        """The next line, which has to begin so."""
        assert self.process.stdout is not None
        line = (await asyncio.wait_for(self.process.stdout.readline(), TIMEOUT_S)).decode().strip()
        assert line.startswith(words), line
        return line

    async def leads(self) -> int:
        return int((await self.says("lead")).split()[1])


@pytest.fixture
async def two(
    valkey: blocking.Redis, request: pytest.FixtureRequest
) -> AsyncIterator[tuple[Contender, Contender, int]]:
    """A leader, one that waits, and the leader's token. The parameter is the ttl in milliseconds."""
    ttl_ms = getattr(request, "param", TTL_MS)
    where = valkey.connection_pool.connection_kwargs
    found = []
    try:
        for name in ("one", "two"):
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "tests.integration.billing.lease_holder",
                where["host"], str(where["port"]), name, str(ttl_ms), cwd=ROOT, stdout=PIPE, stderr=DEVNULL,
            )  # fmt: skip
            found.append(Contender(process, name))
            if name == "one":
                token = await found[0].leads()
        yield found[0], found[1], token
    finally:
        for each in found:
            with suppress(ProcessLookupError):
                each.process.send_signal(signal.SIGCONT)
                each.process.kill()
            await each.process.wait()


Two = tuple[Contender, Contender, int]


async def test_another_leads_within_ttl_and_a_second_after_a_kill(two: Two) -> None:
    one, other, token = two
    await asyncio.sleep(0.5)
    one.process.kill()
    killed_at_s = time.monotonic()
    assert await other.leads() > token
    assert time.monotonic() - killed_at_s < TTL_S + 1


@pytest.mark.parametrize("two", [10_000], indirect=True)
async def test_another_leads_at_once_after_a_graceful_end(two: Two) -> None:
    one, other, token = two
    await asyncio.sleep(0.7)
    one.process.terminate()
    ended_at_s = time.monotonic()
    assert await other.leads() > token
    assert time.monotonic() - ended_at_s < POLL_S + 4  # not after the ttl
    await one.says("lost")
    await one.says("end")
    assert await asyncio.wait_for(one.process.wait(), TIMEOUT_S) == 0


async def test_a_leader_that_stood_still_sees_that_it_is_none_any_more(two: Two, valkey: blocking.Redis) -> None:
    one, other, first = two
    one.process.send_signal(signal.SIGSTOP)
    second = await other.leads()
    assert second > first
    before = valkey.llen("work")
    one.process.send_signal(signal.SIGCONT)
    await one.says("lost")
    ended = valkey.llen("work")
    await asyncio.sleep(2 * TTL_S)

    rows = [row.decode().split() for row in cast("list[bytes]", valkey.lrange("work", 0, -1))]
    late = [int(token) for name, token in rows[before:ended] if name == "one"]
    assert all(token == first < second for token in late), "what a zombie still writes can be told by its token"
    after = [name for name, _ in rows[ended:]]
    assert after.count("one") <= 1, "but for a command under way, it ends once it has seen that it leads no more"
    assert rows[-1] == ["two", str(second)]

    other.process.terminate()
    assert await one.leads() > second
