"""Pushes metered usage to Lago in a loop, on the control plane that leads."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Final

from sidecar.basics.fault_reasons import reason_of
from sidecar.basics.logger import get_logger
from sidecar.billing.reconcile.invoice_checks import InvoiceChecks, is_to_check
from sidecar.billing.reconcile.reconcile_state import MalformedReconcileState, ReconcileState
from sidecar.billing.reconcile.reconciler import Reconciler
from sidecar.billing.settings import SyncSettings
from sidecar.billing.usage_sync.comparison import ComparisonRow
from sidecar.billing.usage_sync.concurrency import gather_limited
from sidecar.billing.usage_sync.period_links import PeriodKey, PeriodLink, SyncAccount
from sidecar.billing.usage_sync.sync_report import SyncReport
from sidecar.billing.usage_sync.sync_store import Fenced as SyncFenced
from sidecar.billing.usage_sync.usage_sync import Sync
from sidecar.controlplane.reconcile_loop import notice_cancellation
from sidecar.ledger.accounts.loader import LedgerUnavailable
from sidecar.ledger.store import Store
from sidecar.valkey.topology import CLIENT_ERRORS

log = get_logger("sidecar.billing")

LOOK_S_MAX: Final = 20.0
FLUSH_AFTER_MS: Final = 900_000
"""For so long after its end a period is pushed at every look; Lago makes the invoice ten minutes past the hour."""

PAGE: Final = 200
COMPARISONS_MAX: Final = 4
"""Accounts whose invoices are compared at once: a request to Lago and queries to OpenMeter for each."""


@dataclass(slots=True)
class Schedule:
    """When the periods of accounts end that are not billed yet, to know whose usage must reach Lago now."""

    ends_ms: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def note(self, account: str, saved: ReconcileState) -> None:
        ends = tuple(sorted({link.ledger_end_ms for link in saved.links.values() if not link.is_final}))
        if ends:
            self.ends_ms[account] = ends
        else:
            self.ends_ms.pop(account, None)

    def due(self, now_ms: int, before_ms: int) -> list[str]:
        """Accounts with a period that ends within ``before_ms``, or has ended lately."""
        return [
            account
            for account, ends in self.ends_ms.items()
            if any(end - before_ms <= now_ms <= end + FLUSH_AFTER_MS for end in ends)
        ]


@dataclass(frozen=True, slots=True)
class Overview:
    """``billed``: periods with a final invoice. ``waiting``: those without; nothing is invoiced in their rows."""

    billed: tuple[ComparisonRow, ...]
    waiting: tuple[ComparisonRow, ...]


class SyncLoop:
    """Pushes usage at intervals, and around the end of each period.

    Args:
        reconciler: what it remembers of an account says which periods Lago has not billed.
    """

    def __init__(
        self, settings: SyncSettings, store: Store, reconciler: Reconciler, sync: Sync, checks: InvoiceChecks
    ) -> None:
        self.sync = sync
        self.checks = checks
        self.schedule = Schedule()
        self.last: SyncReport | None = None
        self._settings = settings
        self._store = store
        self._reconciler = reconciler
        self._to_compare: deque[str] = deque()
        self._random = Random()  # noqa: S311 - spreads waits, keeps no secret

    def __repr__(self) -> str:
        return f"SyncLoop({len(self.schedule.ends_ms)} accounts with open periods)"

    async def overview(self, only: str | None) -> Overview:
        """Every period that is saved, beside what ledger, OpenMeter, sync and Lago's invoices have of it."""
        now_ms = await self._store.accounts.now_ms()
        billed: list[ComparisonRow] = []
        waiting: list[ComparisonRow] = []
        async for account, saved in self._reconcile_states(only):
            billed += await self.checks.check(account, saved, now_ms)
            state = (await self._store.accounts.state(account)).rolled_over(now_ms)
            waiting += await self.checks.open_periods(account, saved, state)
        return Overview(*(tuple(sorted(rows, key=lambda row: row.account)) for rows in (billed, waiting)))

    async def run(self, token: int, stop: asyncio.Event) -> None:
        settings = self._settings
        look_s = min(float(settings.interval_s), max(1.0, min(LOOK_S_MAX, settings.final_flush_s / 3)))
        due_s = time.monotonic()
        while not stop.is_set():
            notice_cancellation()
            try:
                if time.monotonic() >= due_s:
                    await self.round(token, is_comparing=False)
                    due_s = time.monotonic() + settings.interval_s * self._random.uniform(0.95, 1.05)
                else:
                    await self.flush_due(token)
                await self._compare_until(time.monotonic() + look_s, stop)
            except SyncFenced:
                log.warning("sync stopped: another control plane leads")
                await _wait(stop, look_s)
            except (LedgerUnavailable, *CLIENT_ERRORS) as error:
                log.warning("sync round aborted", reason=reason_of(error))
                await _wait(stop, look_s)

    async def round(
        self,
        token: int,
        *,
        flush: bool = False,
        only: str | None = None,
        is_comparing: bool = True,
        progress: Callable[[int], None] | None = None,
    ) -> SyncReport:
        """Every account, or ``only`` one: push what is due, then compare what has been invoiced.

        Of an account no more is kept until the end than its name, if there is something to compare. Without
        ``is_comparing`` that is left to ``run``, between its looks at periods that end: comparing the invoices of a
        month may take hours, and usage must not wait for it.

        Raises:
            SyncFenced: another control plane leads by now.
            LedgerUnavailable, RedisError: Valkey cannot be reached.
        """
        to_check: list[str] = []

        async def accounts() -> AsyncIterator[SyncAccount]:
            done = 0
            async for account, saved in self._reconcile_states(only):
                done += 1
                if progress is not None:
                    progress(done)
                if is_to_check(saved):
                    to_check.append(account)
                if saved.links:
                    yield SyncAccount(account, tuple(saved.links.values()), _invoiced(saved))

        now_ms = await self._store.accounts.now_ms()
        report = await self.sync.run_once(accounts(), token, now_ms, flush)
        if only is None:
            self.last = report
        if not is_comparing:
            self._to_compare = deque(to_check)
        else:
            for at in range(0, len(to_check), PAGE):
                await self._compare(to_check[at : at + PAGE], now_ms)
        return report

    async def _compare(self, accounts: Sequence[str], now_ms: int) -> None:
        async def check(found: tuple[str, ReconcileState]) -> None:
            await self.checks.check(*found, now_ms)

        await gather_limited(check, [each async for each in self._saved(accounts)], COMPARISONS_MAX)

    async def _compare_until(self, end_s: float, stop: asyncio.Event) -> None:
        """Compare what the last round has found, until an instant of the monotonic clock; wait if there is not enough
        to do."""
        now_ms = await self._store.accounts.now_ms() if self._to_compare else 0
        while self._to_compare and time.monotonic() < end_s and not stop.is_set():
            notice_cancellation()
            some = [self._to_compare.popleft() for _ in range(min(COMPARISONS_MAX, len(self._to_compare)))]
            await self._compare(some, now_ms)
        await _wait(stop, max(0.0, end_s - time.monotonic()))

    async def flush_due(self, token: int) -> SyncReport | None:
        """Push the usage of accounts whose period ends, or has just ended."""
        now_ms = await self._store.accounts.now_ms()
        due = self.schedule.due(now_ms, self._settings.final_flush_s * 1000)
        if not due:
            return None

        async def accounts() -> AsyncIterator[SyncAccount]:
            for at in range(0, len(due), PAGE):
                async for account, saved in self._saved(due[at : at + PAGE]):
                    yield SyncAccount(account, _near(saved.links.values(), now_ms), _invoiced(saved))

        return await self.sync.run_once(accounts(), token, now_ms)

    async def _reconcile_states(self, only: str | None) -> AsyncIterator[tuple[str, ReconcileState]]:
        pages = self._store.accounts.pages(PAGE) if only is None else _single(only)
        async for page in pages:
            async for account, saved in self._saved(page, is_logged=True):
                self.schedule.note(account, saved)
                yield account, saved

    async def _saved(
        self, accounts: Sequence[str], *, is_logged: bool = False
    ) -> AsyncIterator[tuple[str, ReconcileState]]:
        """Without those that cannot be read; the regular round logs them."""
        for account, saved in zip(accounts, await self._reconciler.reconcile_states(accounts), strict=True):
            if isinstance(saved, MalformedReconcileState):
                if is_logged:
                    log.warning("account not synced", account=account, reason=str(saved))
                continue
            yield account, saved


async def _single(account: str) -> AsyncIterator[tuple[str, ...]]:
    yield (account,)


def _invoiced(saved: ReconcileState) -> Mapping[PeriodKey, Mapping[str, int]]:
    return {key: period.units for key, period in saved.invoiced.items()}


def _near(links: Iterable[PeriodLink], now_ms: int) -> tuple[PeriodLink, ...]:
    """Without the periods that the regular rounds look after."""
    return tuple(link for link in links if link.ledger_end_ms > now_ms - FLUSH_AFTER_MS)


async def _wait(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return
