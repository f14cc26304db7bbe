"""One round over many accounts.

For each page of accounts: read what is remembered, send what was frozen and is not known to have arrived, ask OpenMeter
what was used, freeze what is owed, send it, and remember that it has arrived. A round may end anywhere: what is frozen
is sent again as it is by the next one, what is not frozen was never sent.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Final

from sidecar.billing.lago.errors import LagoError
from sidecar.billing.settings import SyncSettings
from sidecar.billing.usage_sync.account_work import Work, unsent
from sidecar.billing.usage_sync.billable_metrics import MetricRefused, field_of
from sidecar.billing.usage_sync.concurrency import all_of, pages
from sidecar.billing.usage_sync.delivery import Courier, Lago, Outcome
from sidecar.billing.usage_sync.delivery_outcomes import absorb
from sidecar.billing.usage_sync.frozen_events import Outgoing
from sidecar.billing.usage_sync.metered_usage import Need, Query, UsageReader
from sidecar.billing.usage_sync.period_links import SyncAccount
from sidecar.billing.usage_sync.planning import Moment
from sidecar.billing.usage_sync.sync_report import SyncReport, SyncRow, Tally
from sidecar.billing.usage_sync.sync_store import Change, Fenced, Remembered, Store, SyncStateError
from sidecar.metering.openmeter.meter_query import QueryError
from sidecar.valkey.topology import CLIENT_ERRORS

PAGE_ACCOUNTS: Final = 500
VALKEY_CALLS_MAX: Final = 32
LOOK_UPS_MAX: Final = 4


class _Stopped(Exception):
    """The round cannot go on. The message says why."""


class Round:
    """``run`` once. ``token`` is the leader's."""

    def __init__(
        self, store: Store, lago: Lago, query: Query, settings: SyncSettings, *, token: int, moment: Moment
    ) -> None:
        self._store = store
        self._lago = lago
        self._query = query
        self._settings = settings
        self._token = token
        self._moment = moment
        self._tally = Tally()
        self._courier = Courier(lago, settings.batch_events_max)
        self._readers: dict[str, UsageReader] = {}
        self._fields: dict[str, str] = {}

    def __repr__(self) -> str:
        return f"Round({self._moment}, token {self._token}, {self._tally.counts.accounts} accounts)"

    async def run(self, accounts: AsyncIterator[SyncAccount] | Iterable[SyncAccount]) -> SyncReport:
        """Raises ``Fenced`` when another leader has taken over."""
        try:
            async for page in pages(accounts, PAGE_ACCOUNTS):
                await self._run_page(page)
        except _Stopped as stopped:
            self._tally.stopped = str(stopped)
        return self._tally.report()

    async def _run_page(self, accounts: Sequence[SyncAccount]) -> None:
        self._tally.counts.accounts += len(accounts)
        works = await self._read(accounts)
        try:
            await self._learn_metrics(works)
            await self._send_again(works)
            await self._plan(works)
            await self._freeze(works)
            await self._send([(work, event) for work in works if not work.has_failed for event in work.fresh])
        finally:
            for work in works:
                work.standing(self._tally.counts)

    async def _read(self, accounts: Sequence[SyncAccount]) -> list[Work]:
        async def read(account: SyncAccount) -> Work:
            work = Work(account, Remembered())
            try:
                work.remembered = await self._store.read(account.id)
            except (SyncStateError, *CLIENT_ERRORS) as error:
                work.fail(_reason(error), self._tally)
            if work.remembered.token > self._token:
                raise Fenced(f"account {account.id} was synchronised by a leader later than {self._token}")
            return work

        works = await all_of(read, accounts, VALKEY_CALLS_MAX)
        return [work for work in works if not work.has_failed]

    async def _learn_metrics(self, works: Sequence[Work]) -> None:
        """Which property each metric sums; a metric that cannot be pushed to is refused for the whole round."""
        wanted = {metric for work in works for _, metric in work.account.claims()}
        wanted |= {outgoing.metric for _, outgoing in unsent(works)}
        for code in sorted(wanted - self._fields.keys() - self._tally.refused.keys()):
            try:
                self._fields[code] = field_of(code, await self._lago.metric(code))
            except MetricRefused as refused:
                self._tally.refused[code] = str(refused)
            except LagoError as error:
                raise _Stopped(str(error)) from error

    async def _send_again(self, works: Sequence[Work]) -> None:
        """What an earlier round has frozen, before anything else."""
        known = [(work, each) for work, each in unsent(works) if self._can_be_sent(work, each)]
        await self._look_up([(work, each) for work, each in known if work.is_missed(each)])
        await self._send([(work, each) for work, each in known if work.is_due(each, self._moment, self._settings)])

    def _can_be_sent(self, work: Work, outgoing: Outgoing) -> bool:
        if outgoing.metric in self._tally.refused:
            return False
        now = self._fields[outgoing.metric]
        if outgoing.field_name == now:
            return True
        detail = (
            f"{outgoing.transaction_id} was frozen with the property {outgoing.field_name!r}; the metric sums {now!r}"
            " now and would count nothing. It waits until the metric sums the former again"
        )
        row = SyncRow(
            work.account.id, outgoing.period_start_ms, outgoing.metric, "error", outgoing.units, 1, detail=detail
        )
        self._tally.add(row)
        return False

    async def _look_up(self, missed: Sequence[tuple[Work, Outgoing]]) -> None:
        """Events whose invoice is final: either Lago has had them in time, or they are late usage."""

        async def look_up(outgoing: Outgoing) -> Outcome:
            return await self._courier.look_up(outgoing) or Outcome("void")

        try:
            found = await all_of(look_up, [each for _, each in missed], LOOK_UPS_MAX)
        except LagoError as error:
            raise _Stopped(str(error)) from error
        outcomes = {each.transaction_id: outcome for (_, each), outcome in zip(missed, found, strict=True)}
        await self._remember(_works_of(missed), outcomes)

    async def _plan(self, works: Sequence[Work]) -> None:
        for work in works:
            if not work.has_failed:
                work.claim(self._tally.refused, self._moment, self._settings, self._tally)
        units = await self._count([work for work in works if not work.has_failed])
        for work in works:
            if not work.has_failed:
                work.claims = [claim for claim in work.claims if claim.metric not in self._tally.refused]
                work.plan(units, self._fields, self._moment, self._settings, self._tally)

    async def _count(self, works: Sequence[Work]) -> Mapping[Need, int]:
        """What OpenMeter says; a metric that it cannot count is refused."""
        needs: dict[str, list[Need]] = {}
        for work in works:
            for claim in work.claims:
                needs.setdefault(claim.metric, []).extend(claim.needs(work.account.id))
        units: dict[Need, int] = {}
        for metric, of_metric in needs.items():
            reader = self._readers.setdefault(metric, UsageReader(self._query))
            try:
                await reader.load(of_metric)
            except QueryError as error:
                if error.transient:
                    raise _Stopped(str(error)) from error
                self._tally.refused[metric] = str(error)
                continue
            units.update((need, reader.units(need)) for need in of_metric)
        return units

    async def _freeze(self, works: Sequence[Work]) -> None:
        async def freeze(work: Work) -> None:
            await self._apply(work, work.change)

        await all_of(freeze, [work for work in works if not work.has_failed], VALKEY_CALLS_MAX)

    async def _send(self, events: Sequence[tuple[Work, Outgoing]]) -> None:
        if not events:
            return
        deliveries = await self._courier.deliver([outgoing for _, outgoing in events])
        await self._remember(_works_of(events), deliveries.outcomes)
        if deliveries.error is not None:
            raise _Stopped(str(deliveries.error)) from deliveries.error

    async def _remember(self, works: Sequence[Work], outcomes: Mapping[str, Outcome]) -> None:
        async def remember(work: Work) -> None:
            await self._apply(work, absorb(work.remembered, outcomes))

        for work in works:
            work.note(outcomes, self._tally)
        await all_of(remember, works, VALKEY_CALLS_MAX)

    async def _apply(self, work: Work, change: Change) -> None:
        if change.is_empty:
            return
        try:
            work.remembered = await self._store.apply(work.account.id, work.remembered, change, self._token)
        except (SyncStateError, *CLIENT_ERRORS) as error:
            # Whether it was written is not known; nothing that depends on it is done.
            work.fail(_reason(error), self._tally)


def _works_of(events: Iterable[tuple[Work, Outgoing]]) -> list[Work]:
    return list({id(work): work for work, _ in events}.values())


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, SyncStateError) else f"the ledger cannot be reached: {error}"
