"""From OpenMeter to an invoice of Lago."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from decimal import Decimal

import pytest

from sidecar.billing.lago.client import LagoClient
from sidecar.billing.lago.models import BillableMetric, Event
from sidecar.billing.settings import SyncSettings
from sidecar.billing.usage_sync.comparison import ComparisonRow, LedgerUsage
from sidecar.billing.usage_sync.period_links import SyncAccount
from sidecar.billing.usage_sync.sync_store import Fenced
from tests.integration.billing.usage_sync.kit import HOUR, MONTH_END, T0, SyncSystem, link_of

RATE = Decimal("0.015")


async def test_the_invoice_bills_every_call_of_the_month(system: SyncSystem) -> None:
    link = link_of(await system.subscribe("tpp-1"), T0, MONTH_END)
    for hour in range(24):
        system.use("tpp-1", T0 + hour * HOUR + 5, 10 + hour)
        system.use("tpp-1", T0 + hour * HOUR + 3599, 1)
        await system.run(T0 + (hour + 1) * HOUR + 10, link)
    system.at(MONTH_END + 700)
    invoice = await system.invoice_of("tpp-1", link.subscription_id)
    used = sum(10 + hour for hour in range(24)) + 24
    (row,) = await system.sync().compare("tpp-1", link, [LedgerUsage("api_calls", used, used * RATE)], invoice)
    assert (row.openmeter, row.pushed, int(row.invoiced)) == (used, used, used)
    assert row.is_equal


async def test_calls_of_the_last_second_are_on_the_invoice_by_a_flush_right_after_the_end(
    system: SyncSystem,
) -> None:
    link = link_of(await system.subscribe("tpp-1"), T0, MONTH_END)
    for second in range(1, 90):
        system.use("tpp-1", MONTH_END - second, 1)
    await system.run(MONTH_END - 30, link)
    system.use("tpp-1", MONTH_END - 1, 4)
    await system.run(MONTH_END + 1, replace(link, is_current=False))
    system.at(MONTH_END + 700)
    invoice = await system.invoice_of("tpp-1", link.subscription_id)
    (row,) = await system.sync().compare("tpp-1", link, [LedgerUsage("api_calls", 93, 93 * RATE)], invoice)
    assert row.is_equal


async def test_an_upgrade_that_was_noticed_late_leaves_no_call_unbilled(system: SyncSystem) -> None:
    """Lago bills an upgrade at once. Here the last flush came just before it, and the cut is seconds later."""
    old = await system.subscribe("tpp-1")
    system.use("tpp-1", T0 + 100, 7)
    await system.run(T0 + 5_000, link_of(old, T0, MONTH_END), flush=True)
    system.at(T0 + 5_000.5)
    new = await system.subscribe("tpp-1", "pro")
    assert new.lago_id != old.lago_id
    assert new.started_at_ms is not None
    cut_s = T0 + 5_003
    before = link_of(old, T0, cut_s, lago_to_ms=new.started_at_ms, is_current=False)
    after = link_of(new, cut_s, MONTH_END)
    system.use("tpp-1", cut_s - 1, 2)
    system.use("tpp-1", cut_s, 5)
    report = await system.run(cut_s + 60, replace(before, is_final=True), after, flush=True)
    assert (report.counts.late_units, report.counts.units) == (2, 5)
    system.at(MONTH_END + 700)
    invoices = [await system.invoice_of("tpp-1", each.lago_id) for each in (old, new)]
    rows: list[ComparisonRow] = []
    for link, ledger, invoice in zip((before, after), (9, 5), invoices, strict=True):
        rows += await system.sync().compare("tpp-1", link, [LedgerUsage("api_calls", ledger, ledger * RATE)], invoice)
    assert [(int(row.difference), row.late) for row in rows] == [(2, 2), (0, 0)]


async def test_calls_that_missed_the_invoice_of_an_upgrade_can_be_carried_into_the_next(
    system: SyncSystem,
) -> None:
    system.settings = SyncSettings(late_usage="carry")
    old = await system.subscribe("tpp-1")
    system.use("tpp-1", T0 + 100, 7)
    await system.run(T0 + 5_000, link_of(old, T0, MONTH_END), flush=True)
    system.at(T0 + 5_000.5)
    new = await system.subscribe("tpp-1", "pro")
    before = link_of(old, T0, T0 + 5_003, lago_to_ms=new.started_at_ms, is_current=False, is_final=True)
    after = link_of(new, T0 + 5_003, MONTH_END)
    system.use("tpp-1", T0 + 5_002, 2)
    await system.run(T0 + 6_000, before, after, flush=True)
    system.at(MONTH_END + 700)
    rows: list[ComparisonRow] = []
    for link, ledger in ((before, 9), (after, 0)):
        invoice = await system.invoice_of("tpp-1", link.subscription_id)
        rows += await system.sync().compare("tpp-1", link, [LedgerUsage("api_calls", ledger, ledger * RATE)], invoice)
    assert [(int(row.difference), row.carried_out, row.carried_in, int(row.invoiced)) for row in rows] == [
        (0, 2, 0, 7),
        (0, 0, 2, 2),
    ]


async def test_a_comparison_before_everything_is_delivered_says_what_lago_has(system: SyncSystem) -> None:
    link = link_of(await system.subscribe("tpp-1"), T0, MONTH_END)
    system.use("tpp-1", T0 + 5, 7)
    await system.run(T0 + HOUR + 10, link)
    system.use("tpp-1", T0 + 6, 2)
    system.lago.faults.replace({"script": [{"path": "/api/v1/events", "status": 503}]})
    report = await system.run(T0 + HOUR + 20, link)
    assert report.counts.pending == 1
    system.at(MONTH_END + 700)
    invoice = await system.invoice_of("tpp-1", link.subscription_id)
    (row,) = await system.sync().compare("tpp-1", link, [LedgerUsage("api_calls", 9, 9 * RATE)], invoice)
    assert (row.pushed, int(row.invoiced), int(row.difference)) == (7, 7, 2)


async def test_an_answer_of_lago_that_was_lost_bills_nothing_twice(system: SyncSystem) -> None:
    link = link_of(await system.subscribe("tpp-1"), T0, MONTH_END)
    system.use("tpp-1", T0 + 5, 7)
    system.lago.faults.replace({"script": [{"path": "/api/v1/events/batch", "drop": "after"}]})
    report = await system.run(T0 + HOUR + 10, link)
    assert report.stopped is not None
    assert report.counts.pending == 1
    report = await system.run(T0 + HOUR + 20, link)
    assert (report.counts.duplicates, report.counts.pending) == (1, 0)
    usage = await system.api.current_usage("tpp-1", link.external_subscription_id)
    assert usage is not None
    assert [int(charge.units) for charge in usage.charges] == [7]


async def test_a_count_is_not_pushed_to(system: SyncSystem) -> None:
    await system.api.create_metric(
        {"name": "Counted", "code": "counted", "aggregation_type": "count_agg", "field_name": "calls"}
    )
    link = replace(link_of(await system.subscribe("tpp-1"), T0, MONTH_END), metrics=("counted",))
    report = await system.run(T0 + HOUR + 10, link)
    assert "count_agg" in report.refused["counted"]


class Slow:
    """Lago's client, which a leader that stands still has in its hands."""

    def __init__(self, api: LagoClient) -> None:
        self._api = api
        self.may_send = asyncio.Event()
        self.sends = asyncio.Event()

    async def metric(self, code: str) -> BillableMetric | None:
        return await self._api.metric(code)

    async def event(self, transaction_id: str) -> Event | None:
        return await self._api.event(transaction_id)

    async def send_events(self, events: Sequence[Event]) -> None:
        self.sends.set()
        await self.may_send.wait()
        await self._api.send_events(events)


