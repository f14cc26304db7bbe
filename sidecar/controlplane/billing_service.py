"""The billing side of a control plane: webhooks on every replica; reconciler, sync and audit on the one that leads."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final

from aiohttp import web

from sidecar.app.assemble import SetupError
from sidecar.app.configuration import Config
from sidecar.basics.logger import get_logger
from sidecar.billing.lago.client import LagoClient
from sidecar.billing.lago.errors import LagoSetupError
from sidecar.billing.reconcile.invoice_checks import InvoiceChecks
from sidecar.billing.reconcile.metrics import BillingMetrics
from sidecar.billing.reconcile.reconcile_loop import FLUSH, Keeper, notice_cancellation
from sidecar.billing.reconcile.reconcile_state import MalformedMemory, Memory
from sidecar.billing.reconcile.reconciler import CountsUnavailable, Outcome, Reconciler
from sidecar.billing.reconcile.reload_requests import Bells
from sidecar.billing.usage_sync.comparison import ComparisonRow
from sidecar.billing.usage_sync.period_links import PeriodLink, SyncAccount
from sidecar.billing.usage_sync.sync_report import SyncReport
from sidecar.billing.usage_sync.sync_store import Fenced as SyncFenced
from sidecar.billing.usage_sync.usage_sync import Sync
from sidecar.billing.webhooks.receiver import WebhookReceiver
from sidecar.billing.webhooks.signature import WebhookSetupError
from sidecar.ledger.accounts.loader import LedgerUnavailable
from sidecar.ledger.store import Store
from sidecar.metering.audit.auditor import Auditor
from sidecar.metering.openmeter.meter_query import MeterQuery, QueryError
from sidecar.metering.publisher.sender import MeteringError
from sidecar.valkey.lease import Lease, lead
from sidecar.valkey.topology import CLIENT_ERRORS

log = get_logger("sidecar.billing")

LOOK_S_MAX: Final = 20.0
FLUSH_AFTER_MS: Final = 900_000
"""For so long after its end a period is pushed at every look; Lago makes the invoice ten minutes past the hour."""

PAGE: Final = 200
RINGS_SEEN_MAX: Final = 10_000


@dataclass(slots=True)
class Schedule:
    """When the periods of accounts end that are not billed yet, to know whose usage must reach Lago now."""

    ends_ms: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def note(self, account: str, memory: Memory) -> None:
        ends = tuple(sorted({link.ledger_end_ms for link in memory.links.values() if not link.is_final}))
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


class Billing:
    """One control plane's part. ``await run(stop)``; made by :func:`open_billing`.

    ``now_ms`` and ``sleep_until`` are Valkey's clock unless a test has another.
    """

    def __init__(
        self,
        config: Config,
        store: Store,
        lago: LagoClient,
        query: MeterQuery | None,
        *,
        sleep_until: Callable[[int], Awaitable[None]] | None = None,
        on_outcome: Callable[[Outcome], None] | None = None,
        holder: str | None = None,
    ) -> None:
        settings = config.lago
        self.settings = settings
        self.store = store
        self.lago = lago
        self.query = query
        self.metrics = BillingMetrics()
        self.bells = Bells(store.client, store.keys)
        self.receiver = WebhookReceiver(
            settings.webhooks, self.bells, fetch_public_key=lago.public_key, lago_url=settings.url
        )
        self.reconciler = Reconciler(
            lago,
            store.accounts,
            store.client,
            store.keys,
            settings,
            metrics=self.metrics,
            counts=self._counted if query is not None else None,
            sleep_until=sleep_until,
        )
        self.keeper = Keeper(
            self.reconciler,
            lago,
            store.accounts,
            store.client,
            store.keys,
            settings.reconcile,
            on_outcome=self._note,
            flush=self._flush,
        )
        self.sync: Sync | None = None
        self.checks: InvoiceChecks | None = None
        if query is not None and settings.sync.enabled:
            self.sync = Sync(store.client, store.keys, lago, query, settings.sync)
            self.checks = InvoiceChecks(store.client, store.keys, lago, self.sync)
        self._on_outcome = on_outcome
        self.auditor: Auditor | None = None
        if query is not None and settings.audit.enabled:
            self.auditor = Auditor(store.client, store.keys, settings.audit, config.metering, query)
        self.schedule = Schedule()
        self.last_sync: SyncReport | None = None
        name = holder or f"{socket.gethostname()[:64]}-{os.getpid()}-{secrets.token_hex(4)}"
        self.lease = Lease(store.client, store.keys, "billing", name, settings.reconcile.lease_ttl_ms)
        self._random = Random()  # noqa: S311 - spreads waits, keeps no secret

    def __repr__(self) -> str:
        return f"Billing({self.lease!r}, {self.keeper!r})"

    def _note(self, outcome: Outcome) -> None:
        if outcome.books is not None and outcome.result == "loaded":
            self.schedule.note(outcome.account, outcome.books.memory)
        if self._on_outcome is not None:
            self._on_outcome(outcome)

    async def _counted(self, account: str, metrics: tuple[str, ...], from_ms: int, to_ms: int) -> Mapping[str, int]:
        assert self.query is not None
        # Whole seconds, the running one included: what counts too much is only stricter.
        start_ms, end_ms = from_ms // 1000 * 1000, to_ms // 1000 * 1000 + 1000
        counted = {}
        try:
            for metric in metrics:
                rows = await self.query.usage(metric, start_ms, end_ms, subject=account, window=None)
                counted[metric] = sum(row.units for row in rows if row.subject == account)
        except QueryError as error:
            raise CountsUnavailable(str(error)) from None
        return counted

    async def run(self, stop: asyncio.Event) -> None:
        """Leads when nobody else does, until ``stop``."""
        await lead(self.lease, lambda token: self._lead(token, stop), stop)

    async def _lead(self, token: int, stop: asyncio.Event) -> None:
        log.info("leading", holder=self.lease.holder, token=token)
        self.metrics.is_leader = True
        try:
            async with asyncio.TaskGroup() as tasks:
                work = [tasks.create_task(self._keep_syncing(token, stop))] if self.sync is not None else []
                if self.auditor is not None:
                    work.append(tasks.create_task(self.auditor.run(stop)))
                await self.keeper.run(token, stop)
                for task in work:
                    task.cancel()
        finally:
            self.metrics.is_leader = False

    # sync

    async def _flush(self, token: int, account: str | None) -> None:
        if self.sync is not None:
            await self.sync_round(token, flush=True, only=account)

    async def ask_leader_to_flush(self, account: str | None, timeout_s: float) -> bool:
        """Ring, and wait until the leader has pushed."""
        name = FLUSH if account is None else f"{FLUSH}:{account}"
        await self.bells.ring([name])
        end_s = time.monotonic() + timeout_s
        while time.monotonic() < end_s:
            await asyncio.sleep(0.2)
            if all(ring.name != name for ring in await self.bells.waiting(RINGS_SEEN_MAX)):
                return True
        return False

    async def overview(self, only: str | None) -> Overview:
        """Every period that is remembered, beside what ledger, OpenMeter, sync and Lago's invoices have of it."""
        assert self.sync is not None
        assert self.checks is not None
        now_ms = await self.store.accounts.now_ms()
        billed: list[ComparisonRow] = []
        waiting: list[ComparisonRow] = []
        async for account, memory in self._memories(only):
            billed += await self.checks.check(account, memory, now_ms)
            state = (await self.store.accounts.state(account)).rolled_over(now_ms)
            waiting += await self.checks.open_periods(account, memory, state)
        return Overview(tuple(billed), tuple(waiting))

    async def _keep_syncing(self, token: int, stop: asyncio.Event) -> None:
        settings = self.settings.sync
        look_s = min(float(settings.interval_s), max(1.0, min(LOOK_S_MAX, settings.final_flush_s / 3)))
        due_s = time.monotonic()
        while not stop.is_set():
            notice_cancellation()
            try:
                if time.monotonic() >= due_s:
                    await self.sync_round(token)
                    due_s = time.monotonic() + settings.interval_s * self._random.uniform(0.95, 1.05)
                else:
                    await self.flush_round(token)
            except SyncFenced:
                log.warning("sync left to another leader")
            except (LedgerUnavailable, *CLIENT_ERRORS) as error:
                log.warning("sync round broken off", reason=f"{type(error).__name__}: {error}")
            await _wait(stop, look_s)

    async def sync_round(
        self,
        token: int,
        *,
        flush: bool = False,
        only: str | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> tuple[SyncReport, tuple[ComparisonRow, ...]]:
        """Every account, or ``only`` one: push what is due, then compare what has been invoiced.

        Raises:
            SyncFenced: another control plane leads by now.
            LedgerUnavailable, RedisError: Valkey cannot be reached.
        """
        assert self.sync is not None
        assert self.checks is not None
        rows: list[ComparisonRow] = []
        memories: dict[str, Memory] = {}

        async def accounts() -> AsyncIterator[SyncAccount]:
            done = 0
            async for account, memory in self._memories(only):
                done += 1
                if progress is not None:
                    progress(done)
                if memory.settled:
                    memories[account] = memory
                if memory.links:
                    yield SyncAccount(account, tuple(memory.links.values()))

        now_ms = await self.store.accounts.now_ms()
        report = await self.sync.run_once(accounts(), token, now_ms, flush)
        if only is None:
            self.last_sync = report
        for account, memory in memories.items():
            rows += await self.checks.check(account, memory, now_ms)
        return report, tuple(rows)

    async def flush_round(self, token: int) -> SyncReport | None:
        """Those whose period ends, or has just ended."""
        assert self.sync is not None
        now_ms = await self.store.accounts.now_ms()
        due = self.schedule.due(now_ms, self.settings.sync.final_flush_s * 1000)
        if not due:
            return None
        accounts = []
        for account in due:
            links = (await self.reconciler.memory(account)).links
            accounts.append(SyncAccount(account, _near(links.values(), now_ms)))
        return await self.sync.run_once(accounts, token, now_ms)

    async def _memories(self, only: str | None) -> AsyncIterator[tuple[str, Memory]]:
        after = ""
        while page := ((only,) if only is not None else await self.store.accounts.list(after, PAGE)):
            for account in page:
                try:
                    memory = await self.reconciler.memory(account)
                except MalformedMemory as error:
                    log.warning("account not synced", account=account, reason=str(error))
                    continue
                self.schedule.note(account, memory)
                yield account, memory
            if only is not None:
                return
            after = page[-1]

    @property
    def field_bytes_max(self) -> int:
        """How long a header field the webhooks' server has to take."""
        return self.receiver.field_bytes_max

    def status(self) -> dict[str, Any]:
        """Who leads, when everybody was looked at last, what is wrong."""
        lease, sync = self.lease.state, self.sync.metrics if self.sync is not None else None
        return {
            "lago": self.settings.url,
            "leads": lease.held,
            "leader": lease.leader,
            "swept_at": self.metrics.swept_at_s or None,
            "doorbells_waiting": self.metrics.bells_waiting,
            "alerts": dict(self.metrics.alerts_by_kind()),
            "synced_at": sync.finished_at_ms if sync is not None else None,
            "sync_refused": dict(sync.refused) if sync is not None else {},
        }

    async def handle_webhook(self, request: web.Request) -> web.StreamResponse:
        return await self.receiver.handle(request)


def _near(links: Iterable[PeriodLink], now_ms: int) -> tuple[PeriodLink, ...]:
    """Without the periods that the regular rounds look after."""
    return tuple(link for link in links if link.ledger_end_ms > now_ms - FLUSH_AFTER_MS)


@contextlib.asynccontextmanager
async def open_billing(
    config: Config, store: Store, *, sleep_until: Callable[[int], Awaitable[None]] | None = None
) -> AsyncIterator[Billing | None]:
    """The billing side, or None where the configuration names no Lago.

    Raises:
        SetupError: a key or file that the configuration names cannot be used.
    """
    if config.lago.url is None:
        yield None
        return
    try:
        async with contextlib.AsyncExitStack() as stack:
            lago = await stack.enter_async_context(LagoClient(config.lago))
            query = None
            if config.metering.url is not None:
                query = await stack.enter_async_context(MeterQuery(config.metering))
            billing = Billing(config, store, lago, query, sleep_until=sleep_until)
            stack.push_async_callback(billing.receiver.close)
            yield billing
    except LagoSetupError as error:
        raise SetupError(str(error)) from None
    except WebhookSetupError as error:
        raise SetupError(str(error)) from None
    except MeteringError as error:
        raise SetupError(f"metering: {error}") from None


async def _wait(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return
