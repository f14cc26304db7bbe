"""Publishers send watermarks, and OpenMeter shows them apart from usage."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from redis.asyncio import Redis

from sidecar.ledger.hours import HOUR_MS, Hours
from sidecar.ledger.keys import Keys
from sidecar.metering.audit.hourly_counts import HourlyCounts
from sidecar.metering.audit.resend import Resent, resend_kept
from sidecar.metering.audit.streams import Streams
from sidecar.metering.openmeter.meter_query import AnswerTooLarge, Meter, MeterQuery, UsageRow
from sidecar.metering.outbox.events import EventAttributes
from sidecar.metering.publisher.sender import Sender
from sidecar.metering.publisher.watermark_sender import LOOK_S, WatermarkSender
from sidecar.metering.watermarks import MARGIN_MS, METRIC, covered_until_ms, ledger_name, subject_of
from sidecar.sandbox.openmeter.openmeter_faults import OpenMeterFault
from sidecar.sandbox.openmeter.openmeter_server import OpenMeter
from tests.integration.metering.audit_kit import Charges
from tests.integration.metering.kit import Valkey, outbox_is_empty, publishing, settings, until


def server_ms(valkey: Valkey) -> int:
    seconds, micros = valkey.time()
    return int(seconds) * 1000 + int(micros) // 1000


async def deliver(client: Redis, valkey: Valkey, keys: Keys, url: str) -> None:
    async with publishing(client, keys, settings(url)):
        await until(lambda: outbox_is_empty(valkey, keys))


class MovedClock:
    """Monotonic time that a test moves."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def now_s(self) -> float:
        return self.now

    def monotonic_s(self) -> float:
        return self.now

    async def wait(self, event: asyncio.Event, timeout_s: float) -> bool:
        raise AssertionError("nothing waits here")


@pytest.fixture
def charges(valkey: Valkey, keys: Keys) -> Charges:
    charges = Charges(valkey, keys, None)
    charges.charge("tpp-1", 5)
    return charges


async def test_each_hour_has_a_watermark_of_each_partition(
    valkey: Valkey, client: Redis, keys: Keys, meter: OpenMeter, url: str, charges: Charges
) -> None:
    clock = MovedClock()
    how = settings(url, batch_events_max=3)
    watermarks = WatermarkSender(client, keys, how, clock)
    hour_ms = server_ms(valkey) // HOUR_MS * HOUR_MS
    ledger = await ledger_name(client, keys)
    assert ledger is not None
    async with Sender(how, clock) as sender, MeterQuery(how) as query:

        async def covered() -> int | None:
            rows = await query.usage("api_calls", hour_ms - HOUR_MS, hour_ms + 2 * HOUR_MS, of=METRIC)
            return covered_until_ms(ledger, keys.partitions, rows)

        await watermarks.send_if_due(sender)
        assert (meter.counts.requests, await covered()) == (0, None), "many starts are short"
        clock.now += LOOK_S
        meter.faults.script(OpenMeterFault(), OpenMeterFault(status=503))
        await watermarks.send_if_due(sender)
        assert await covered() is None, "one partition lacks its own"
        clock.now += LOOK_S
        await watermarks.send_if_due(sender)
        assert await covered() == hour_ms - MARGIN_MS or server_ms(valkey) // HOUR_MS * HOUR_MS > hour_ms
        sent = meter.counts.requests
        for _ in range(5):
            clock.now += LOOK_S
            await watermarks.send_if_due(sender)
        assert meter.counts.requests == sent or server_ms(valkey) // HOUR_MS * HOUR_MS > hour_ms
        assert {stored.subject for stored in meter.store.events()} == {
            f"quota-sidecar-watermark.{ledger}.{partition:02d}" for partition in range(keys.partitions)
        }
        rows = await query.usage("api_calls", hour_ms - HOUR_MS, hour_ms + 2 * HOUR_MS)
        assert all(row.subject == "tpp-1" for row in rows), "no account has them"


async def test_a_watermark_tells_of_its_own_ledger_alone(client: Redis, keys: Keys, charges: Charges) -> None:
    ledger = await ledger_name(client, keys)
    assert ledger
    rows = [type("Row", (), {"subject": f"quota-sidecar-watermark.other.{partition:02d}", "window_start_ms": 0,
                             "units": 1})() for partition in range(keys.partitions)]  # fmt: skip
    assert covered_until_ms(ledger, keys.partitions, rows) is None
    assert covered_until_ms("other", keys.partitions, rows) == -MARGIN_MS


