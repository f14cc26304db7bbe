"""Callers of a real ledger client on a real Valkey, and accounts for them."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any

from redis.asyncio import Redis

from sidecar.ledger.accounts.account_spec import AccountSpec
from sidecar.ledger.accounts.loader import AccountLoader
from sidecar.ledger.accounts.periods import CalendarPeriods
from sidecar.ledger.client.ledger_client import LedgerClient
from sidecar.ledger.client.link_settings import LinkSettings
from sidecar.ledger.client.outcomes import Code, Event, Hold, IdempotencyKey
from sidecar.ledger.keys import Keys, idempotency_digest
from sidecar.ledger.pricing.price_tables import Standard
from sidecar.valkey.endpoints import endpoints
from sidecar.valkey.topology import Topology
from sidecar.valkey.url import Address, Standalone

METRIC = "api_calls"
TIMEOUT_S = 20.0
KEYS = Keys()

#: Holds that wait as long as a test does: what is decided late is still decided.
PATIENT = LinkSettings(hold_budget_s=TIMEOUT_S)


def spec(account: str, calls: int) -> AccountSpec:
    """A prepaid account that can pay for ``calls`` calls of one unit."""
    return AccountSpec(
        id=account, mode="prepaid", currency="GBP", period=CalendarPeriods("month"),
        prices={METRIC: Standard(Decimal("0.01"))}, funds=Decimal(calls) / 100,
    )  # fmt: skip


async def load(client: Any, accounts: dict[str, int], keys: Keys = KEYS) -> None:
    loader = AccountLoader(client, keys)
    for account, calls in accounts.items():
        await loader.load(spec(account, calls))


def event_of(hold: Hold, status: int = 200) -> Event:
    return (hold.account, hold.metric, hold.units, "/accounts", "GET", status, 1.5, None, None)


def at(port: int) -> Standalone:
    return Standalone(Address("127.0.0.1", port))


@asynccontextmanager
async def client_of(
    topology: Topology, how: LinkSettings = PATIENT, *, ready: bool = True, leave: bool = True, **options: Any
) -> AsyncIterator[LedgerClient]:
    """A running client. ``leave`` False ends it as a crash would: it gives nothing back."""
    client = LedgerClient(endpoints(topology), KEYS, how, **{"heartbeat_s": 0.2, **options})
    client.start()
    try:
        if ready:
            assert await client.wait_ready(TIMEOUT_S), client
        yield client
    finally:
        if leave:
            await client.close(TIMEOUT_S)
        else:
            await crash(client)


async def crash(client: LedgerClient) -> None:
    """Stops a client without a word to Valkey."""
    for task in client._tasks:
        task.cancel()
    await asyncio.gather(*client._tasks, return_exceptions=True)
    for link in client._links:
        await link.close()


def key_of(account: str, scope: bytes, body: bytes = b"", **how: Any) -> IdempotencyKey:
    """The idempotency key of a call of this scope and body."""
    return IdempotencyKey(idempotency_digest(account, scope), hashlib.blake2b(body, digest_size=16).digest(), **how)


def ask(
    client: LedgerClient, account: str, units: int = 1, scope: bytes | None = None, **how: Any
) -> asyncio.Future[Hold]:
    """Asks for a hold, under an idempotency key if there is a ``scope``; the future has it, decided."""
    future: asyncio.Future[Hold] = asyncio.get_running_loop().create_future()

    def decided(hold: Hold) -> None:
        assert not future.done(), "a hold was decided twice"
        future.set_result(hold)

    client.hold(account, METRIC, units, decided, None if scope is None else key_of(account, scope, **how))
    return future


async def call(
    client: LedgerClient, account: str, *, scope: bytes | None = None, released: bool = False, unpaid: bool = False,
    **how: Any,
) -> Code:  # fmt: skip
    """One request's life: hold, then settle or release. Answers what the hold became."""
    hold = await ask(client, account, scope=scope, **how)
    if hold.open:
        if released or unpaid:
            client.release(hold, unpaid)
        else:
            client.settle(hold, event_of(hold))
    return Code(hold.code)


async def calls(client: LedgerClient, account: str, count: int) -> list[Code]:
    """``count`` requests one after the other, each settled before the next one asks."""
    return [await call(client, account) for _ in range(count)]


async def until(condition: Callable[[], object], what: object = "") -> None:
    """Waits for what must come to be; a test that waits in vain fails here."""
    try:
        async with asyncio.timeout(TIMEOUT_S):
            while not condition():
                await asyncio.sleep(0.002)
    except TimeoutError:
        raise AssertionError(f"never came to be: {what!r}") from None


@asynccontextmanager
async def valkey_client(port: int, **options: Any) -> AsyncIterator[Redis]:
    client = Redis(port=port, protocol=2, **options)
    try:
        yield client
    finally:
        await client.aclose()
