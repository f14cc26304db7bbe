"""A ledger with two accounts that were used, for tests that break it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

import pytest
import redis

from sidecar.ledger.accounts.account_spec import AccountSpec
from sidecar.ledger.accounts.api_keys import digest_of
from sidecar.ledger.accounts.loader import AccountLoader
from sidecar.ledger.accounts.periods import FixedPeriod
from sidecar.ledger.accounts.state_values import StateValues, unpack_state
from sidecar.ledger.keys import Keys
from sidecar.ledger.pricing.price_tables import Standard
from sidecar.ledger.verification.verify import verify_ledger
from sidecar.ledger.verification.verify_report import Check, Difference, VerifyReport
from sidecar.metering.audit.charged_events import read_charged
from sidecar.valkey.topology import Address, Client, Standalone, connected
from tests.reference.messages import Batch, Group, Single
from tests.support.ledger_driver import CLOCK_KEY, HOME, RealLedger

HOUR_US = 3_600_000_000
DAY_MS = 86_400_000
ACCOUNTS = ("tpp-a", "tpp-b")
METRIC = "api_calls"


def key_of(account: str) -> str:
    return f"key-of-{account}-0123456789"


def period() -> FixedPeriod:
    """One in whose middle is today: in a month that has just begun, the hours before would be of another one."""
    today_ms = time.time_ns() // 1_000_000 // DAY_MS * DAY_MS
    return FixedPeriod(today_ms - 30 * DAY_MS, today_ms + 30 * DAY_MS)


def spec(account: str) -> AccountSpec:
    return AccountSpec(
        id=account, mode="prepaid", currency="GBP", period=period(),
        prices={METRIC: Standard(Decimal("0.01")), "payments": Standard(Decimal("0.1"))}, funds=Decimal(100),
        api_keys=(digest_of(key_of(account)),),
    )  # fmt: skip


@dataclass
class Broken:
    """A ledger, ways to break it, and what a verification then says."""

    sync: redis.Redis
    client: Client
    keys: Keys
    backend: RealLedger
    epochs: dict[str, int] = field(default_factory=dict)
    seqs: dict[str, int] = field(default_factory=dict)

    async def load(self, *accounts: str) -> None:
        for account in accounts:
            await AccountLoader(self.client, self.keys).load(spec(account))

    def send(self, name: str, *parts: Group | Single, now_us: int | None = None) -> None:
        now_us = now_us or time.time_ns() // 1000
        if name not in self.epochs:
            self.epochs[name], self.seqs[name] = self.backend.register(name, now_us)
        self.seqs[name] += 1
        groups = tuple(replace(part, known_version=1) for part in parts if isinstance(part, Group))
        singles = tuple(part for part in parts if isinstance(part, Single))
        self.backend.batch(name, Batch(self.epochs[name], self.seqs[name], groups, singles), now_us)

    def use(self, account: str, now_us: int | None = None) -> None:
        """Seven units settled, under an idempotency key or not, and four that are held."""
        self.send("gw-1", Group.of(account, hold=(5, 4)), now_us=now_us)
        self.send("gw-1", Group.of(account, settle=(5,)), Single.spooled(account, METRIC, 2, "once"), now_us=now_us)

    def values(self, account: str) -> StateValues:
        return unpack_state(self.sync.get(self.keys.state(account)))  # type: ignore[arg-type]

    def change(self, account: str, **changes: Any) -> None:
        """Writes a state with other values."""
        self.sync.set(self.keys.state(account), replace(self.values(account), **changes).packed())

    async def verify(self, *, events: bool = False) -> VerifyReport:
        async def charged(now_ms: int) -> Any:
            return await read_charged(self.client, self.keys, now_ms)

        return await verify_ledger(self.client, self.keys, read_charged=charged if events else None)

    async def one(self, check: Check, *, events: bool = False) -> Difference:
        """The only difference that there is."""
        report = await self.verify(events=events)
        assert [each.check for each in report.differences] == [check], report.differences
        return report.differences[0]


@pytest.fixture
async def ledger(valkey: redis.Redis) -> AsyncIterator[Broken]:
    keys = Keys()
    options = valkey.get_connection_kwargs()
    async with connected(Standalone(Address(options["host"], options["port"]))) as client:
        made = Broken(valkey, client, keys, RealLedger(valkey))
        valkey.set(CLOCK_KEY, time.time_ns() // 1000)
        await made.load(*ACCOUNTS)
        for account in ACCOUNTS:
            made.use(account)
        yield made


def past(hours: int) -> int:
    """An instant in the middle of an hour that is over, in microseconds."""
    return (time.time_ns() // 1000 // HOUR_US - hours) * HOUR_US + HOUR_US // 2


__all__ = ["ACCOUNTS", "HOME", "METRIC", "Broken", "past"]