async def test_a_leader_that_wakes_after_its_successor_changes_nothing(system: SyncSystem) -> None:
    link = link_of(await system.subscribe("tpp-1"), T0, MONTH_END)
    system.use("tpp-1", T0 + 5, 7)
    accounts = [SyncAccount("tpp-1", (link,))]
    now_ms = (T0 + HOUR + 10) * 1000
    slow = Slow(system.api)
    old = asyncio.create_task(system.sync(lago=slow).run_once(accounts, 1, now_ms))
    await slow.sends.wait()
    system.use("tpp-1", T0 + 6, 3)
    report = await system.sync().run_once(accounts, 2, now_ms)
    assert report.counts.units == 10
    slow.may_send.set()
    with pytest.raises(Fenced):
        await old
    with pytest.raises(Fenced):
        await system.sync().run_once(accounts, 1, now_ms)
    usage = await system.api.current_usage("tpp-1", link.external_subscription_id)
    assert usage is not None
    assert [int(charge.units) for charge in usage.charges] == [10]


async def test_a_process_that_dies_anywhere_leaves_a_sync_that_comes_out_right(system: SyncSystem) -> None:
    subscription = await system.subscribe("tpp-1")
    link = link_of(subscription, T0, MONTH_END)
    accounts = [SyncAccount("tpp-1", (link,))]
    used = 0
    for n in range(30):
        at_s = T0 + 600 * n
        system.use("tpp-1", at_s, n + 1)
        used += n + 1
        task = asyncio.create_task(system.sync().run_once(accounts, 1, (at_s + 30) * 1000, flush=True))
        await asyncio.sleep(0.0007 * n)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    for _ in range(2):
        await system.run(T0 + 6 * HOUR, link, flush=True)
    usage = await system.api.current_usage("tpp-1", link.external_subscription_id)
    assert usage is not None
    assert [int(charge.units) for charge in usage.charges] == [used]


