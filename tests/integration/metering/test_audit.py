"""The ledger and OpenMeter compared: what is lost comes back, and what cannot come back is told."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Collection
from dataclasses import replace
from functools import partial

import orjson
import pytest
from aiohttp import web
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from sidecar.ledger.hours import HOUR_MS, HourCounts, Hours
from sidecar.ledger.keys import Keys
from sidecar.metering.audit.audit_report import HourState
from sidecar.metering.audit.comparison import HELPLESS_ATTEMPTS, RESEND_MS_MAX, RowState
from sidecar.metering.outbox.outbox_status import drop_dead_letters
from sidecar.sandbox.openmeter.meters import DEFAULT_METERS
from sidecar.sandbox.openmeter.openmeter_events import CloudEvent
from sidecar.sandbox.openmeter.openmeter_faults import OpenMeterFault
from sidecar.sandbox.openmeter.openmeter_server import OpenMeter, OpenMeterConfig
from sidecar.sandbox.server import Server
from tests.integration.metering.audit_kit import SETTLE_S, Audit, Charges, auditing, state
from tests.integration.metering.kit import (
    RefusingProxy,
    Valkey,
    first_poisoned,
    outbox_is_empty,
    publishing,
    settings,
    stored_ids,
    until,
)
from tests.integration.metering.test_takeover import has_accepted, start_process

LOSE = OpenMeterFault(lose=True)
ACCOUNTS = [f"tpp-{number}" for number in range(9)]


@pytest.fixture
def charges(valkey: Valkey, keys: Keys) -> Charges:
    return Charges(valkey, keys)


def metered(meter: OpenMeter) -> dict[tuple[str, str], int]:
    """Units by account and metric, of which every event counts as often as it is stored."""
    found = Counter[tuple[str, str]]()
    for stored in meter.store.events():
        data = orjson.loads(stored.data)
        found[stored.subject, data["metric"]] += data["units"]
    return dict(found)


async def deliver(client: Redis, valkey: Valkey, keys: Keys, url: str, **changes: int) -> None:
    async with publishing(client, keys, settings(url, **changes)):
        await until(lambda: outbox_is_empty(valkey, keys))


async def test_what_was_delivered_agrees_and_is_not_asked_for_again(
    valkey: Valkey, client: Redis, keys: Keys, meter: OpenMeter, url: str, charges: Charges
) -> None:
    for number, account in enumerate(ACCOUNTS):
        charges.charge(account, 1, 2, number + 1)
        charges.charge(account, 7)
    await deliver(client, valkey, keys, url)
    queries: list[str] = []
    async with Server(noting_queries(meter, queries)) as server, auditing(client, keys, settings(server.url)) as audits:
        report = await audits.audit()
        assert report.agrees
        assert report.rows == ()
        assert sum(hour.ledger_units for hour in report.hours) == sum(charges.charged.values())
        asked = len(queries)
        assert asked
        again = await audits.audit(900)
        assert (again.hours, again.agrees) == (report.hours, True)
        assert len(queries) == asked, "what agreed is remembered"
        charges.charge("tpp-1", 5)
        await deliver(client, valkey, keys, url)
        assert (await audits.audit(900)).agrees
        assert len(queries) > asked, "an hour that has changed is compared again"
    assert audits.auditor.metrics.hours_open == 0


def noting_queries(meter: OpenMeter, queries: list[str]) -> web.Application:
    app = meter.app()

    async def note(request: web.Request, response: web.StreamResponse) -> None:
        if request.path.endswith("/query"):
            queries.append(request.path)

    app.on_response_prepare.append(note)
    return app


async def test_events_lost_after_they_were_accepted_come_back_and_none_counts_twice(
    valkey: Valkey, client: Redis, keys: Keys, meter: OpenMeter, url: str, charges: Charges
) -> None:
    for account in ACCOUNTS:
        for _ in range(20):
            charges.charge(account, 1, 2, 3)
    meter.faults.chance(0.3, LOSE)
    await deliver(client, valkey, keys, url, batch_events_max=25)
    meter.faults.clear()
    lost = sum(charges.charged.values()) - sum(metered(meter).values())
    assert lost > 0
    async with auditing(client, keys, settings(url, batch_events_max=25)) as audits:
        first = await audits.audit()
        assert first.missing_units == lost
        assert {row.state for row in first.rows} == {RowState.MISSING}
        assert first.resent_events == sum(row.resent for row in first.rows) > 0
        assert not first.agrees
        assert metered(meter) == charges.charged
        second = await audits.audit(SETTLE_S)
        assert second.agrees
        assert second.resent_events == 0
    assert set(stored_ids(meter).values()) == {1}
    assert meter.counts.duplicates > 0, "what was not lost was sent again too, and counted once"
    metrics = audits.auditor.metrics
    assert (metrics.missing_units, metrics.resent_events, metrics.failures) == (0, first.resent_events, 0)


async def test_only_events_of_what_is_missing_are_sent_again(
    valkey: Valkey, client: Redis, keys: Keys, meter: OpenMeter, url: str, charges: Charges
) -> None:
    charges.charge("tpp-1", 1, 1)
    await deliver(client, valkey, keys, url)
    charges.charge("tpp-2", 3, 4)
    meter.faults.script(LOSE)
    await deliver(client, valkey, keys, url)
    async with auditing(client, keys, settings(url)) as audits:
        report = await audits.audit()
    [row] = report.rows
    assert (row.account, row.metric, row.ledger_units, row.openmeter_units) == ("tpp-2", "api_calls", 7, 0)
    assert (row.difference, row.resent, report.resent_events) == (7, 2, 2)
    assert meter.counts.duplicates == 0


async def test_what_still_waits_in_the_outbox_is_not_missing(
    valkey: Valkey, client: Redis, keys: Keys, meter: OpenMeter, url: str, charges: Charges
) -> None:
    charges.charge("tpp-1", 5)
    await deliver(client, valkey, keys, url)
    charges.charge("tpp-1", 6)
    charges.charge("tpp-2", 7)
    async with auditing(client, keys, settings(url)) as audits:
        report = await audits.audit()
        assert [(row.account, row.state, row.pending_units, row.difference) for row in report.rows] == [
            ("tpp-1", RowState.PENDING, 6, 0),
            ("tpp-2", RowState.PENDING, 7, 0),
        ]
        assert (report.missing_units, report.pending_units, report.resent_events) == (0, 13, 0)
        assert {hour.state for hour in report.hours} == {HourState.PENDING}
        await deliver(client, valkey, keys, url)
        assert (await audits.audit()).agrees
    assert meter.counts.duplicates == 0


async def test_a_long_outbox_and_a_long_tail_are_counted_and_sent_to_the_unit(
    valkey: Valkey, client: Redis, keys: Keys, meter: OpenMeter, url: str, charges: Charges
) -> None:
    for number in range(150):
        charges.charge("tpp-1", number)
    async with auditing(client, keys, settings(url)) as audits:
        assert [row.pending_units for row in (await audits.audit()).rows] == [150 * 149 // 2]
        meter.faults.always(LOSE)
        await deliver(client, valkey, keys, url)
        meter.faults.clear()
        assert (await audits.audit()).resent_events == 150
    assert meter.counts.duplicates == 0
    assert metered(meter) == charges.charged


async def test_what_openmeter_has_but_the_outbox_too_waits_until_the_outbox_has_let_it_go(
    valkey: Valkey, client: Redis, keys: Keys, meter: OpenMeter, url: str, charges: Charges
) -> None:
    """A publisher that was killed between OpenMeter's answer and the removal of the entry."""
    charges.charge("tpp-1", 5)
    [(_, fields)] = valkey.xrange(keys.outbox(keys.partition("tpp-1")))
    await deliver(client, valkey, keys, url)
    valkey.delete(keys.sent(keys.partition("tpp-1")))
    valkey.xadd(keys.outbox(keys.partition("tpp-1")), fields)
    async with auditing(client, keys, settings(url)) as audits:
        [row] = (await audits.audit()).rows
        assert (row.state, row.difference) == (RowState.PENDING, 0)
        await deliver(client, valkey, keys, url)
        assert (await audits.audit()).agrees
    assert metered(meter) == charges.charged
    assert meter.counts.duplicates == 1


