"""One round over many accounts.

For each page of accounts: read the sync state, send what was frozen and is not known to have arrived, ask OpenMeter
what was used, freeze what is owed, send it, and remember that it has arrived. A round may end anywhere: what is frozen
is sent again as it is by the next one, what is not frozen was never sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from typing import Final, Protocol

from sidecar.basics.fault_reasons import reason_of
from sidecar.billing.lago.errors import LagoError
from sidecar.billing.settings import SyncSettings
from sidecar.billing.usage_sync.account_work import AccountWork, unsent
from sidecar.billing.usage_sync.concurrency import gather_limited, pages
from sidecar.billing.usage_sync.delivery import DeliveryOutcome, EventClient, EventDelivery
from sidecar.billing.usage_sync.delivery_outcomes import apply_outcomes
from sidecar.billing.usage_sync.event_fields import EventFields, billed_as
from sidecar.billing.usage_sync.frozen_events import FrozenEvent
from sidecar.billing.usage_sync.metered_usage import NotShown, Shown, UsageQuery, UsageRange, UsageReader
from sidecar.billing.usage_sync.period_links import SyncAccount
from sidecar.billing.usage_sync.planning import RoundTime
from sidecar.billing.usage_sync.pushed_usage import HOUR_S
from sidecar.billing.usage_sync.sync_report import ReportBuilder, SyncReport, SyncRow
from sidecar.billing.usage_sync.sync_store import Fenced, SyncState, SyncStateChange, SyncStateError, SyncStore
from sidecar.ledger.account_counts import AccountCounts
from sidecar.ledger.hours import MalformedHours
from sidecar.metering.openmeter.meter_query import QueryError
from sidecar.valkey.topology import CLIENT_ERRORS

PAGE_ACCOUNTS: Final = 500
SEGMENTS_AT_ONCE: Final = 20_000
"""Segments after which the accounts of a page are planned and pushed, before the others are looked at. If each has an
event, they take some 100 MB. An hour's round has 75 for each account with three metrics."""
COUNTED_ACCOUNTS: Final = 25
"""Accounts whose counts of the ledger are in memory at once: at a month's end they are those of 744 hours for each."""
VALKEY_CALLS_MAX: Final = 32
LOOK_UPS_MAX: Final = 4
URGENT_S: Final = 900
"""So long after a period's end its invoice may still be to come."""
URGENT_QUERIES_S_MAX: Final = 60.0
"""Time that OpenMeter may take for a page of accounts with such a period: Lago makes the invoice ten minutes after."""
ALL_METRICS: Final = ""


class _Stopped(Exception):
    """The round cannot go on. The message says why."""


class CountsReader(Protocol):
    """``sidecar.ledger.account_counts.AccountCountsReader``."""

    async def read(
        self, accounts: Sequence[str], from_hour: int, to_hour: int
    ) -> Mapping[str, AccountCounts | MalformedHours]: ...


