"""From the outbox to OpenMeter when all is well."""

from __future__ import annotations

from pathlib import Path

import pytest
from redis.asyncio import Redis

from sidecar.ledger.keys import Keys
from sidecar.metering.publisher.publisher import Publisher
from sidecar.metering.publisher.sender import MeteringError
from sidecar.metering.settings import MeteringSettings
from sidecar.sandbox.openmeter.openmeter_server import OpenMeter, OpenMeterConfig
from sidecar.sandbox.server import Server
from tests.integration.metering.kit import (
    RefusingProxy,
    Valkey,
    fill,
    outbox_is_empty,
    publishing,
    settings,
    stored_ids,
    until,
)


async def test_every_event_arrives_once_and_the_outbox_is_empty_afterwards(
    valkey: Valkey, client: Redis, keys: Keys, meter: OpenMeter, url: str
) -> None:
    ids = fill(valkey, keys, 200, lambda number: number % 9)
    async with publishing(client, keys, settings(url, batch_events_max=50)) as publisher:
        await until(lambda: outbox_is_empty(valkey, keys))
        ids |= fill(valkey, keys, 40, origin="late")
        await until(lambda: outbox_is_empty(valkey, keys))
    assert stored_ids(meter) == dict.fromkeys(ids, 1)
    assert meter.counts.duplicates == 0
    assert publisher.metrics.events_delivered == len(ids)
    assert publisher.metrics.events_in_progress == 0


@pytest.mark.parametrize(
    ("limits", "events_max", "bytes_max"),
    [
        ({"batch_events_max": 7}, 7, 1_000_000),
        ({"batch_bytes_max": 3_000}, 500, 3_000),
        ({"batch_events_max": 1}, 1, 1_000_000),
    ],
)
async def test_no_request_exceeds_its_limits_and_all_have_the_exact_content_type(
    valkey: Valkey,
    client: Redis,
    keys: Keys,
    meter: OpenMeter,
    limits: dict[str, int],
    events_max: int,
    bytes_max: int,
) -> None:
    gatekeeper = RefusingProxy()
    async with Server(gatekeeper.app(meter)) as server:
        ids = fill(valkey, keys, 30, lambda number: 1 + number % 5)
        async with publishing(client, keys, settings(server.url, **limits)):
            await until(lambda: outbox_is_empty(valkey, keys))
    assert stored_ids(meter) == dict.fromkeys(ids, 1)
    assert gatekeeper.content_types == {"application/cloudevents-batch+json"}
    assert max(events for events, _ in gatekeeper.requests) <= events_max
    assert max(size for _, size in gatekeeper.requests) <= bytes_max


async def test_events_of_many_entries_travel_together(
    valkey: Valkey, client: Redis, keys: Keys, meter: OpenMeter, url: str
) -> None:
    fill(valkey, keys, 28, lambda number: 1)
    async with publishing(client, keys, settings(url)):
        await until(lambda: outbox_is_empty(valkey, keys))
    assert meter.counts.requests == 1


async def test_a_backlog_travels_in_full_batches(valkey: Valkey, client: Redis, keys: Keys, meter: OpenMeter) -> None:
    gatekeeper = RefusingProxy()
    ids = fill(valkey, keys, 1_000, lambda number: 2)
    async with (
        Server(gatekeeper.app(meter)) as server,
        publishing(client, keys, settings(server.url, batch_events_max=100)),
    ):
        await until(lambda: outbox_is_empty(valkey, keys))
    assert len(stored_ids(meter)) == len(ids)
    assert [events for events, _ in gatekeeper.requests] == [100] * 20


async def test_a_publisher_that_has_delivered_everything_leaves_no_consumer_behind(
    valkey: Valkey, client: Redis, keys: Keys, url: str
) -> None:
    fill(valkey, keys, 8)
    async with publishing(client, keys, settings(url)):
        await until(lambda: outbox_is_empty(valkey, keys))
        assert valkey.xinfo_consumers(keys.outbox(0), "publishers") != []
    for partition in range(keys.partitions):
        assert valkey.xinfo_consumers(keys.outbox(partition), "publishers") == []


async def test_a_token_is_sent_and_never_shown(
    valkey: Valkey,
    client: Redis,
    keys: Keys,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    meter = OpenMeter(OpenMeterConfig(token="om_5tr1ctly-private"))
    (tmp_path / "token").write_text("om_5tr1ctly-private\n")
    async with Server(meter.app()) as server:
        ids = fill(valkey, keys, 8)
        how = settings(server.url, token_file=tmp_path / "token")
        async with publishing(client, keys, how) as publisher:
            await until(lambda: outbox_is_empty(valkey, keys))
            shown = repr(publisher)
    assert stored_ids(meter) == dict.fromkeys(ids, 1)
    out, err = capsys.readouterr()
    assert "private" not in out + err + shown


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "metering.url is not set"),
        (
            {"url": "http://127.0.0.1:1", "token_file": "{dir}/none"},
            "metering.token_file: .*none: No such file or directory",
        ),
        (
            {"url": "http://127.0.0.1:1", "token_file": "{dir}/spaces"},
            "metering.token_file: .*spaces: a token is one or more",
        ),
        (
            {"url": "http://127.0.0.1:1", "token_file": "{dir}/large"},
            "metering.token_file: .*large is larger than 16384 bytes",
        ),
        (
            {"url": "https://127.0.0.1:1", "ca_file": "{dir}/none"},
            "metering.ca_file: .*none: No such file or directory",
        ),
        ({"url": "https://127.0.0.1:1", "ca_file": "{dir}/spaces"}, "metering.ca_file: .*spaces holds no certificate"),
    ],
)
async def test_what_cannot_be_used_is_named_before_anything_is_read(
    client: Redis, keys: Keys, tmp_path: Path, values: dict[str, str], message: str
) -> None:
    (tmp_path / "spaces").write_text("not one word")
    (tmp_path / "large").write_text("x" * 20_000)
    how = MeteringSettings.model_validate({name: value.format(dir=tmp_path) for name, value in values.items()})
    with pytest.raises(MeteringError, match=message):
        await Publisher(client, keys, how).run()