async def test_a_thousand_accounts_take_few_requests(system: SyncSystem) -> None:
    subscription = await system.subscribe("tpp-1")
    accounts = []
    for n in range(1_000):
        system.use(f"tpp-{n}", T0 + 5 + n, 1 + n % 7)
        external = f"sub-tpp-{n}"
        link = replace(link_of(subscription, T0, MONTH_END), subscription_id=f"s{n}", external_subscription_id=external)
        accounts.append(SyncAccount(f"tpp-{n}", (link,)))
    before = sum(system.lago.requests.values())
    report = await system.sync().run_once(accounts, 1, (T0 + HOUR + 10) * 1000)
    assert report.counts.events == 1_000
    assert sum(system.lago.requests.values()) - before == 11


async def test_accounts_may_come_one_after_the_other(system: SyncSystem) -> None:
    link = link_of(await system.subscribe("tpp-1"), T0, MONTH_END)
    system.use("tpp-1", T0 + 5, 7)

    async def listed() -> AsyncIterator[SyncAccount]:
        yield SyncAccount("tpp-1", (link,))

    sync = system.sync()
    report = await sync.run_once(listed(), 1, (T0 + HOUR + 10) * 1000)
    assert report.counts.units == 7
    assert (sync.metrics.rounds, sync.metrics.total.units) == (1, 7)


async def test_late_usage_is_looked_for_every_quarter_of_an_hour(system: SyncSystem) -> None:
    system.settings = SyncSettings(window_s=60)
    link = link_of(await system.subscribe("tpp-1"), T0, MONTH_END)
    accounts = [SyncAccount("tpp-1", (link,))]
    sync = system.sync()
    await sync.run_once(accounts, 1, (T0 + 120) * 1000)
    system.use("tpp-1", T0 + 5, 7)
    assert (await sync.run_once(accounts, 1, (T0 + 900) * 1000)).counts.units == 0
    assert (await sync.run_once(accounts, 1, (T0 + 1_020) * 1000)).counts.units == 7


async def test_calls_pushed_after_lago_ended_the_period_are_compared_with_the_invoice_that_bills_them(
    system: SyncSystem,
) -> None:
    """An upgrade that nobody notices for ten minutes, in which usage is pushed every minute. The eleven calls of the
    minute in which Lago made its cut came after its invoice, with a time before it: no invoice has them."""
    system.settings = SyncSettings(window_s=60)
    old = await system.subscribe("tpp-1")
    for minute in range(20):
        system.use("tpp-1", T0 + 60 * minute, minute + 1)
    await system.run(T0 + 610, link_of(old, T0, MONTH_END))
    system.at(T0 + 615)
    new = await system.subscribe("tpp-1", "pro")
    await system.run(T0 + 1_210, link_of(old, T0, MONTH_END))
    before = link_of(old, T0, T0 + 1_215, lago_to_ms=new.started_at_ms, is_current=False, is_final=True)
    after = link_of(new, T0 + 1_215, MONTH_END)
    await system.run(T0 + 1_230, before, after, flush=True)
    system.at(MONTH_END + 700)
    rows: list[ComparisonRow] = []
    for link, ledger in ((before, 210), (after, 0)):
        invoice = await system.invoice_of("tpp-1", link.subscription_id)
        rows += await system.sync().compare("tpp-1", link, [LedgerUsage("api_calls", ledger, ledger * RATE)], invoice)
    assert [(int(row.difference), row.carried_out, row.carried_in, int(row.invoiced)) for row in rows] == [
        (11, 144, 0, 55),
        (0, 0, 144, 144),
    ]


ODD_IDS = ("a'b\"c\\;--", "x&subject=y", "ü+%20 /?#%2F", "\U0001f600" * 100, "z" * 1_000, "\U0001f600" * 1_000)


async def test_accounts_of_any_names_are_asked_for_one_by_one(system: SyncSystem) -> None:
    """Periods that begin at seconds of their own make a query for each account."""
    accounts = []
    for number, account in enumerate(("tpp-1", *ODD_IDS)):
        subscription = await system.subscribe(f"tpp-{number}")
        start_s = T0 + 100 + 7 * number
        link = replace(link_of(subscription, start_s, MONTH_END), lago_from_ms=start_s * 1000)
        system.use(account, start_s + 5, 10 + number)
        accounts.append(SyncAccount(account, (link,)))
    report = await system.sync().run_once(accounts, 1, (T0 + HOUR + 20) * 1000)
    pushed = {row.account: row.units for row in report.rows if row.kind == "pushed"}
    assert pushed == {account.id: 10 + number for number, account in enumerate(accounts)}