async def test_where_there_is_no_ledger_there_are_no_watermarks(
    client: Redis, keys: Keys, meter: OpenMeter, url: str
) -> None:
    clock = MovedClock()
    watermarks = WatermarkSender(client, keys, settings(url), clock)
    clock.now += LOOK_S
    async with Sender(settings(url), clock) as sender:
        await watermarks.send_if_due(sender)
    assert meter.counts.requests == 0


# Sending again by hand


async def test_an_operator_sends_again_what_happened_in_a_time(
    valkey: Valkey, client: Redis, keys: Keys, meter: OpenMeter, url: str, charges: Charges
) -> None:
    charges.charge("tpp-2", 2, 3)
    meter.faults.always(OpenMeterFault(lose=True))
    await deliver(client, valkey, keys, url)
    meter.faults.clear()
    now_ms = server_ms(valkey)
    before = await resend_kept(client, keys, settings(url), now_ms - 2 * HOUR_MS, now_ms - HOUR_MS)
    assert before == Resent()
    counted = await resend_kept(client, keys, settings(url), now_ms - HOUR_MS, now_ms + 1, dry_run=True)
    assert (counted, list(meter.store.events())) == (Resent(events=3, units=10), [])
    one = await resend_kept(client, keys, settings(url), now_ms - HOUR_MS, now_ms + 1, "tpp-2")
    assert one == Resent(events=2, units=5, sent=2)
    everything = await resend_kept(client, keys, settings(url), now_ms - HOUR_MS, now_ms + 1)
    assert everything == Resent(events=3, units=10, sent=3)
    assert sorted(stored.subject for stored in meter.store.events()) == ["tpp-1", "tpp-2", "tpp-2"], "each once"


async def test_an_openmeter_that_takes_nothing_is_said(
    valkey: Valkey, client: Redis, keys: Keys, meter: OpenMeter, url: str, charges: Charges
) -> None:
    await deliver(client, valkey, keys, url)
    meter.faults.always(OpenMeterFault(status=401))
    now_ms = server_ms(valkey)
    found = await resend_kept(client, keys, settings(url), now_ms - HOUR_MS, now_ms + 1)
    assert (found.sent, found.failure) == (0, "401 injected fault")


# What the audit looks at


class FewRows:
    """A query whose answers have no room for more than ``hours`` hours of watermarks."""

    def __init__(self, ledger: str, keys: Keys, newest_ms: int, hours: int) -> None:
        self._rows = [
            UsageRow(subject_of(ledger, partition), newest_ms - hour * HOUR_MS, 1)
            for partition in range(keys.partitions)
            for hour in range(200)
        ]
        self._hours = hours

    async def meter(self, slug: str) -> Meter:
        return Meter(slug, "SUM", "$.units", "api.call", {"metric": "$.metric"})

    async def usage(self, metric: str, from_ms: int, to_ms: int, *, of: str | None = None) -> Sequence[UsageRow]:
        if of is None:
            return ()
        if to_ms - from_ms > self._hours * HOUR_MS:
            raise AnswerTooLarge(0)
        return [row for row in self._rows if from_ms <= row.window_start_ms < to_ms]


async def test_watermarks_of_many_hours_are_looked_for_among_the_newest(
    valkey: Valkey, client: Redis, keys: Keys, charges: Charges
) -> None:
    """A thousand partitions for a week, or several ledgers that share an OpenMeter, are more than one answer has."""
    ledger = await ledger_name(client, keys)
    assert ledger
    hour = server_ms(valkey) // HOUR_MS
    query: Any = FewRows(ledger, keys, hour * HOUR_MS, 20)
    streams = Streams(client, keys, EventAttributes("bank", "api.call"))
    counts = HourlyCounts(Hours(client, keys), streams, query, "api.call", ledger, keys.partitions)
    await counts.collect(range(hour - 166, hour + 1))
    assert counts.covered_until_ms == hour * HOUR_MS - MARGIN_MS
    assert counts.problems == []


async def test_a_token_that_was_replaced_is_read_again_for_watermarks(
    client: Redis, keys: Keys, url: str, meter: OpenMeter, charges: Charges
) -> None:
    """At night nothing else is sent, so nobody else reads it again."""
    clock = MovedClock()
    reloads: list[int] = []

    class Reloading(Sender):
        def reload_token(self) -> None:
            reloads.append(1)
            super().reload_token()

    watermarks = WatermarkSender(client, keys, settings(url), clock)
    clock.now += LOOK_S
    meter.faults.script(OpenMeterFault(status=401))
    async with Reloading(settings(url), clock) as sender:
        await watermarks.send_if_due(sender)
    assert reloads == [1]