class SyncRound:
    """``run`` once. ``token`` is the leader's."""

    def __init__(
        self,
        store: SyncStore,
        lago: EventClient,
        query: UsageQuery,
        settings: SyncSettings,
        *,
        counts: CountsReader,
        token: int,
        round_time: RoundTime,
    ) -> None:
        self._counts = counts
        self._store = store
        self._lago = lago
        self._query = query
        self._settings = settings
        self._token = token
        self._round_time = round_time
        self._report = ReportBuilder()
        self._delivery = EventDelivery(lago, settings.batch_events_max)
        self._readers: dict[str, UsageReader] = {}
        self._fields = EventFields(lago)
        self._unshown: dict[str, str] = {}

    def __repr__(self) -> str:
        return f"SyncRound({self._round_time}, token {self._token}, {self._report.counts.accounts} accounts)"

    async def run(self, accounts: AsyncIterator[SyncAccount] | Iterable[SyncAccount]) -> SyncReport:
        """Raises ``Fenced`` when another leader has taken over."""
        try:
            async for page in pages(accounts, PAGE_ACCOUNTS):
                await self._run_page(page)
        except _Stopped as stopped:
            self._report.stopped = str(stopped)
        return self._report.report()

    async def _run_page(self, accounts: Sequence[SyncAccount]) -> None:
        self._report.counts.accounts += len(accounts)
        works = await self._read(accounts)
        try:
            await self._learn_metrics(works)
            await self._send_again(works)
            for some in self._groups(works):
                await self._plan(some)
                await self._freeze(some)
                await self._send([(work, event) for work in some if not work.has_failed for event in work.fresh])
                for work in some:
                    work.let_go()
        finally:
            for work in works:
                work.count_remaining(self._report.counts)

    async def _read(self, accounts: Sequence[SyncAccount]) -> list[AccountWork]:
        async def read(account: SyncAccount) -> AccountWork:
            work = AccountWork(account, SyncState())
            try:
                work.state = await self._store.read(account.id)
            except (SyncStateError, *CLIENT_ERRORS) as error:
                work.fail(_reason(error), self._report)
            if work.state.token > self._token:
                raise Fenced(f"account {account.id} was synchronised by a leader later than {self._token}")
            return work

        works = await gather_limited(read, accounts, VALKEY_CALLS_MAX)
        return [work for work in works if not work.has_failed]

    async def _learn_metrics(self, works: Sequence[AccountWork]) -> None:
        """Which property each metric sums; a metric that cannot be pushed to is refused for the whole round."""
        wanted = {link.billed_metric(metric) for work in works for link, metric in work.account.metric_periods()}
        wanted |= {billed_as(frozen_event) for _, frozen_event in unsent(works)}
        try:
            await self._fields.learn(wanted)
        except LagoError as error:
            raise _Stopped(str(error)) from error
        finally:
            self._report.refused |= {
                metric: why for metric, why in self._fields.refused.items() if metric not in self._report.refused
            }

    async def _send_again(self, works: Sequence[AccountWork]) -> None:
        """Send the events that an earlier round has frozen, before anything else."""
        known = [(work, each) for work, each in unsent(works) if self._can_be_sent(work, each)]
        await self._look_up([(work, each) for work, each in known if work.is_missed(each)])
        await self._send([(work, each) for work, each in known if work.is_due(each, self._round_time, self._settings)])

    def _can_be_sent(self, work: AccountWork, frozen_event: FrozenEvent) -> bool:
        now = self._fields.of_event(frozen_event)
        if now is None:
            return False
        if frozen_event.field_name == now:
            return True
        detail = (
            f"{frozen_event.transaction_id} was frozen with the property {frozen_event.field_name!r}; the metric sums"
            f" {now!r} now and would count nothing. It waits until the metric sums the former again"
        )
        row = SyncRow(
            work.account.id,
            frozen_event.period_start_ms,
            frozen_event.metric,
            "error",
            frozen_event.units,
            1,
            detail=detail,
        )
        self._report.add(row)
        return False

    async def _look_up(self, missed: Sequence[tuple[AccountWork, FrozenEvent]]) -> None:
        """Events whose invoice is final: either Lago has had them in time, or they are late usage."""

        async def look_up(frozen_event: FrozenEvent) -> DeliveryOutcome:
            return await self._delivery.look_up(frozen_event) or DeliveryOutcome("void")

        try:
            found = await gather_limited(look_up, [each for _, each in missed], LOOK_UPS_MAX)
        except LagoError as error:
            raise _Stopped(str(error)) from error
        outcomes = {each.transaction_id: outcome for (_, each), outcome in zip(missed, found, strict=True)}
        await self._remember(_works_of(missed), outcomes)

    def _groups(self, works: Sequence[AccountWork]) -> Iterator[list[AccountWork]]:
        """The accounts of a page in groups, with what has to be known of OpenMeter. After an outage, or at the start,
        an account has as many segments as hours that were missed; those of a whole page would take gigabytes."""
        # A metric that OpenMeter cannot count is looked at all the same: the ledger may make up for it.
        group: list[AccountWork] = []
        segments = 0
        for work in works:
            if work.has_failed:
                continue
            work.find_metric_periods(self._fields, self._round_time, self._settings, self._report)
            group.append(work)
            segments += sum(len(each.to_compare) for each in work.metric_periods)
            if segments >= SEGMENTS_AT_ONCE:
                yield group
                group, segments = [], 0
        if group:
            yield group

    async def _plan(self, works: Sequence[AccountWork]) -> None:
        units = await self._shown(works)
        # After OpenMeter: the ledger has charged what OpenMeter shows.
        async for some in pages(works, COUNTED_ACCOUNTS):
            await self._plan_some(some, units)

    async def _plan_some(self, works: Sequence[AccountWork], units: Mapping[UsageRange, Shown]) -> None:
        counts = await self._charged(works)
        for work in works:
            if not work.has_failed:
                work.plan(units, counts[work.account.id], self._fields, self._round_time, self._settings, self._report)

    @property
    def _uses_ledger(self) -> bool:
        return self._settings.source == "ledger"

    async def _shown(self, works: Sequence[AccountWork]) -> Mapping[UsageRange, Shown]:
        """The units that OpenMeter shows, or why it shows none. Where it does not answer the round goes on: what is
        due is billed by the ledger's counts."""
        ranges: dict[str, list[UsageRange]] = {}
        for work in works:
            for metric_period in work.metric_periods:
                ranges.setdefault(metric_period.metric, []).extend(metric_period.ranges(work.account.id))
        units: dict[UsageRange, Shown] = {}
        for metric, of_metric in ranges.items():
            reason = self._unshown.get(metric) or self._unshown.get(ALL_METRICS)
            if reason is None and not self._uses_ledger:
                reader = self._readers.setdefault(metric, UsageReader(self._query))
                try:
                    await self._load(reader, of_metric, works)
                except QueryError as error:
                    reason = self._note_unshown(metric, error)
                else:
                    units.update((usage_range, reader.units(usage_range)) for usage_range in of_metric)
                    continue
            nothing = NotShown(reason or "", is_fault=False)
            units.update((usage_range, nothing) for usage_range in of_metric)
        return units

    async def _load(self, reader: UsageReader, ranges: Sequence[UsageRange], works: Sequence[AccountWork]) -> None:
        """Raises ``QueryError``, also where an invoice would be made before OpenMeter has answered all queries."""
        now_s = self._round_time.now_s
        is_urgent = any(
            not each.link.is_final and each.link.end_s <= now_s < each.link.end_s + URGENT_S
            for work in works
            for each in work.metric_periods
        )
        try:
            async with asyncio.timeout(URGENT_QUERIES_S_MAX if is_urgent else None):
                await reader.load(ranges)
        except TimeoutError:
            raise QueryError("OpenMeter takes too long to answer", transient=True) from None

    def _note_unshown(self, metric: str, error: QueryError) -> str:
        if error.transient:
            # Nobody waits for as many timeouts as there are metrics.
            self._unshown[ALL_METRICS] = self._report.stopped = str(error)
        else:
            self._unshown[metric] = self._report.refused[metric] = str(error)
        return str(error)

    async def _charged(self, works: Sequence[AccountWork]) -> Mapping[str, AccountCounts]:
        """What the ledger has charged. An account whose counts cannot be read is left for the next round."""
        now_hour = self._round_time.now_s // HOUR_S + 1
        starts = [
            metric_period.to_compare[0].segment.start_s
            for work in works
            for metric_period in work.metric_periods
            if metric_period.to_compare
        ]
        from_hour = min(starts) // HOUR_S if starts else now_hour
        try:
            read = await self._counts.read([work.account.id for work in works], from_hour, now_hour)
        except CLIENT_ERRORS as error:
            raise _Stopped(f"the ledger cannot be reached: {reason_of(error)}") from error
        found: dict[str, AccountCounts] = {}
        for work in works:
            counts = read[work.account.id]
            if isinstance(counts, MalformedHours):
                work.fail(str(counts), self._report)
            else:
                found[work.account.id] = counts
        return found

    async def _freeze(self, works: Sequence[AccountWork]) -> None:
        async def freeze(work: AccountWork) -> None:
            await self._apply(work, work.change)

        await gather_limited(freeze, [work for work in works if not work.has_failed], VALKEY_CALLS_MAX)

    async def _send(self, events: Sequence[tuple[AccountWork, FrozenEvent]]) -> None:
        if not events:
            return
        deliveries = await self._delivery.deliver([frozen_event for _, frozen_event in events])
        await self._remember(_works_of(events), deliveries.outcomes)
        if deliveries.error is not None:
            raise _Stopped(str(deliveries.error)) from deliveries.error

    async def _remember(self, works: Sequence[AccountWork], outcomes: Mapping[str, DeliveryOutcome]) -> None:
        async def remember(work: AccountWork) -> None:
            await self._apply(work, apply_outcomes(work.state, outcomes))

        for work in works:
            work.note(outcomes, self._report)
        await gather_limited(remember, works, VALKEY_CALLS_MAX)

    async def _apply(self, work: AccountWork, change: SyncStateChange) -> None:
        if change.is_empty:
            return
        try:
            work.state = await self._store.apply(work.account.id, work.state, change, self._token)
        except (SyncStateError, *CLIENT_ERRORS) as error:
            # Whether it was written is not known; nothing that depends on it is done.
            work.fail(_reason(error), self._report)


def _works_of(events: Iterable[tuple[AccountWork, FrozenEvent]]) -> list[AccountWork]:
    return list({id(work): work for work, _ in events}.values())


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, SyncStateError) else f"the ledger cannot be reached: {reason_of(error)}"
