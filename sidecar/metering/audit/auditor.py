"""The audit: counts, compares, sends again what is missing, and saves what agrees."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from random import Random
from typing import Final

from sidecar.basics.cancellation import notice_cancellation
from sidecar.basics.clock import Clock, SystemClock
from sidecar.basics.fault_reasons import reason_of
from sidecar.basics.logger import get_logger
from sidecar.ledger.hours import Hours
from sidecar.ledger.keys import Keys
from sidecar.metering.audit.audit_report import AuditReport, HourReport, HourState, hour_state, hour_text
from sidecar.metering.audit.audit_state import save_agreed, save_resend_history
from sidecar.metering.audit.comparison import (
    AuditRow,
    AuditSettings,
    Cell,
    ResendHistory,
    RowState,
    audit_row,
    complete_hours,
    missing_units,
)
from sidecar.metering.audit.hour_compaction import HourCompaction
from sidecar.metering.audit.hourly_counts import HourlyCounts, Progress
from sidecar.metering.audit.metrics import AuditMetrics
from sidecar.metering.audit.resend import Resender
from sidecar.metering.audit.streams import Streams, TailUnits
from sidecar.metering.openmeter.meter_query import MeterQuery
from sidecar.metering.outbox.events import EventAttributes
from sidecar.metering.publisher.sender import Sender
from sidecar.metering.settings import MeteringSettings
from sidecar.metering.watermarks import ledger_name
from sidecar.valkey.topology import CLIENT_ERRORS, Client

log = get_logger("sidecar.metering")

LOGGED_ROWS_MAX: Final = 20
DOUBLED: Final = (
    "OpenMeter counts events twice that were sent again, so nothing more is sent again: sink.dedupe.enabled must be on,"
    " and sink.dedupe.config.expiration well above metering.retain_s"
)


class Auditor:
    """Compares a ledger with OpenMeter. ``metrics`` may be read at any time; neither client nor ``query`` is closed.

    Several may be at work at once: they do the same work twice and change nothing by it.
    """

    def __init__(
        self,
        client: Client,
        keys: Keys,
        settings: AuditSettings,
        metering: MeteringSettings,
        query: MeterQuery,
        clock: Clock | None = None,
        *,
        metrics: AuditMetrics | None = None,
        random: Random | None = None,
        compaction: HourCompaction | None = None,
    ) -> None:
        self.metrics = metrics or AuditMetrics()
        self._settings = settings
        self._metering = metering
        self._query = query
        self._clock = clock or SystemClock()
        self._random = random or Random()  # noqa: S311 - spreads waits, keeps no secret
        self._compaction = compaction
        self._client = client
        self._keys = keys
        self._hours = Hours(client, keys)
        self._streams = Streams(client, keys, EventAttributes(metering.source, metering.type))
        self._stop = asyncio.Event()
        self._logged: frozenset[tuple[Cell, RowState]] = frozenset()

    def __repr__(self) -> str:
        return f"Auditor({self._hours!r}, {self.metrics.hours_open} hours open)"

    async def run(self, stop: asyncio.Event) -> None:
        """Audits every ``interval_s``, give or take a tenth, until ``stop``, through every failure. After each, hours
        that no audit needs any more are compacted.

        Raises:
            MeteringError: the settings cannot be used.
        """
        self._stop = stop
        while not stop.is_set():
            try:
                await self.audit(int(self._clock.now_s() * 1000))
            except CLIENT_ERRORS as error:
                self.metrics.failures += 1
                log.warning("audit aborted: valkey does not respond", reason=reason_of(error))
            if self._compaction is not None:
                await self._compaction.compact_if_possible(stop)
            notice_cancellation()
            await self._clock.wait(stop, self._settings.interval_s * self._random.uniform(0.9, 1.1))

    async def audit(self, now_ms: int, progress: Progress | None = None) -> AuditReport:
        """Compare every complete hour of the last ``hours`` that is not known to agree; send again what is missing.

        Raises:
            RedisError, OSError: Valkey cannot be reached. What was sent again stays sent.
            MeteringError: the settings cannot be used.
        """
        ledger = await ledger_name(self._client, self._keys)
        hourly_counts = HourlyCounts(
            self._hours, self._streams, self._query, self._metering.type, ledger, self._keys.partitions
        )
        await hourly_counts.collect(complete_hours(now_ms, self._settings), progress)
        tail = await self._tail(hourly_counts)
        history = {cell: each for hour in hourly_counts.open for cell, each in hour.audit_state.history.items()}
        rows = self._audit_rows(hourly_counts, tail, history, now_ms)
        resent = await self._resend(hourly_counts, tail, rows, history, now_ms)
        report = await self._conclude(hourly_counts, rows, history, now_ms, resent)
        self.metrics.note(report, self._clock.now_s())
        self._log(report)
        return report

    async def _tail(self, hourly_counts: HourlyCounts) -> TailUnits | None:
        """The units that could be sent again; None if nothing is missing, or it is not known what is."""
        hours = frozenset(
            c.hour for each in hourly_counts.open for c, counts in each.counts.items() if missing_units(counts)
        )
        if not hours or not hourly_counts.complete:
            return None
        tail = await self._streams.tail_units(hours, hourly_counts.covered_until_ms or 0)
        if not tail.complete:
            hourly_counts.problems.append("the retained tail is too long to be read completely")
        return tail

    def _audit_rows(
        self, hourly_counts: HourlyCounts, tail: TailUnits | None, history: Mapping[Cell, ResendHistory], now_ms: int
    ) -> list[AuditRow]:
        rows = [
            audit_row(
                cell,
                counts,
                tail.of(cell) if tail else None,
                history.get(cell),
                now_ms,
                self._settle_ms,
                hourly_counts.covered_until_ms,
            )
            for each in hourly_counts.open
            for cell, counts in each.counts.items()
        ]
        return sorted((row for row in rows if row.state is not RowState.AGREED), key=lambda row: row.cell)

    async def _resend(
        self,
        hourly_counts: HourlyCounts,
        tail: TailUnits | None,
        rows: list[AuditRow],
        history: dict[Cell, ResendHistory],
        now_ms: int,
    ) -> int:
        """Sends again what is missing and kept, and notes it in ``rows`` and ``history``. Answers how many events."""
        for row in rows:
            if row.state in (RowState.MISSING, RowState.UNRECOVERABLE):
                history.setdefault(row.cell, ResendHistory(0, now_ms))
        chosen = {row.cell for row in rows if row.state is RowState.MISSING and tail and tail.settled[row.cell]}
        if any(row.state is RowState.SURPLUS and row.cell in history and history[row.cell].attempts for row in rows):
            hourly_counts.problems.append(DOUBLED)
            return 0
        if not chosen or tail is None:
            return 0
        async with Sender(self._metering, self._clock) as sender:
            resender = Resender(sender, self._metering, self._clock, self._random, self._stop)
            await resender.send(self._streams.tail(chosen, hourly_counts.covered_until_ms or 0))
        log.info("usage events sent again", events=resender.sent, refused=resender.refused, cells=len(chosen))
        if resender.failure is not None:
            hourly_counts.problems.append(f"OpenMeter does not take events that are sent again: {resender.failure}")
            return resender.sent
        for number, row in enumerate(rows):
            if row.cell in chosen:
                before, events = history[row.cell], tail.events[row.cell]
                history[row.cell] = ResendHistory(before.attempts + 1, now_ms, before.events + events)
                rows[number] = replace(row, resent=row.resent + events)
        return resender.sent

    async def _conclude(
        self,
        hourly_counts: HourlyCounts,
        rows: Sequence[AuditRow],
        history: Mapping[Cell, ResendHistory],
        now_ms: int,
        resent: int,
    ) -> AuditReport:
        """Remembers what agrees and what was sent again, and sums up."""
        hours = [
            HourReport(hour, HourState.AGREED, total.units, total.units) for hour, total in hourly_counts.agreed.items()
        ]
        for each in hourly_counts.open:
            state = hour_state([row for row in rows if row.hour == each.hour]) if each.answered else HourState.UNKNOWN
            openmeter = each.openmeter_units if each.answered else None
            hours.append(HourReport(each.hour, state, each.total.units, openmeter))
            if state is HourState.AGREED and hourly_counts.complete:
                await save_agreed(self._hours, each.hour, each.total)
            mine = {cell: one for cell, one in history.items() if cell.hour == each.hour}
            if mine != each.audit_state.history:
                await save_resend_history(self._hours, each.hour, mine)
        return AuditReport(
            now_ms,
            tuple(sorted(hours, key=lambda one: one.hour)),
            tuple(rows),
            tuple(dict.fromkeys(hourly_counts.problems)),
            resent,
            hourly_counts.covered_until_ms,
        )

    def _log(self, report: AuditReport) -> None:
        differing = [row for row in report.rows if row.difference]
        fresh = [row for row in differing if (row.cell, row.state) not in self._logged]
        for row in fresh[:LOGGED_ROWS_MAX]:
            tell = log.error if row.state is RowState.UNRECOVERABLE else log.warning
            tell(
                "openmeter and the ledger differ",
                state=row.state.value,
                hour=hour_text(row.hour),
                account=row.account,
                metric=row.metric,
                ledger_units=row.ledger_units,
                openmeter_units=row.openmeter_units,
            )
        if len(fresh) > LOGGED_ROWS_MAX:
            log.warning("openmeter and the ledger differ in more cells", cells=len(fresh) - LOGGED_ROWS_MAX)
        for problem in report.problems:
            log.warning("audit is not complete", reason=problem)
        self._logged = frozenset((row.cell, row.state) for row in differing)

    @property
    def _settle_ms(self) -> int:
        return self._settings.settle_s * 1000