async def test_what_was_accepted_a_moment_ago_is_not_missing_yet(
    valkey: Valkey, client: Redis, keys: Keys, meter: OpenMeter, url: str, charges: Charges
) -> None:
    """OpenMeter's sink may stand still for hours: until a later watermark is visible nothing is lost."""
    now_ms = server_ms(valkey)
    charges.now_ms = now_ms - 3 * HOUR_MS
    charges.charge("tpp-1", 5)
    meter.faults.script(LOSE)
    await deliver(client, valkey, keys, url)
    async with auditing(client, keys, settings(url)) as audits:
        audits.now_ms = now_ms - HOUR_MS
        for _ in range(3):
            [row] = (await audits.audit()).rows
            assert (row.state, row.difference, row.resent) == (RowState.PENDING, 0, 0)
        for _ in range(20):
            [row] = (await audits.audit(HOUR_MS // 1000, covered=False)).rows
            assert (row.state, row.resent) == (RowState.PENDING, 0), "the watermark stands still too"
        [row] = (await audits.audit()).rows
        assert (row.state, row.difference, row.resent) == (RowState.MISSING, 5, 1)
    assert metered(meter) == charges.charged


async def test_what_is_gone_from_the_tail_may_still_be_late(
    valkey: Valkey, client: Redis, keys: Keys, meter: OpenMeter, url: str, charges: Charges
) -> None:
    charges.now_ms = server_ms(valkey) - 3 * HOUR_MS
    charges.charge("tpp-1", 5)
    meter.faults.script(LOSE)
    await deliver(client, valkey, keys, url)
    valkey.delete(keys.sent(keys.partition("tpp-1")))
    async with auditing(client, keys, settings(url)) as audits:
        audits.now_ms = charges.now_ms
        await audits.audit()
        for _ in range(3):
            report = await audits.audit(2 * HOUR_MS // 1000, covered=False)
            assert [(row.state, row.difference) for row in report.rows] == [(RowState.PENDING, 0)]
        states = [(await audits.audit(SETTLE_S)).rows[0].state for _ in range(2)]
    assert states == [RowState.MISSING, RowState.UNRECOVERABLE]


async def test_without_any_watermark_nothing_is_sent_again(
    valkey: Valkey, client: Redis, keys: Keys, meter: OpenMeter, url: str, charges: Charges
) -> None:
    charges.charge("tpp-1", 5)
    meter.faults.script(LOSE)
    await deliver(client, valkey, keys, url)
    async with auditing(client, keys, settings(url)) as audits:
        for _ in range(3):
            report = await audits.audit(SETTLE_S, covered=False)
            assert [row.state for row in report.rows] == [RowState.PENDING]
            assert not report.agrees
            assert any("no watermark" in problem for problem in report.problems)


async def test_dead_letters_are_not_missing_but_dropped_ones_are(
    valkey: Valkey, client: Redis, keys: Keys, meter: OpenMeter, charges: Charges
) -> None:
    charges.charge("tpp-1", 2, 3)
    charges.charge("poison-1", 4)
    gatekeeper = RefusingProxy(first_poisoned)
    async with Server(gatekeeper.app(meter)) as server, auditing(client, keys, settings(server.url)) as audits:
        await deliver(client, valkey, keys, server.url)
        [row] = (await audits.audit()).rows
        assert (row.account, row.state, row.pending_units) == ("poison-1", RowState.PENDING, 4)
        partition = keys.partition("poison-1")
        [(id_, _)] = valkey.xrange(keys.dead_letters(partition))
        assert await drop_dead_letters(client, keys, [f"{partition}/{id_.decode()}"]) == 1
        states = [(await audits.audit(SETTLE_S)).rows[0].state for _ in range(2)]
    assert states == [RowState.MISSING, RowState.UNRECOVERABLE]
    assert audits.auditor.metrics.unrecoverable_units == 4


async def test_an_event_that_became_a_dead_letter_is_not_sent_again_with_its_neighbours(
    valkey: Valkey, client: Redis, keys: Keys, meter: OpenMeter, charges: Charges
) -> None:
    charges.charge("tpp-1", 2)
    proxy = RefusingProxy(lambda batch: next((i for i, one in enumerate(batch) if one["data"]["units"] == 9), None))
    charges.charge("tpp-1", 3, 9, 4)
    meter.faults.script(*[OpenMeterFault(lose=True)] * 10)
    async with Server(proxy.app(meter)) as server, auditing(client, keys, settings(server.url)) as audits:
        await deliver(client, valkey, keys, server.url)
        meter.faults.clear()
        refusals = len(proxy.requests)
        [row] = (await audits.audit()).rows
        assert (row.difference, row.pending_units, row.resent) == (2 + 3 + 4, 9, 3)
        assert len(proxy.requests) == refusals + 1
        [row] = (await audits.audit(SETTLE_S)).rows
        assert (row.state, row.pending_units) == (RowState.PENDING, 9)
    assert metered(meter) == {("tpp-1", "api_calls"): 9}


async def test_what_is_no_longer_kept_is_unrecoverable_and_stays_so_for_all_to_see(
    valkey: Valkey, client: Redis, keys: Keys, meter: OpenMeter, url: str, charges: Charges
) -> None:
    charges.charge("tpp-1", 5)
    meter.faults.script(LOSE)
    await deliver(client, valkey, keys, url)
    valkey.delete(keys.sent(keys.partition("tpp-1")))
    async with auditing(client, keys, settings(url)) as audits:
        assert [(row.state, row.difference) for row in (await audits.audit()).rows] == [(RowState.MISSING, 5)]
        for _ in range(3):
            report = await audits.audit(SETTLE_S)
            [row] = report.rows
            assert (row.state, row.difference, report.unrecoverable_units) == (RowState.UNRECOVERABLE, 5, 5)
            assert {hour.state for hour in report.hours} == {HourState.DIFFERS}
    metrics = audits.auditor.metrics
    assert (metrics.missing_units, metrics.unrecoverable_units, metrics.hours_agreed) == (5, 5, 0)


async def test_of_what_is_partly_kept_the_rest_is_unrecoverable(
    valkey: Valkey, client: Redis, keys: Keys, meter: OpenMeter, url: str, charges: Charges
) -> None:
    meter.faults.script(LOSE, LOSE)
    charges.charge("tpp-1", 5)
    await deliver(client, valkey, keys, url)
    valkey.delete(keys.sent(keys.partition("tpp-1")))
    charges.charge("tpp-1", 2)
    await deliver(client, valkey, keys, url)
    async with auditing(client, keys, settings(url)) as audits:
        assert (await audits.audit()).resent_events == 1
        for _ in range(HELPLESS_ATTEMPTS - 1):
            report = await audits.audit(RESEND_MS_MAX // 1000)
            assert (report.missing_units, report.unrecoverable_units) == (5, 3)
        report = await audits.audit(RESEND_MS_MAX // 1000)
        assert (report.missing_units, report.unrecoverable_units, report.resent_events) == (5, 5, 1)
    assert metered(meter) == {("tpp-1", "api_calls"): 2}


async def test_what_is_lost_again_is_sent_again_and_what_was_sent_outlives_a_restart(
    valkey: Valkey, client: Redis, keys: Keys, meter: OpenMeter, url: str, charges: Charges
) -> None:
    charges.charge("tpp-1", 5, 6)
    meter.faults.always(LOSE)
    await deliver(client, valkey, keys, url)
    now_ms = 0
    for attempt in range(1, HELPLESS_ATTEMPTS + 3):
        async with auditing(client, keys, settings(url)) as audits:
            audits.now_ms = max(audits.now_ms, now_ms)
            report = await audits.audit()
            [row] = report.rows
            assert (row.state, row.resent) == (RowState.MISSING, 2 * attempt)
            assert report.unrecoverable_units == (11 if attempt > HELPLESS_ATTEMPTS else 0), "somebody has to look"
            [row] = (await audits.audit(1)).rows
            assert row.state is RowState.PENDING
            now_ms = audits.now_ms + RESEND_MS_MAX
    assert meter.counts.lost == 2 + 2 * (HELPLESS_ATTEMPTS + 2)


async def test_publishers_killed_while_openmeter_loses_events_cost_and_double_nothing_after_the_audit(
    valkey: Valkey, client: Redis, keys: Keys, meter: OpenMeter, url: str, charges: Charges
) -> None:
    for number in range(600):
        charges.charge(ACCOUNTS[number % 9], 1, number)
    meter.faults.chance(0.1, LOSE)
    meter.faults.chance(0.1, OpenMeterFault(drop="after"))
    meter.faults.chance(0.8, OpenMeterFault(delay_ms=10))
    how = settings(url, batch_events_max=20, requests_in_flight_max=2, buffer_bytes_max=65_536, claim_idle_ms=500)
    for kills in (200, 600):
        process = await start_process(valkey, keys, how)
        try:
            await until(partial(has_accepted, meter, kills))
        finally:
            process.kill()
            await process.wait()
    async with publishing(client, keys, how):
        await until(lambda: outbox_is_empty(valkey, keys))
    assert meter.counts.lost > 0
    meter.faults.clear()
    async with auditing(client, keys, how) as audits:
        assert (await audits.audit()).resent_events > 0
        assert (await audits.audit(SETTLE_S)).agrees
    assert metered(meter) == charges.charged
    assert set(stored_ids(meter).values()) == {1}


async def test_surplus_is_reported_and_left_alone(
    valkey: Valkey, client: Redis, keys: Keys, meter: OpenMeter, url: str, charges: Charges
) -> None:
    charges.charge("tpp-1", 5)
    [(_, fields)] = valkey.xrange(keys.outbox(keys.partition("tpp-1")))
    time_s = int(fields[b"t"]) // 1000
    data = b'{"units":4,"metric":"api_calls"}'
    for subject in ("tpp-1", "stranger"):
        meter.keep([CloudEvent(f"other.{subject}", "other", "api.call", subject, time_s, data)])
    await deliver(client, valkey, keys, url)
    async with auditing(client, keys, settings(url)) as audits:
        report = await audits.audit()
    found = [(row.account, row.state, row.ledger_units, row.openmeter_units, row.difference) for row in report.rows]
    assert found == [("stranger", RowState.SURPLUS, 0, 4, -4), ("tpp-1", RowState.SURPLUS, 5, 9, -4)]
    metrics = audits.auditor.metrics
    assert (metrics.surplus_units, metrics.missing_units, report.resent_events) == (8, 0, 0)


async def test_an_openmeter_that_counts_twice_is_found_out_and_sent_nothing_more(
    valkey: Valkey, client: Redis, keys: Keys, charges: Charges
) -> None:
    meter = OpenMeter(OpenMeterConfig(dedupe=False))
    async with Server(meter.app()) as server, auditing(client, keys, settings(server.url)) as audits:
        charges.charge("tpp-1", 5)
        await deliver(client, valkey, keys, server.url)
        charges.charge("tpp-1", 6)
        charges.charge("tpp-2", 7)
        meter.faults.script(LOSE)
        await deliver(client, valkey, keys, server.url)
        assert (await audits.audit()).resent_events == 3
        charges.charge("tpp-3", 8)
        meter.faults.script(LOSE)
        await deliver(client, valkey, keys, server.url)
        report = await audits.audit(SETTLE_S)
        assert {(row.account, row.state) for row in report.rows} == {
            ("tpp-1", RowState.SURPLUS),
            ("tpp-3", RowState.MISSING),
        }
        assert report.resent_events == 0
        assert any("sink.dedupe.enabled must be on" in problem for problem in report.problems)


async def test_every_hour_is_compared_by_itself_and_those_too_old_or_not_counted_are_not(
    valkey: Valkey, client: Redis, keys: Keys, meter: OpenMeter, url: str, charges: Charges
) -> None:
    now_ms = server_ms(valkey)
    this_hour = now_ms // HOUR_MS
    for back in (6, 3, 2, 1):
        charges.now_ms = (this_hour - back) * HOUR_MS
        charges.charge("tpp-1", back)
        charges.now_ms += HOUR_MS - 1
        charges.charge("tpp-1", 10 * back)
    await deliver(client, valkey, keys, url)
    async with auditing(client, keys, settings(url), Audit(hours=5)) as audits:
        audits.now_ms = this_hour * HOUR_MS + SETTLE_S * 1000
        report = await audits.audit()
    assert [(hour.hour - this_hour, hour.ledger_units, hour.openmeter_units) for hour in report.hours] == [
        (-3, 33, 33),
        (-2, 22, 22),
        (-1, 11, 11),
    ]
    assert report.agrees


async def test_an_hour_is_not_compared_before_it_is_over_and_has_settled(
    valkey: Valkey, client: Redis, keys: Keys, meter: OpenMeter, url: str, charges: Charges
) -> None:
    charges.now_ms = (server_ms(valkey) // HOUR_MS - 1) * HOUR_MS
    charges.charge("tpp-1", 5)
    async with auditing(client, keys, settings(url)) as audits:
        audits.now_ms = charges.now_ms + HOUR_MS + SETTLE_S * 1000 - 1
        assert (await audits.audit()).hours == ()
        audits.now_ms += 1
        assert len((await audits.audit()).hours) == 1


async def test_several_metrics_are_compared_by_their_own_meters_and_one_without_is_a_problem(
    valkey: Valkey, client: Redis, keys: Keys, charges: Charges
) -> None:
    meters = (DEFAULT_METERS[0], replace(DEFAULT_METERS[0], slug="payments"), replace(DEFAULT_METERS[1], slug="calls"))
    meter = OpenMeter(OpenMeterConfig(meters=meters))
    async with Server(meter.app()) as server, auditing(client, keys, settings(server.url)) as audits:
        charges.charge("tpp-1", 5)
        charges.charge("tpp-1", 6, metric="payments")
        await deliver(client, valkey, keys, server.url)
        charges.charge("tpp-2", 7, metric="payments")
        meter.faults.script(LOSE)
        await deliver(client, valkey, keys, server.url)
        [row] = (await audits.audit()).rows
        assert (row.account, row.metric, row.difference) == ("tpp-2", "payments", 7)
        assert (await audits.audit(SETTLE_S)).agrees
        charges.charge("tpp-1", 1, metric="reports")
        charges.charge("tpp-1", 1, metric="calls")
        await deliver(client, valkey, keys, server.url)
        report = await audits.audit(SETTLE_S)
    assert report.problems == (
        "OpenMeter's meter calls is not the SUM of $.units of api.call, so it cannot be compared",
        "OpenMeter has no meter reports; `sidecar catalog apply` makes it",
    )
    assert report.rows == ()
    assert {hour.state for hour in report.hours} == {HourState.UNKNOWN}
    assert not report.agrees


async def test_while_openmeter_is_away_nothing_is_known_and_nothing_is_sent(
    valkey: Valkey, client: Redis, keys: Keys, url: str, meter: OpenMeter, charges: Charges
) -> None:
    charges.charge("tpp-1", 5)
    await deliver(client, valkey, keys, url)
    away = settings("http://127.0.0.1:9")
    async with auditing(client, keys, away) as audits:
        report = await audits.audit()
    assert [hour.state for hour in report.hours] == [HourState.UNKNOWN]
    assert [hour.openmeter_units for hour in report.hours] == [None]
    assert "cannot be reached" in report.problems[0]
    metrics = audits.auditor.metrics
    assert (metrics.failures, metrics.last_audit_s, metrics.missing_units) == (1, None, 0)
    async with auditing(client, keys, settings(url)) as audits:
        assert (await audits.audit()).agrees
    assert audits.auditor.metrics.last_audit_s is not None


async def test_events_that_openmeter_does_not_take_again_are_tried_at_the_next_audit(
    valkey: Valkey, client: Redis, keys: Keys, url: str, meter: OpenMeter, charges: Charges
) -> None:
    charges.charge("tpp-1", 5)
    meter.faults.script(LOSE)
    await deliver(client, valkey, keys, url)
    meter.faults.always(OpenMeterFault(status=503))
    async with auditing(client, keys, settings(url)) as audits:
        report = await audits.audit()
        assert report.resent_events == 0
        assert "does not take events that are sent again: 503" in report.problems[0]
        meter.faults.clear()
        assert (await audits.audit(1)).resent_events == 1
        assert (await audits.audit(SETTLE_S)).agrees


async def test_a_backlog_too_large_to_be_counted_makes_nothing_missing(
    valkey: Valkey,
    client: Redis,
    keys: Keys,
    url: str,
    meter: OpenMeter,
    charges: Charges,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sidecar.metering.audit.streams.ENTRIES_MAX", {"outbox": 10, "dead": 10, "sent": 10})
    for _ in range(40):
        charges.charge("tpp-1", 1)
    async with auditing(client, keys, settings(url)) as audits:
        report = await audits.audit()
    assert [(row.state, row.difference) for row in report.rows] == [(RowState.PENDING, 0)]
    assert "too much waits in the outbox" in report.problems[0]


async def test_an_hour_that_agrees_while_not_all_that_waits_was_seen_is_compared_again(
    valkey: Valkey,
    client: Redis,
    keys: Keys,
    url: str,
    meter: OpenMeter,
    charges: Charges,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert charges.now_ms is not None
    charges.now_ms -= HOUR_MS
    charges.charge("tpp-1", 5)
    await deliver(client, valkey, keys, url)
    charges.now_ms += HOUR_MS
    for _ in range(40):
        charges.charge("tpp-1", 1)
    last_hour = charges.now_ms // HOUR_MS - 1
    async with auditing(client, keys, settings(url)) as audits:
        audits.now_ms = charges.now_ms + SETTLE_S * 1000
        with monkeypatch.context() as limited:
            limited.setattr("sidecar.metering.audit.streams.ENTRIES_MAX", {"outbox": 10, "dead": 10, "sent": 10})
            assert (await audits.audit()).problems
        assert await Hours(client, keys).notes([last_hour], "agreed") == {last_hour: [None]}
        assert (await audits.audit()).agrees
        assert await Hours(client, keys).notes([last_hour], "agreed") == {last_hour: [b"1 5"]}


async def test_what_was_accepted_hours_ago_is_found_in_the_tail(
    valkey: Valkey, client: Redis, keys: Keys, url: str, meter: OpenMeter, charges: Charges
) -> None:
    assert charges.now_ms is not None
    meter.faults.always(LOSE)
    charges.now_ms -= 3 * HOUR_MS
    for _ in range(2):
        charges.charge("tpp-1", 5)
        charges.now_ms += HOUR_MS
    await deliver(client, valkey, keys, url)
    meter.faults.clear()
    tail = keys.sent(keys.partition("tpp-1"))
    entries = valkey.xrange(tail)
    valkey.delete(tail)
    for _, fields in entries:
        valkey.xadd(tail, fields, id=f"{int(fields[b't']) + 1_000}-0")
    async with auditing(client, keys, settings(url)) as audits:
        assert (await audits.audit()).resent_events == 2
    assert metered(meter) == charges.charged


async def test_the_loop_audits_until_it_is_stopped_and_outlives_a_valkey_that_is_away(
    valkey: Valkey, client: Redis, keys: Keys, url: str, meter: OpenMeter, charges: Charges
) -> None:
    charges.now_ms = server_ms(valkey) - 2 * HOUR_MS
    charges.charge("tpp-1", 5)
    await deliver(client, valkey, keys, url)
    stop = asyncio.Event()
    async with (
        auditing(client, keys, settings(url), Audit(interval_s=0)) as audits,
        Redis(host="127.0.0.1", port=9, retry=Retry(NoBackoff(), 0)) as nowhere,
        auditing(nowhere, keys, settings(url), Audit(interval_s=0)) as lost,
    ):
        loops = asyncio.gather(audits.auditor.run(stop), lost.auditor.run(stop))
        await until(lambda: audits.auditor.metrics.audits > 2 and lost.auditor.metrics.failures > 2)
        stop.set()
        await asyncio.wait_for(loops, 10)
    assert audits.auditor.metrics.hours_agreed == 1


async def test_progress_is_told_hour_by_hour(
    valkey: Valkey, client: Redis, keys: Keys, url: str, meter: OpenMeter, charges: Charges
) -> None:
    for back in (3, 2, 1):
        charges.now_ms = server_ms(valkey) - (back + 1) * HOUR_MS
        charges.charge("tpp-1", 1)
    told: list[tuple[int, int]] = []
    async with auditing(client, keys, settings(url)) as audits:
        await audits.auditor.audit(audits.now_ms, lambda done, of: told.append((done, of)))
    assert told == [(1, 3), (2, 3), (3, 3)]


def server_ms(valkey: Valkey) -> int:
    seconds, micros = valkey.time()
    return int(seconds) * 1000 + int(micros) // 1000


async def test_one_pass_counts_all_hours_and_a_second_one_those_that_have_changed(
    valkey: Valkey,
    client: Redis,
    keys: Keys,
    url: str,
    charges: Charges,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    passes: list[tuple[int, list[int]]] = []
    read = Hours.read

    async def noted(hours: Hours, numbers: Collection[int], cells_of: Collection[int] = ()) -> HourCounts:
        passes.append((len(numbers), [this_hour - hour for hour in cells_of]))
        return await read(hours, numbers, cells_of)

    monkeypatch.setattr(Hours, "read", noted)
    this_hour = server_ms(valkey) // HOUR_MS
    for back in (3, 2, 1):
        charges.now_ms = (this_hour - back) * HOUR_MS
        charges.charge("tpp-1", back)
    await deliver(client, valkey, keys, url)
    async with auditing(client, keys, settings(url), Audit(hours=3)) as audits:
        audits.now_ms = this_hour * HOUR_MS + SETTLE_S * 1000
        assert (await audits.audit()).agrees
        assert passes == [(3, [3, 2, 1])]
        assert (await audits.audit()).agrees
        assert passes[1:] == [(3, [])]
        charges.now_ms = (this_hour - 2) * HOUR_MS
        charges.charge("tpp-1", 7)
        await deliver(client, valkey, keys, url)
        report = await audits.audit()
        assert passes[2:] == [(3, []), (1, [2])]
        assert [hour.ledger_units for hour in report.hours] == [3, 9, 1]
        assert report.agrees


async def test_an_event_counts_in_the_hour_of_its_accounts_period(
    valkey: Valkey, client: Redis, keys: Keys, url: str, meter: OpenMeter, charges: Charges
) -> None:
    """The server's clock went back behind the beginning of the account's period."""
    this_hour = server_ms(valkey) // HOUR_MS
    start_ms = (this_hour - 1) * HOUR_MS + 5_000
    valkey.set(keys.state("tpp-1"), state([], start_ms=start_ms))
    charges.now_ms = (this_hour - 3) * HOUR_MS
    charges.charge("tpp-1", 5)
    [(_, fields)] = valkey.xrange(keys.outbox(keys.partition("tpp-1")))
    assert orjson.loads(fields[b"a"]) == {"tpp-1": start_ms}
    meter.faults.script(LOSE)
    async with auditing(client, keys, settings(url)) as audits:
        audits.now_ms = this_hour * HOUR_MS + SETTLE_S * 1000
        [row] = (await audits.audit()).rows
        assert (row.hour, row.state) == (this_hour - 1, RowState.PENDING)
        await deliver(client, valkey, keys, url)
        tail = keys.sent(keys.partition("tpp-1"))
        [(_, fields)] = valkey.xrange(tail)
        valkey.delete(tail)
        valkey.xadd(tail, fields, id=f"{charges.now_ms}-0")
        [row] = (await audits.audit()).rows
        assert (row.hour, row.state, row.resent) == (this_hour - 1, RowState.MISSING, 1)
        assert (await audits.audit(SETTLE_S)).agrees
    assert [stored.time_s for stored in meter.store.events()] == [start_ms // 1000]


async def test_an_account_whose_counts_cannot_be_read_is_a_problem_of_the_audit(
    valkey: Valkey, client: Redis, keys: Keys, url: str, charges: Charges
) -> None:
    for number in range(8):
        charges.charge(f"tpp-{number}", 5)
    await deliver(client, valkey, keys, url)
    for number in range(7):
        valkey.set(keys.state(f"tpp-{number}"), b"junk")
    async with auditing(client, keys, settings(url)) as audits:
        report = await audits.audit()
    assert [row.state for row in report.rows] == [RowState.SURPLUS] * 7
    assert len(report.problems) == 6
    assert "the ledger's counts of account tpp-" in report.problems[0]
    assert report.problems[5] == "the ledger's counts of 7 accounts or more cannot be read"


async def test_no_query_is_needed_where_nothing_was_charged(client: Redis, keys: Keys, valkey: Valkey) -> None:
    async with auditing(client, keys, settings("http://127.0.0.1:9")) as audits:
        report = await audits.audit()
    assert (report.hours, report.rows, report.problems, report.agrees) == ((), (), (), True)
