"""The archive has everything that left the outbox, and nothing leaves before it is there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from redis.asyncio import Redis

from sidecar.ledger.keys import Keys
from sidecar.metering.archive.archive_place import ArchiveError, archive_place
from sidecar.metering.archive.archived_entries import ArchivedEntry, UnreadableLine
from sidecar.sandbox.openmeter.openmeter_server import OpenMeter
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
    until,
)


def archived(directory: Path) -> list[ArchivedEntry]:
    place = archive_place(str(directory))
    return [ArchivedEntry.from_line(line) for name in place.names() for line in place.lines(name)]


def ids(entries: list[ArchivedEntry]) -> set[str]:
    found = set()
    for each in entries:
        for number in range(each.fields[b"e"].count(b"api_calls")):
            if number not in each.refused:
                found.add(f"{each.fields[b'o'].decode()}.{each.fields[b'q'].decode()}.{number}")
    return found


def where(directory: Path, **more: int) -> dict[str, object]:
    return {"archive": {"directory": str(directory), **more}}


async def test_all_that_was_delivered_is_in_the_archive(
    client: Redis, valkey: Valkey, keys: Keys, meter: OpenMeter, url: str, tmp_path: Path
) -> None:
    directory = tmp_path / "new" / "archive"
    expected = fill(valkey, keys, 200)
    valkey.xadd(keys.outbox(1), {**entry("gw.01", 7, [event()]), b"c": bytes(range(224, 256)), b"a": b'{"tpp-1":5}'})
    async with publishing(client, keys, settings(url, **where(directory, bytes_max=65_536))) as publisher:
        await until(lambda: outbox_is_empty(valkey, keys))
    entries = archived(directory)
    assert ids(entries) == expected | {"gw.01.7.0"}
    assert len(entries) == 201 == publisher.metrics.entries_archived
    (special,) = [each for each in entries if b"c" in each.fields]
    assert special.fields[b"c"] == bytes(range(224, 256))
    assert special.fields[b"a"] == b'{"tpp-1":5}'
    assert (special.partition, special.order[0] > 0) == (1, True)
    assert {path.stat().st_mode & 0o777 for path in directory.iterdir()} == {0o600}
    assert directory.stat().st_mode & 0o777 == 0o700
    assert all(path.stat().st_size <= 65_536 for path in directory.iterdir())
    assert len(list(directory.iterdir())) > 1, "a file ends at bytes_max"


async def test_an_archive_that_cannot_be_written_keeps_entries_in_the_outbox(
    client: Redis, valkey: Valkey, keys: Keys, meter: OpenMeter, url: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("no directory")
    directory = tmp_path / "file" / "archive"
    expected = fill(valkey, keys, 20)
    async with publishing(client, keys, settings(url, **where(directory))) as publisher:
        await until(lambda: publisher.metrics.archive_failures > 1)
        assert sum(valkey.xlen(keys.outbox(p)) for p in range(keys.partitions)) == 20
        (tmp_path / "file").unlink()
        await until(lambda: outbox_is_empty(valkey, keys))
    assert ids(archived(directory)) == expected
    assert len(archived(directory)) == 20


async def test_refused_events_are_marked_and_their_entry_stays_whole(
    client: Redis, valkey: Valkey, keys: Keys, meter: OpenMeter, url: str, tmp_path: Path
) -> None:
    chained = {"c": b"x" * 32}
    valkey.xadd(keys.outbox(0), entry("gw.00", 1, [event(), event("poison"), event()]) | chained)
    valkey.xadd(keys.outbox(0), entry("gw.00", 2, [event("poison")]) | chained)
    gatekeeper = RefusingProxy(first_poisoned)
    async with (
        Server(gatekeeper.app(meter)) as server,
        publishing(client, keys, settings(server.url, **where(tmp_path))),
    ):
        await until(lambda: outbox_is_empty(valkey, keys))
    assert [each.refused for each in sorted(archived(tmp_path), key=lambda each: each.order)] == [{1}, {0}]
    assert sorted(f[b"x"] for _, f in valkey.xrange(keys.sent(0))) == [b"0", b"1"], "the next entry proves it"


def test_a_line_is_read_as_it_was_written() -> None:
    whole = ArchivedEntry(3, "5-1", 7, {b"o": b"gw", b"e": b"\xff[", b"c": b"text" * 8}, frozenset({2}))
    assert ArchivedEntry.from_line(whole.to_line()) == whole
    for damaged in (b"", b"{}\n", b"[1]\n", whole.to_line()[:-9], b'{"fields":{"o":1}}'):
        with pytest.raises(UnreadableLine):
            ArchivedEntry.from_line(damaged)


def test_a_file_is_never_written_over(tmp_path: Path) -> None:
    place = archive_place(str(tmp_path))
    place.append("a.jsonl", b"1\n")
    place.append("a.jsonl", b"2\n")
    with pytest.raises(ArchiveError, match="exists"):
        archive_place(str(tmp_path)).append("a.jsonl", b"3\n")
    assert (tmp_path / "a.jsonl").read_bytes() == b"1\n2\n"
    os.mkfifo(tmp_path / "b.jsonl")
    with pytest.raises(ArchiveError):
        place.append("b.jsonl", b"")


def test_an_object_store_is_reached_through_fsspec(tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    place = archive_place("memory://bucket/archive")
    assert not place.grows
    place.append("a.jsonl", b"1\n2\n")
    assert place.names() == ["a.jsonl"]
    assert list(place.lines("a.jsonl")) == [b"1\n", b"2\n"]
    with pytest.raises(ArchiveError, match="exists"):
        place.append("a.jsonl", b"3\n")
    with pytest.raises(ArchiveError, match="nosuchstore"):
        archive_place("nosuchstore://x")
    assert fsspec
