"""A ledger that charges, an OpenMeter that loses, and the audit between them."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import msgpack
import orjson
import redis

from sidecar.ledger.accounts.state_values import StateValues
from sidecar.ledger.hours import HOUR_MS
from sidecar.ledger.keys import Keys
from sidecar.ledger.ledger_format import new_generation, open_arguments
from sidecar.metering.audit.audit_report import AuditReport
from sidecar.metering.audit.auditor import Auditor
from sidecar.metering.openmeter.meter_query import MeterQuery, UsageRow
from sidecar.metering.settings import MeteringSettings
from sidecar.metering.watermarks import MARGIN_MS, ledger_name, subject_of
from sidecar.valkey.scripts import Function, as_function, composed, script
from sidecar.valkey.topology import Client
from tests.integration.metering.kit import Valkey, event
from tests.support.ledger_driver import account_keys

CLOCK_KEY = "test:clock_us"
SETTLE_S = 300
FAR_MS = 4_102_444_800_000

_TIME_FILE = Path(__file__).parents[3] / "lua" / "lib" / "time.lua"
_MOVABLE_TIME = f"""
local function server_time_us()
  return number(call('GET', '{CLOCK_KEY}'))
end
"""


@dataclass(frozen=True)
class Audit:
    """Settings of an audit."""

    interval_s: int = 900
    settle_s: int = SETTLE_S
    hours: int = 48


@cache
def _batch(movable_clock: bool) -> Function:
    text = composed("batch")
    if movable_clock:
        shipped = _TIME_FILE.read_text()
        assert text.count(shipped) == 1
        text = text.replace(shipped, _MOVABLE_TIME)
    return as_function("batch", text)


def pack(*values: Any) -> bytes:
    """Values one after another, as the scripts take them."""
    return b"".join(msgpack.packb(value, use_bin_type=False) for value in values)


def open_partitions(valkey: Valkey, keys: Keys) -> None:
    for partition in range(keys.partitions):
        names, arguments = open_arguments(keys, partition, new_generation())
        valkey.eval(script("open").text, len(names), *names, *arguments)


def state(
    counters: Sequence[tuple[str, int, int]], *, start_ms: int = 0, end_ms: int = FAR_MS, subscription: str = "s"
) -> bytes:
    """An account's state with one subscription and counters: name, hour, units of that hour."""
    rows = [(1, name, 0, 1, 0, 0, 0, hour, units, 0, units) for name, hour, units in counters]
    return StateValues([1, 0, 1_000_000, 0, 0, 0, 0, 0], [(subscription, start_ms, end_ms)], rows).packed()


@dataclass
class Charges:
    """Charges through the shipped script, at ``now_ms``; None: when Valkey's own clock says."""

    valkey: Valkey
    keys: Keys
    now_ms: int | None = field(default_factory=lambda: int(time.time() * 1000) // HOUR_MS * HOUR_MS)
    seq: int = 0
    charged: dict[tuple[str, str], int] = field(default_factory=dict)
    opened: bool = False

    def charge(self, account: str, *units: int, metric: str = "api_calls") -> None:
        """A late settle of all, in one batch with an event of each."""
        if not self.opened:
            open_partitions(self.valkey, self.keys)
            self.opened = True
        self.seq += 1
        partition = self.keys.partition(account)
        self.valkey.zadd(self.keys.accounts(partition), {account: 0})
        events = b",".join(orjson.dumps(event(account, each, metric=metric)) for each in units)
        head = pack(0, self.seq, f"gw.{partition:02d}", events, 1000, 1, [metric], [])
        names = [self.keys.instance(partition, "gw"), self.keys.clock(partition), self.keys.outbox(partition)]
        if self.now_ms is not None:
            self.valkey.set(CLOCK_KEY, self.now_ms * 1000)
        self._call([*names, *account_keys(self.keys, account)], head, pack(1, 0, 1, 0, 0, sum(units), 0))
        self.charged[account, metric] = self.charged.get((account, metric), 0) + sum(units)

    def _call(self, keys: list[str], *arguments: bytes) -> None:
        function = _batch(self.now_ms is not None)
        try:
            self.valkey.fcall(function.name.decode(), len(keys), *keys, *arguments)
        except redis.exceptions.ResponseError as error:
            if "Function not found" not in str(error):
                raise
            self.valkey.function_load(function.library.decode(), replace=True)
            self.valkey.fcall(function.name.decode(), len(keys), *keys, *arguments)


class MarkedQuery(MeterQuery):
    """Shows the watermarks that a test wants, which no publisher has sent: the time of tests is not that of Valkey."""

    subjects: tuple[str, ...] = ()
    marked_ms: int | None = None

    async def usage(self, metric: str, from_ms: int, to_ms: int, **options: Any) -> tuple[UsageRow, ...]:
        if options.get("of") is None:
            return await super().usage(metric, from_ms, to_ms, **options)
        marked = () if self.marked_ms is None else self.subjects
        return tuple(UsageRow(subject, self.marked_ms or 0, 1) for subject in marked)


@dataclass
class Auditing:
    """``now_ms``: the instant of the next audit, at first one at which all that was charged until now has settled."""

    auditor: Auditor
    query: MarkedQuery
    now_ms: int
    client: Client
    keys: Keys

    async def audit(self, later_s: int = 0, *, covered: bool = True) -> AuditReport:
        """``covered``: watermarks say that all that was accepted by now is visible."""
        self.now_ms += later_s * 1000
        if covered:
            ledger = await ledger_name(self.client, self.keys)
            partitions = range(self.keys.partitions if ledger else 0)
            self.query.subjects = tuple(subject_of(ledger or "", partition) for partition in partitions)
            self.query.marked_ms = self.now_ms + MARGIN_MS
        return await self.auditor.audit(self.now_ms)


@asynccontextmanager
async def auditing(
    client: Client, keys: Keys, how: MeteringSettings, settings: Audit | None = None
) -> AsyncIterator[Auditing]:
    query = MarkedQuery(how)
    async with query:
        settled_ms = (int(time.time() * 1000) // HOUR_MS + 1) * HOUR_MS + SETTLE_S * 1000 + 1
        yield Auditing(Auditor(client, keys, settings or Audit(), how, query), query, settled_ms, client, keys)
