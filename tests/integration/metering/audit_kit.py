"""A ledger that charges, an OpenMeter that loses, and the audit between them."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from sidecar.ledger.client.batch import HOLD, SETTLE_LATE, Batch, Group, Single, encode
from sidecar.ledger.client.outcomes import Event
from sidecar.ledger.hours import HOUR_MS
from sidecar.ledger.keys import Keys
from sidecar.metering.audit.audit_report import AuditReport
from sidecar.metering.audit.auditor import Auditor
from sidecar.metering.openmeter.meter_query import MeterQuery
from sidecar.metering.settings import MeteringSettings
from sidecar.valkey.command import bulk
from sidecar.valkey.topology import Client
from tests.integration.metering.kit import Valkey
from tests.support.ledger_driver import CLOCK_KEY, call_batch, text_of

__all__ = ["HOLD", "SETTLE_LATE", "Audit", "Charges", "Group", "Single", "auditing"]

SETTLE_S = 300


@dataclass(frozen=True)
class Audit:
    """Settings of an audit."""

    interval_s: int = 900
    settle_s: int = SETTLE_S
    hours: int = 48


@dataclass
class Charges:
    """Charges through the shipped script, at ``now_ms``; None: when Valkey's own clock says."""

    valkey: Valkey
    keys: Keys
    now_ms: int | None = field(default_factory=lambda: int(time.time() * 1000) // HOUR_MS * HOUR_MS)
    seq: int = 0
    charged: dict[tuple[str, str], int] = field(default_factory=dict)

    def charge(self, account: str, *units: int, metric: str = "api_calls", home_partition: int | None = None) -> None:
        """A late settle of each, in one batch of the account's own partition, or of another."""
        batch = Batch(0)
        for each in units:
            batch.group(account, metric).late += each
            batch.events.append(event_of(account, each, metric))
            self.charged[account, metric] = self.charged.get((account, metric), 0) + each
        self._send(batch, self.keys.partition(account) if home_partition is None else home_partition)

    def _send(self, batch: Batch, home_partition: int) -> None:
        self.seq += 1
        batch.number = self.seq
        more, arguments = encode(
            batch, f"gw.{home_partition:02d}", 1000, {}, lambda account: bulk(self.keys.account(account).encode())
        )
        plain = [key.split(b"\r\n")[1] for key in more]
        names = [self.keys.instance(home_partition, "gw").encode(), self.keys.outbox(home_partition).encode(), *plain]
        if self.now_ms is not None:
            self.valkey.set(CLOCK_KEY, self.now_ms * 1000)
        call_batch(self.valkey, text_of("batch", movable_clock=self.now_ms is not None), names, *arguments)


def event_of(account: str, units: int, metric: str = "api_calls") -> Event:
    event: Event = (account, metric, units, "/accounts", "GET", 200, 12, None, None)
    return event


@dataclass
class Auditing:
    """``now_ms``: the instant of the next audit, at first one at which all that was charged until now has settled."""

    auditor: Auditor
    now_ms: int

    async def audit(self, later_s: int = 0) -> AuditReport:
        self.now_ms += later_s * 1000
        return await self.auditor.audit(self.now_ms)


@asynccontextmanager
async def auditing(
    client: Client, keys: Keys, how: MeteringSettings, settings: Audit | None = None
) -> AsyncIterator[Auditing]:
    async with MeterQuery(how) as query:
        settled_ms = (int(time.time() * 1000) // HOUR_MS + 1) * HOUR_MS + SETTLE_S * 1000 + 1
        yield Auditing(Auditor(client, keys, settings or Audit(), how, query), settled_ms)
