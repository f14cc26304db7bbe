"""Pushes metered usage to Lago: the interface for the control plane."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import replace
from typing import Final

from sidecar.basics.clock import Clock, SystemClock
from sidecar.basics.logger import get_logger
from sidecar.billing.lago.models import Invoice
from sidecar.billing.settings import SyncSettings
from sidecar.billing.usage_sync.comparison import ComparisonRow, LedgerUsage, SyncedUnits, compare
from sidecar.billing.usage_sync.delivery import EventClient
from sidecar.billing.usage_sync.metered_usage import UsageQuery
from sidecar.billing.usage_sync.period_links import PeriodLink, SyncAccount
from sidecar.billing.usage_sync.planning import RoundTime
from sidecar.billing.usage_sync.sync_report import SyncMetrics, SyncReport
from sidecar.billing.usage_sync.sync_round import CountsReader, SyncRound
from sidecar.billing.usage_sync.sync_store import SyncState, ValkeySyncStore
from sidecar.ledger.account_counts import AccountCountsReader
from sidecar.ledger.keys import Keys
from sidecar.metering.openmeter.meter_query import QueryError
from sidecar.valkey.topology import Client

log = get_logger("sidecar.billing.usage_sync")

RESCAN_EVERY_S: Final = 900
"""Late usage is looked for no more often than this, however short the interval between two rounds."""

LOGGED_ROWS_MAX: Final = 20
STANDING: Final = {
    "excess_units": "more units were pushed than the ledger has charged",
    "surplus_units": "openmeter shows more units than the ledger has charged, they are not billed",
    "held": "usage is held back: openmeter's answer cannot be",
}


class Sync:
    """Brings usage from OpenMeter to Lago. One round at a time; ``metrics`` may be read whenever wanted."""

    def __init__(
        self,
        client: Client,
        keys: Keys,
        lago: EventClient,
        query: UsageQuery,
        settings: SyncSettings,
        *,
        clock: Clock | None = None,
        counts: CountsReader | None = None,
    ) -> None:
        """``counts``: what the ledger has charged; None: the ledger of ``client``."""
        self._store = ValkeySyncStore(client, keys)
        self._counts = counts or AccountCountsReader(client, keys)
        self._lago = lago
        self._query = query
        self._settings = settings
        self._clock = clock or SystemClock()
        self._lock = asyncio.Lock()
        self._rescan_due_s: int | None = None
        self.metrics = SyncMetrics()

    def __repr__(self) -> str:
        return f"Sync({self._store}, {self.metrics.rounds} rounds)"

    async def run_once(
        self,
        accounts: AsyncIterator[SyncAccount] | Iterable[SyncAccount],
        token: int,
        now_ms: int,
        flush: bool = False,
    ) -> SyncReport:
        """One round over these accounts. Trouble is in the report; what was left undone is done by the next round.

        ``token``: of the leader's lease. ``flush``: push every open period up to this second, try again what was set
        aside, and compare each open period as a whole.

        Raises:
            Fenced: another leader has taken over.
        """
        async with self._lock:
            began_s = self._clock.monotonic_s()
            now_s = now_ms // 1000
            rescan = flush or self._rescan_due_s is None or now_s >= self._rescan_due_s
            round_time = RoundTime(now_s, flush=flush, rescan=rescan)
            one = SyncRound(
                self._store, self._lago, self._query, self._settings,
                counts=self._counts, token=token, round_time=round_time,
            )  # fmt: skip
            report = await one.run(accounts)
            if rescan and report.stopped is None:
                self._rescan_due_s = now_s + RESCAN_EVERY_S
            _log(report, self.metrics)
            self.metrics.note(report, now_ms, self._clock.monotonic_s() - began_s)
            return report

    async def compare(
        self,
        account: str,
        link: PeriodLink,
        ledger: Sequence[LedgerUsage],
        invoice: Invoice,
        *,
        also: Sequence[PeriodLink] = (),
    ) -> tuple[ComparisonRow, ...]:
        """The ledger's units beside OpenMeter's, those pushed, and those invoiced.

        ``ledger``: of the metrics that this subscription charges. ``also``: further periods of the ledger within the
        same billing period; ``ledger`` is the sum then. ``invoice``: with its fees.

        Raises:
            ValueError: the links do not belong together, or the invoice has no fees.
            SyncStateError: the sync state of the account cannot be read.
            QueryError: OpenMeter does not answer now.
        """
        links = (link, *also)
        state = await self._store.read(account)
        sums: dict[str, SyncedUnits] = {}
        for each in links:
            for metric in each.metrics:
                counted = await self._counted(account, each, metric)
                sums[metric] = _plus(sums.get(metric, SyncedUnits()), counted, state, each, metric)
        return compare(account, links, ledger, sums, invoice)

    async def _counted(self, account: str, link: PeriodLink, metric: str) -> int | None:
        """OpenMeter's units of a period; None if what it says cannot be, or it is not the source and cannot say. An
        invoice is compared with the ledger all the same. Raises QueryError: it may say later."""
        try:
            rows = await self._query.usage(
                metric, link.ledger_start_ms, link.ledger_end_ms, subject=account, window=None
            )
        except QueryError as error:
            if error.transient and self._settings.source == "openmeter":
                raise
            return None
        mine = [row for row in rows if row.subject == account]
        return None if any(row.fault for row in mine) else sum(row.units for row in mine)


def _plus(sums: SyncedUnits, counted: int | None, state: SyncState, link: PeriodLink, metric: str) -> SyncedUnits:
    total = None if sums.openmeter is None or counted is None else sums.openmeter + counted
    sums = replace(sums, openmeter=total)
    pushed_usage = state.pushed_usages.get((link.start_s, metric))
    if pushed_usage is None:
        return sums
    # Pushed usage counts events from the moment at which they are frozen.
    open_units = sum(
        each.units
        for each in state.frozen_events.values()
        if each.metric == metric and each.period_start_ms == link.ledger_start_ms and not each.is_carried
    )
    return replace(
        sums,
        pushed=sums.pushed + pushed_usage.pushed - open_units,
        carried_in=sums.carried_in + pushed_usage.carried_in,
        carried_out=sums.carried_out + pushed_usage.carried_out,
        late=sums.late + pushed_usage.late,
    )


def _log(report: SyncReport, before: SyncMetrics) -> None:
    """Log what is new. A period that is about to end is looked at every second, and the metrics show the rest."""
    counts = report.counts
    if counts.events:
        log.info("usage pushed to lago", events=counts.events, units=counts.units, deltas=counts.deltas)
    if report.stopped is not None:
        log.warning("sync stopped early", reason=report.stopped)
    for metric, reason in report.refused.items():
        if before.refused.get(metric) != reason:
            log.warning("metric not pushed", metric=metric, reason=reason)
    if report.stopped is None:
        for name, what in STANDING.items():
            now = getattr(counts, name)
            if now != getattr(before.last, name):
                log.warning(what, **{"metrics" if name == "held" else "units": now})
    troubles = [row for row in report.rows if row.is_new and row.kind not in ("pushed", "carried", "duplicate")]
    for row in troubles[:LOGGED_ROWS_MAX]:
        log.warning(
            f"sync {row.kind}",
            account=row.account,
            period_start_ms=row.period_start_ms,
            metric=row.metric,
            units=row.units,
            detail=row.detail,
        )
    if len(troubles) > LOGGED_ROWS_MAX:
        log.warning("the report has more rows", rows=len(troubles) - LOGGED_ROWS_MAX + report.rows_left_out)
