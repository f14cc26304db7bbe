"""What the publisher does while OpenMeter, or what stands before it, does not do as it should."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest
from redis.asyncio import Redis

from sidecar.ledger.keys import Keys
from sidecar.metering.outbox.outbox_status import dead_letters
from sidecar.metering.publisher.ingest_responses import ResponseClass
from sidecar.sandbox.openmeter.openmeter_faults import OpenMeterFault
from sidecar.sandbox.openmeter.openmeter_server import OpenMeter, OpenMeterConfig
from sidecar.sandbox.server import Server
from tests.integration.metering.kit import (
    RefusingProxy,
    Valkey,
    entry,
    event,
    fill,
    first_poisoned,
    outbox_is_empty,
    publishing,
    settings,
    stored_ids,
    until,
)

TROUBLE = (
    OpenMeterFault(status=500, kept=3),
    OpenMeterFault(status=503),
    OpenMeterFault(status=429, retry_after="0"),
    OpenMeterFault(status=408),
    OpenMeterFault(drop="before"),
    OpenMeterFault(drop="after"),
    OpenMeterFault(hang=True),
)


@pytest.mark.parametrize("seed", range(4))
async def test_each_event_is_stored_exactly_once_through_any_mix_of_failures(
    valkey: Valkey, client: Redis, keys: Keys, seed: int
) -> None:
    meter = OpenMeter(OpenMeterConfig(seed=seed))
    for fault in TROUBLE:
        meter.faults.chance(0.08, fault)
    ids = fill(valkey, keys, 150, lambda number: (number * 7 + seed) % 6)
    async with Server(meter.app()) as server:
        how = settings(server.url, batch_events_max=10, timeout_ms=150)
        async with publishing(client, keys, how) as publisher:
            await until(lambda: outbox_is_empty(valkey, keys))
    assert stored_ids(meter) == dict.fromkeys(ids, 1)
    assert meter.counts.duplicates > 0
    assert meter.faults.struck > 10
    assert publisher.metrics.requests[ResponseClass.RETRY] >= meter.faults.struck
    assert await dead_letters(client, keys) == []


@pytest.mark.parametrize("seed", range(3))
async def test_with_refusals_at_random_each_event_is_either_stored_once_or_a_dead_letter(
    valkey: Valkey, client: Redis, keys: Keys, seed: int
) -> None:
    meter = OpenMeter(OpenMeterConfig(seed=seed))
    meter.faults.chance(0.5, OpenMeterFault(status=400))
    meter.faults.chance(0.1, OpenMeterFault(status=413))
    meter.faults.chance(0.1, OpenMeterFault(status=500))
    ids = fill(valkey, keys, 60, lambda number: (number + seed) % 6)
    async with (
        Server(meter.app()) as server,
        publishing(client, keys, settings(server.url, batch_events_max=8, pause_ms=1)) as publisher,
    ):
        await until(lambda: outbox_is_empty(valkey, keys))
    letters = [orjson.loads(letter.event or b"")["id"] for letter in await dead_letters(client, keys)]
    stored = stored_ids(meter)
    assert set(stored.values()) == {1}
    assert sorted([*stored, *letters]) == sorted(ids)
    assert publisher.metrics.dead_letters == len(letters) > 0


@pytest.mark.parametrize("hint", [True, False], ids=["blamed", "not blamed"])
async def test_poisoned_events_become_dead_letters_and_their_neighbours_arrive(
    valkey: Valkey, client: Redis, keys: Keys, meter: OpenMeter, hint: bool
) -> None:
    ids = fill(valkey, keys, 40)
    rows = [event("tpp-1"), event("poison-1", units=5), event("tpp-2"), event("poison-2")]
    valkey.xadd(keys.outbox(1), entry("gw.1", 900, rows))
    async with (
        Server(RefusingProxy(first_poisoned, hint=hint).app(meter)) as server,
        publishing(client, keys, settings(server.url)) as publisher,
    ):
        await until(lambda: outbox_is_empty(valkey, keys))
    assert stored_ids(meter) == dict.fromkeys(ids | {"gw.1.900.0", "gw.1.900.2"}, 1)
    first, second = await dead_letters(client, keys)
    assert [orjson.loads(letter.event or b"")["id"] for letter in (first, second)] == ["gw.1.900.1", "gw.1.900.3"]
    assert orjson.loads(first.event or b"")["data"]["units"] == 5
    assert first.reason.startswith("400 request body has an error")
    assert first.at_ms > 0
    assert publisher.metrics.dead_letters == 2


async def test_bodies_that_are_too_large_are_halved_and_later_ones_made_smaller(
    valkey: Valkey, client: Redis, keys: Keys
) -> None:
    meter = OpenMeter(OpenMeterConfig(body_bytes_max=4_000))
    gatekeeper = RefusingProxy()
    ids = fill(valkey, keys, 150)
    app = gatekeeper.app(meter)
    async with Server(app) as server:
        how = settings(server.url, batch_events_max=100, requests_in_flight_max=1)
        async with publishing(client, keys, how) as publisher:
            await until(lambda: outbox_is_empty(valkey, keys))
            refused = publisher.metrics.requests[ResponseClass.TOO_LARGE]
            ids |= fill(valkey, keys, 150, origin="late")
            await until(lambda: outbox_is_empty(valkey, keys))
    assert stored_ids(meter) == dict.fromkeys(ids, 1)
    assert 0 < refused == publisher.metrics.requests[ResponseClass.TOO_LARGE]
    assert await dead_letters(client, keys) == []


async def test_an_event_that_is_too_large_by_itself_becomes_a_dead_letter(
    valkey: Valkey, client: Redis, keys: Keys
) -> None:
    meter = OpenMeter(OpenMeterConfig(body_bytes_max=1_000))
    rows = [event("tpp-1"), event("tpp-2", interaction_id="x" * 2_000), event("tpp-3")]
    valkey.xadd(keys.outbox(0), entry("gw.0", 1, rows))
    async with Server(meter.app()) as server, publishing(client, keys, settings(server.url)):
        await until(lambda: outbox_is_empty(valkey, keys))
    assert stored_ids(meter) == {"gw.0.1.0": 1, "gw.0.1.2": 1}
    (letter,) = await dead_letters(client, keys)
    assert letter.reason.startswith("413")


async def test_a_refused_token_pauses_until_its_file_holds_the_right_one(
    valkey: Valkey, client: Redis, keys: Keys, tmp_path: Path
) -> None:
    meter = OpenMeter(OpenMeterConfig(token="the-new-one"))
    file = tmp_path / "token"
    file.write_text("the-old-one")
    ids = fill(valkey, keys, 20)
    async with (
        Server(meter.app()) as server,
        publishing(client, keys, settings(server.url, token_file=file)) as publisher,
    ):
        await until(lambda: publisher.metrics.paused)
        assert stored_ids(meter) == {}
        file.unlink()
        tries = publisher.metrics.requests[ResponseClass.PAUSE]
        await until(lambda: publisher.metrics.requests[ResponseClass.PAUSE] > tries + 1)
        file.write_text("the-new-one")
        await until(lambda: outbox_is_empty(valkey, keys))
        assert not publisher.metrics.paused
    assert stored_ids(meter) == dict.fromkeys(ids, 1)
    assert await dead_letters(client, keys) == []


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed_as_it_might_end_in_a_page_that_stores_nothing(
    valkey: Valkey, client: Redis, keys: Keys, meter: OpenMeter, status: int
) -> None:
    gatekeeper = RefusingProxy(status=status, refuse_all=True, headers={"Location": "/api/v1/meters"})
    ids = fill(valkey, keys, 8)
    async with Server(gatekeeper.app(meter)) as server, publishing(client, keys, settings(server.url)) as publisher:
        await until(lambda: publisher.metrics.requests[ResponseClass.PAUSE] > 2)
        gatekeeper.refuse_all = False
        await until(lambda: outbox_is_empty(valkey, keys))
    assert stored_ids(meter) == dict.fromkeys(ids, 1)


async def test_an_unreadable_entry_becomes_a_dead_letter_as_it_is_and_stops_nothing(
    valkey: Valkey, client: Redis, keys: Keys, meter: OpenMeter, url: str
) -> None:
    junk: dict[str, bytes] = {"o": b"gw", "e": b"\x00\xffnot json", "extra": b"1"}
    valkey.xadd(keys.outbox(2), junk)
    valkey.xadd(keys.outbox(2), {f"field-{n}": "x" for n in range(3_000)})
    rows = [event("tpp-1"), event("tpp-2", units="many"), event("tpp-3")]
    valkey.xadd(keys.outbox(2), entry("gw.2", 5, rows))
    ids = fill(valkey, keys, 8)
    async with publishing(client, keys, settings(url)):
        await until(lambda: outbox_is_empty(valkey, keys))
    assert stored_ids(meter) == dict.fromkeys(ids | {"gw.2.5.0", "gw.2.5.2"}, 1)
    unreadable, foreign, flawed = await dead_letters(client, keys)
    assert unreadable.fields == {name.encode(): value for name, value in junk.items()}
    assert (unreadable.reason, unreadable.event) == ("field q is missing", None)
    assert foreign.reason == "field o is missing (2936 fields left out)"
    assert flawed.fields[b"i"] == b"1"
    assert flawed.reason == "account is not a text or units is not a whole number"


async def test_lag_and_age_tell_what_waits(
    valkey: Valkey, client: Redis, keys: Keys, meter: OpenMeter, url: str
) -> None:
    meter.faults.always(OpenMeterFault(status=503))
    ids = fill(valkey, keys, 30, lambda number: 4)
    async with publishing(client, keys, settings(url, buffer_bytes_max=65_536)) as publisher:
        await until(lambda: publisher.metrics.lag_events == len(ids))
        assert publisher.metrics.oldest_s > 0
        meter.faults.clear()
        await until(lambda: publisher.metrics.lag_events == 0)
        assert publisher.metrics.oldest_s == 0
    assert stored_ids(meter) == dict.fromkeys(ids, 1)


async def test_no_more_is_read_than_the_buffer_holds_while_nothing_is_accepted(
    valkey: Valkey, client: Redis, keys: Keys, meter: OpenMeter, url: str
) -> None:
    meter.faults.always(OpenMeterFault(status=503))
    ids = fill(valkey, keys, 1_200, lambda number: 10)
    async with publishing(client, keys, settings(url, buffer_bytes_max=65_536, requests_in_flight_max=1)) as publisher:
        await until(lambda: publisher.metrics.requests[ResponseClass.RETRY] > 20)
        read = publisher.metrics.events_in_progress
        assert 0 < read < len(ids) // 4
        meter.faults.clear()
        await until(lambda: outbox_is_empty(valkey, keys))
    assert stored_ids(meter) == dict.fromkeys(ids, 1)
