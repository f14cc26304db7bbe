"""The work of a control plane: webhooks on every replica; reconciler, sync and audit on the one that leads."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

from aiohttp import web

from sidecar.basics.errors import SetupError
from sidecar.basics.logger import get_logger
from sidecar.billing.lago.client import LagoClient
from sidecar.billing.lago.errors import LagoSetupError
from sidecar.billing.reconcile.invoice_checks import InvoiceChecks
from sidecar.billing.reconcile.metrics import BillingMetrics
from sidecar.billing.reconcile.reconciler import CountsUnavailable, Outcome, Reconciler
from sidecar.billing.reconcile.reload_requests import ReloadRequests
from sidecar.billing.settings import LagoSettings
from sidecar.billing.usage_sync.usage_sync import Sync
from sidecar.billing.webhooks.receiver import WebhookReceiver
from sidecar.billing.webhooks.signature import WebhookSetupError
from sidecar.controlplane.reconcile_loop import FLUSH, ReconcileLoop
from sidecar.controlplane.sync_loop import SyncLoop
from sidecar.ledger.store import Store
from sidecar.metering.audit.auditor import Auditor
from sidecar.metering.audit.hour_compaction import HourCompaction
from sidecar.metering.openmeter.meter_query import MeterQuery, QueryError, UsageRow, Window
from sidecar.metering.publisher.sender import MeteringError
from sidecar.metering.settings import MeteringSettings
from sidecar.valkey.lease import Lease, lead

log = get_logger("sidecar.billing")

LOOK_S_MAX: Final = 20.0
FLUSH_AFTER_MS: Final = 900_000
"""For so long after its end a period is pushed at every look; Lago makes the invoice ten minutes past the hour."""

PAGE: Final = 200
REQUESTS_LISTED_MAX: Final = 10_000


class _NoOpenMeter:
    """In the place of OpenMeter's query where the ledger's counts are pushed and no OpenMeter is configured."""

    async def usage(
        self,
        metric: str,
        from_ms: int,
        to_ms: int,
        *,
        subject: str | Sequence[str] | None = None,
        window: Window | None = "HOUR",
    ) -> tuple[UsageRow, ...]:
        raise QueryError("metering.url is not set", transient=False)


class ControlWork:
    """The work of one control plane. ``await run(stop)``; made by :func:`open_control_work`.

    ``now_ms`` and ``sleep_until`` are Valkey's clock unless a test has another.
    """

    def __init__(
        self,
        settings: LagoSettings,
        metering: MeteringSettings,
        store: Store,
        lago: LagoClient,
        query: MeterQuery | None,
        *,
        sleep_until: Callable[[int], Awaitable[None]] | None = None,
        on_outcome: Callable[[Outcome], None] | None = None,
        holder: str | None = None,
    ) -> None:
        self.settings = settings
        self.store = store
        self.lago = lago
        self.query = query
        self.metrics = BillingMetrics()
        self.reload_requests = ReloadRequests(store.client, store.keys)
        self.receiver = WebhookReceiver(
            settings.webhooks, self.reload_requests, fetch_public_key=lago.public_key, lago_url=settings.url
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
        self.reconcile_loop = ReconcileLoop(
            self.reconciler,
            lago,
            store.accounts,
            store.client,
            store.keys,
            settings.reconcile,
            on_outcome=self._note,
            flush=self._flush,
        )
        self.sync_loop: SyncLoop | None = None
        if settings.sync.enabled and (query is not None or settings.sync.source == "ledger"):
            sync = Sync(store.client, store.keys, lago, query or _NoOpenMeter(), settings.sync)
            checks = InvoiceChecks(store.client, store.keys, lago, sync)
            self.sync_loop = SyncLoop(settings.sync, store, self.reconciler, sync, checks)
        self._on_outcome = on_outcome
        self.auditor: Auditor | None = None
        audits = query is not None and settings.audit.enabled
        self.compaction = HourCompaction(store.client, store.keys, settings.audit.hours, must_agree=audits)
        if query is not None and audits:
            self.auditor = Auditor(
                store.client, store.keys, settings.audit, metering, query, compaction=self.compaction
            )
        name = holder or f"{socket.gethostname()[:64]}-{os.getpid()}-{secrets.token_hex(4)}"
        self.lease = Lease(store.client, store.keys.lease("billing"), name, settings.reconcile.lease_ttl_ms)

    def __repr__(self) -> str:
        return f"ControlWork({self.lease!r}, {self.reconcile_loop!r})"

    def _note(self, outcome: Outcome) -> None:
        if self.sync_loop is not None and outcome.desired is not None and outcome.result == "loaded":
            self.sync_loop.schedule.note(outcome.account, outcome.desired.reconcile_state)
        if self._on_outcome is not None:
            self._on_outcome(outcome)

    async def _counted(self, account: str, metrics: tuple[str, ...], from_ms: int, to_ms: int) -> Mapping[str, int]:
        assert self.query is not None
        # Whole seconds, the running one included: what counts too much is only stricter.
        start_ms, end_ms = from_ms // 1000 * 1000, to_ms // 1000 * 1000 + 1000
        counted, unmetered = {}, ""
        for metric in metrics:
            try:
                rows = await self.query.usage(metric, start_ms, end_ms, subject=account, window=None)
            except QueryError as error:
                if error.transient:
                    raise CountsUnavailable(str(error)) from None
                # A metric that no route charges need not have a meter.
                unmetered = str(error)
                continue
            mine = [row for row in rows if row.subject == account]
            fault = next((row.fault for row in mine if row.fault), "")
            if fault:
                raise CountsUnavailable(f"OpenMeter's answer for {account} {fault}")
            counted[metric] = sum(row.units for row in mine)
        if unmetered and not counted:
            raise CountsUnavailable(unmetered)
        return counted

    async def run(self, stop: asyncio.Event) -> None:
        """Leads when nobody else does, until ``stop``."""
        await lead(self.lease, lambda token: self._lead(token, stop), stop)

    async def _lead(self, token: int, stop: asyncio.Event) -> None:
        log.info("this control plane leads", holder=self.lease.holder, token=token)
        self.metrics.is_leader = True
        try:
            async with asyncio.TaskGroup() as tasks:
                work = [tasks.create_task(self.sync_loop.run(token, stop))] if self.sync_loop is not None else []
                keeps_hours = self.auditor or self.compaction
                work.append(tasks.create_task(keeps_hours.run(stop)))
                await self.reconcile_loop.run(token, stop)
                for task in work:
                    task.cancel()
        finally:
            self.metrics.is_leader = False

    # sync

    async def _flush(self, token: int, account: str | None) -> None:
        if self.sync_loop is not None:
            await self.sync_loop.round(token, flush=True, only=account)

    async def ask_leader_to_flush(self, account: str | None, timeout_s: float) -> bool:
        """Request it, and wait until the leader has pushed."""
        name = FLUSH if account is None else f"{FLUSH}:{account}"
        await self.reload_requests.add([name])
        end_s = time.monotonic() + timeout_s
        while time.monotonic() < end_s:
            await asyncio.sleep(0.2)
            if all(request.name != name for request in await self.reload_requests.waiting(REQUESTS_LISTED_MAX)):
                return True
        return False

    @property
    def field_bytes_max(self) -> int:
        """How long a header field the webhooks' server has to take."""
        return self.receiver.field_bytes_max

    def status(self) -> dict[str, Any]:
        """The leader, the time of the last sweep, and the alerts."""
        lease = self.lease.state
        sync = self.sync_loop.sync.metrics if self.sync_loop is not None else None
        return {
            "lago": self.settings.url,
            "leads": lease.held,
            "leader": lease.leader,
            "swept_at": self.metrics.swept_at_s or None,
            "reload_requests_waiting": self.metrics.reload_requests_waiting,
            "alerts": dict(self.metrics.alerts_by_kind()),
            "synced_at": sync.finished_at_ms if sync is not None else None,
            "sync_refused": dict(sync.refused) if sync is not None else {},
        }

    async def handle_webhook(self, request: web.Request) -> web.StreamResponse:
        return await self.receiver.handle(request)


@contextlib.asynccontextmanager
async def open_control_work(
    settings: LagoSettings,
    metering: MeteringSettings,
    store: Store,
    *,
    sleep_until: Callable[[int], Awaitable[None]] | None = None,
) -> AsyncIterator[ControlWork | None]:
    """The work, or None where the configuration names no Lago.

    Raises:
        SetupError: a key or file that the configuration names cannot be used.
    """
    if settings.url is None:
        yield None
        return
    try:
        async with contextlib.AsyncExitStack() as stack:
            lago = await stack.enter_async_context(LagoClient(settings))
            query = None
            if metering.url is not None:
                query = await stack.enter_async_context(MeterQuery(metering))
            control_work = ControlWork(settings, metering, store, lago, query, sleep_until=sleep_until)
            stack.push_async_callback(control_work.receiver.close)
            yield control_work
    except LagoSetupError as error:
        raise SetupError(str(error)) from None
    except WebhookSetupError as error:
        raise SetupError(str(error)) from None
    except MeteringError as error:
        raise SetupError(f"metering: {error}") from None
