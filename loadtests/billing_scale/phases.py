"""The phases of a bank's month, one after another on the same accounts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, Final

import aiohttp
import orjson

from loadtests.billing_scale.bank import HOUR_S, Bank, Moment, account_of
from loadtests.billing_scale.copies import copy_accounts
from loadtests.billing_scale.ledger_usage import end_periods, write_usage
from loadtests.billing_scale.meter import Meter, Phase
from sidecar.app.configuration import Config
from sidecar.billing.lago.client import LagoClient
from sidecar.billing.reconcile.sweep import read_lists
from sidecar.billing.usage_sync.sync_report import SyncReport
from sidecar.controlplane.control_work import ControlWork
from sidecar.ledger.accounts.loader import AccountLoader
from sidecar.ledger.keys import Keys
from sidecar.ledger.store import Store
from sidecar.metering.openmeter.meter_query import MeterQuery
from sidecar.valkey.topology import Address, Standalone, connected

CHANGED_EACH: Final = 100
LOOK_S: Final = 30
"""How long after an hour or a period ends the sync looks: a window settles in ten seconds."""
LEDGER_LOOK_S: Final = 330
"""Five minutes after a period's end the ledger's counts make up for what OpenMeter lacks."""
AUDIT_LOOK_S: Final = 330
RESCAN_S: Final = 960
"""After that a round compares again what was compared before."""
READINGS_AT_ONCE: Final = 500
TOKEN: Final = 1


class MovableClock(AccountLoader):
    """The ledger's accounts, with a clock that may be ahead of, or behind, Valkey's."""

    by_ms = 0

    async def _now_ms(self) -> int:
        return await super()._now_ms() + self.by_ms


@dataclass(slots=True)
class Run:
    """One control plane and its bank. ``base_s``: the whole hour that the phases are set around. ``tell``: progress."""

    bank: Bank
    base_s: int
    url: str
    store: Store
    clock: MovableClock
    work: ControlWork
    meter: Meter
    session: aiohttp.ClientSession
    moment: Moment
    swept_first: int
    readings: int
    used_hours: int
    tell: Callable[[str], None]

    async def answer(self, **changes: Any) -> None:
        """The stand-ins answer so from now on."""
        self.moment = replace(self.moment, **changes)
        async with self.session.post(f"{self.url}/bench/moment", data=orjson.dumps(self.moment)) as done:
            assert done.status == 200

    async def sweep(self, name: str, accounts: int | None = None) -> Phase:
        async with self.meter.measured(name, accounts or self.bank.accounts) as phase:
            report = await self.work.reconcile_loop.sweep(TOKEN, progress=self._progress(name))
            await self.work.reconcile_loop.check_reading_ages(TOKEN)
        phase.found = {"accounts_read": report.read, "failed": report.failed}
        return phase

    async def sync(self, name: str, at_s: int, *, due: bool = False) -> Phase:
        """A regular round, or with ``due`` a look at the periods that end; with the comparison of invoices."""
        loop = self.work.sync_loop
        assert loop is not None
        if due:
            async for account, saved in loop._reconcile_states(None):  # as earlier rounds have noted it
                loop.schedule.note(account, saved)
        self.clock.by_ms += at_s * 1000 - await self.clock.now_ms()
        try:
            async with self.meter.measured(name, self.bank.accounts) as phase:
                report: SyncReport | None
                if due:
                    report = await loop.flush_due(TOKEN)
                else:
                    report = await loop.round(TOKEN)
        finally:
            self.clock.by_ms = 0
        assert report is not None, "no period ends now"
        counts = report.counts
        phase.found = {"events": counts.events, "units": counts.units, "accounts": counts.accounts,
                       "failed": counts.accounts_failed, "stopped": report.stopped}  # fmt: skip
        return phase

    async def audit(self, name: str) -> Phase:
        assert self.work.auditor is not None
        async with self.meter.measured(name, self.bank.accounts) as phase:
            report = await self.work.auditor.audit((self.base_s + AUDIT_LOOK_S) * 1000)
        states = {hour.state.value for hour in report.hours}
        phase.found = {"hours": len(report.hours), "states": sorted(states), "rows": len(report.rows)}
        return phase

    async def read(self, name: str) -> Phase:
        """Readings of accounts in full, as after the end of their periods."""
        accounts = [account_of(number) for number in range(min(self.readings, self.bank.accounts))]
        slots = asyncio.Semaphore(self.work.settings.reconcile.concurrency)
        results: dict[str, int] = {}

        async def one(account: str) -> None:
            async with slots:
                outcome = await self.work.reconciler.reconcile(account, TOKEN)
            results[outcome.result] = results.get(outcome.result, 0) + 1

        async with self.meter.measured(name, len(accounts)) as phase:
            for at in range(0, len(accounts), READINGS_AT_ONCE):
                await asyncio.gather(*map(one, accounts[at : at + READINGS_AT_ONCE]))
                self._progress(name)("accounts", at, len(accounts))
        phase.found = dict(results)
        return phase

    def _progress(self, name: str) -> Callable[[str, int, int], None]:
        told_s = time.monotonic()

        def progress(what: str, done: int, total: int) -> None:
            nonlocal told_s
            if time.monotonic() - told_s >= 10:
                told_s = time.monotonic()
                self.tell(f"  {name}: {done} of {total} {what}")

        return progress

    # The phases

    async def first_sweep(self) -> Phase:
        """Of ``swept_first`` accounts; the others are copied from them."""
        bank, swept = self.bank, min(self.swept_first, self.bank.accounts)
        await self.answer(listed=swept)
        phase = await self.sweep("first sweep", swept)
        if swept < bank.accounts:
            await self.answer(listed=0)
            self.tell(f"  {bank.accounts - swept} more accounts are copied")
            prints = await read_lists(self.work.lago)
            await copy_accounts(self.store.client, self.store.keys, bank, swept, prints)
        return phase

    async def idle_sweep(self) -> Phase:
        return await self.sweep("idle sweep")

    async def changed_sweep(self) -> Phase:
        return await self.sweep("sweep, 1 in 100 changed")

    async def first_sync(self) -> Phase:
        """Before the hour that is used: the accounts are new to the sync."""
        return await self.sync("first sync", self.base_s - HOUR_S + LOOK_S)

    async def hour_sync(self) -> Phase:
        self.tell("  usage is written into the ledger")
        await write_usage(self.store.client, self.store.keys, self.bank, self.moment)
        return await self.sync("sync of an hour", self.base_s + LOOK_S)

    async def quiet_sync(self) -> Phase:
        return await self.sync("sync, nothing new", self.base_s + RESCAN_S)

    async def first_audit(self) -> Phase:
        return await self.audit("audit of an hour")

    async def quiet_audit(self) -> Phase:
        return await self.audit("audit, nothing new")

    async def month_end(self) -> Phase:
        """The period ends, and its last hour has got more usage since the sync looked at it."""
        self.tell("  the period ends")
        await write_usage(self.store.client, self.store.keys, self.bank, self.moment)
        await end_periods(self.store.client, self.store.keys, self.bank, self.base_s)
        return await self.sync("month end, first look", self.base_s + LOOK_S, due=True)

    async def month_end_again(self) -> Phase:
        return await self.sync("month end, next look", self.base_s + LOOK_S + 20, due=True)

    async def month_end_ledger(self) -> Phase:
        return await self.sync("month end, after 5 minutes", self.base_s + LEDGER_LOOK_S, due=True)

    async def month_end_readings(self) -> Phase:
        return await self.read("month end, readings")

    async def month_end_invoices(self) -> Phase:
        """The regular round after the readings: invoices are compared."""
        return await self.sync("month end, sync and invoices", self.base_s + HOUR_S + LOOK_S)


PHASES: Final[dict[str, Callable[[Run], Awaitable[Phase]]]] = {
    "first-sweep": Run.first_sweep,
    "idle-sweep": Run.idle_sweep,
    "changed-sweep": Run.changed_sweep,
    "first-sync": Run.first_sync,
    "hour-sync": Run.hour_sync,
    "quiet-sync": Run.quiet_sync,
    "audit": Run.first_audit,
    "quiet-audit": Run.quiet_audit,
    "month-end": Run.month_end,
    "month-end-again": Run.month_end_again,
    "month-end-ledger": Run.month_end_ledger,
    "month-end-readings": Run.month_end_readings,
    "month-end-invoices": Run.month_end_invoices,
}
"""In this order; each builds on those before it."""


def _changes(name: str, one: Run) -> dict[str, Any]:
    """What the stand-ins answer from a phase on."""
    last = one.base_s // HOUR_S
    changes: dict[str, dict[str, Any]] = {
        "changed-sweep": {"raised_each": CHANGED_EACH},
        "hour-sync": {"hours": (last - one.used_hours, last)},
        "month-end": {"until_s": one.base_s, "times": 2},
        "month-end-readings": {"is_over": True},
    }
    return changes.get(name, {})


@asynccontextmanager
async def opened(
    bank: Bank, base_s: int, until_s: int, valkey: tuple[str, int], url: str, *, swept_first: int, readings: int,
    used_hours: int, tell: Callable[[str], None],
) -> AsyncIterator[Run]:  # fmt: skip
    """A control plane on this Valkey and these stand-ins."""
    host, port = valkey
    config = Config.model_validate(
        {
            "upstream": {"url": "http://127.0.0.1:1"},
            "valkey": f"valkey://{host}:{port}",
            "metering": {"url": url},
            "lago": {"url": url, "api_key": "key", "requests_per_second": 10_000},
        }
    )
    async with (
        connected(Standalone(Address(host, port)), timeout_s=60.0) as client,
        LagoClient(config.lago) as lago,
        MeterQuery(config.metering) as query,
        aiohttp.ClientSession() as session,
    ):
        keys = Keys()
        clock = MovableClock(client, keys)
        store = Store(client, keys, clock)
        work = ControlWork(config.lago, config.metering, store, lago, query)

        async def counts() -> Any:
            async with session.get(f"{url}/bench/counts") as answer:
                return orjson.loads(await answer.read())

        meter = Meter(client, counts, lambda: dict(lago.metrics.requests))
        moment = Moment(until_s)
        yield Run(
            bank, base_s, url, store, clock, work, meter, session, moment, swept_first, readings, used_hours, tell
        )


async def run(one: Run, names: Sequence[str]) -> AsyncIterator[Phase]:
    """The phases of these names, in their own order."""
    for name, phase in PHASES.items():
        one.moment = replace(one.moment, **_changes(name, one))
        if name in names:
            await one.answer()
            one.tell(name)
            yield await phase(one)
