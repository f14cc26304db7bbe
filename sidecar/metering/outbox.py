"""The outbox streams as one consumer of the group ``publishers`` sees them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgpack
from redis.exceptions import ResponseError

from sidecar.ledger.keys import Keys
from sidecar.metering import scripts
from sidecar.metering.batches import Entry
from sidecar.metering.calls import Call, Client, call_each, raise_first, script_call

GROUP = "publishers"

COUNT_MIN, COUNT_MAX = 8, 256
"""Entries asked of a stream at once: few of one that was empty, twice as many each time that it gave all."""

IDS_MAX = 250
"""Ids in one call of a script, which keeps every call well below a millisecond of the server's only thread."""

CLAIM_COUNT = 16

ENTRY_BYTES_ASSUMED = 32_768
"""Size of the entries of a stream before one has been seen; that of a busy gateway holds hundreds of events."""


@dataclass(frozen=True, slots=True)
class Reading:
    """``more``: a stream gave as many entries as it was asked for. ``errors``: of streams that could not be read."""

    entries: list[Entry]
    more: bool
    errors: list[Exception]


@dataclass(frozen=True, slots=True)
class Measure:
    """``entries`` in all outboxes, read by a publisher or not; age of the oldest in seconds, 0 if there is none."""

    entries: int
    oldest_s: float
    dead_letters: int


@dataclass(slots=True)
class _Window:
    count: int = COUNT_MIN
    entry_bytes: int = ENTRY_BYTES_ASSUMED


class Outbox:
    """Reads, takes over and finishes entries as ``consumer``, a name that no other process may have.

    Every method raises RedisError or OSError when Valkey cannot be reached.
    """

    def __init__(self, client: Client, keys: Keys, consumer: str) -> None:
        self._client = client
        self._consumer = consumer
        self._outboxes = [keys.outbox(partition) for partition in range(keys.partitions)]
        self._dead = [keys.dead(partition) for partition in range(keys.partitions)]
        self._windows = [_Window() for _ in self._outboxes]

    def __repr__(self) -> str:
        return f"Outbox({self._consumer}, {len(self._outboxes)} partitions)"

    async def read(self, room_bytes: int) -> Reading:
        """New entries of all partitions, about ``room_bytes`` of them at most. Makes the group where it is missing."""
        share = room_bytes // len(self._outboxes)
        asked = [min(window.count, max(1, share // window.entry_bytes)) for window in self._windows]
        head = ("XREADGROUP", "GROUP", GROUP, self._consumer, "COUNT")
        calls = [
            Call(key, (*head, count, "STREAMS", key, ">")) for key, count in zip(self._outboxes, asked, strict=True)
        ]
        found: list[Entry] = []
        errors: list[Exception] = []
        more = False
        for partition, reply in enumerate(await call_each(self._client, calls)):
            if isinstance(reply, ResponseError) and _is_missing(reply):
                await self._create_group(self._outboxes[partition])
                more = True
            elif isinstance(reply, Exception):
                errors.append(reply)
            else:
                entries = list(_entries(partition, _stream_entries(reply)))
                more |= self._note(self._windows[partition], asked[partition], entries)
                found += entries
        return Reading(found, more, errors)

    def _note(self, window: _Window, asked: int, entries: list[Entry]) -> bool:
        if entries:
            window.entry_bytes = max(1, *(entry.size_bytes for entry in entries))
        full = len(entries) == asked
        window.count = min(COUNT_MAX, max(COUNT_MIN, asked * 2)) if full else COUNT_MIN
        return full

    async def _create_group(self, key: str) -> None:
        # From 0: whatever the stream holds is not delivered. A group is missing at the very first start and after
        # Valkey has lost its data.
        call = Call(key, ("XGROUP", "CREATE", key, GROUP, "0", "MKSTREAM"))
        for reply in await call_each(self._client, [call]):
            if isinstance(reply, ResponseError) and str(reply).startswith("BUSYGROUP"):
                continue
            raise_first([reply])

    async def claim(self, idle_ms: int, room_bytes: int) -> list[Entry]:
        """Takes over entries that no publisher has touched for ``idle_ms``, until there is no more room."""
        found: list[Entry] = []
        cursors: dict[int, bytes] = dict.fromkeys(range(len(self._outboxes)), b"0-0")
        while cursors and room_bytes > 0:
            calls = [
                Call(key, ("XAUTOCLAIM", key, GROUP, self._consumer, idle_ms, cursor, "COUNT", CLAIM_COUNT))
                for key, cursor in ((self._outboxes[partition], cursors[partition]) for partition in cursors)
            ]
            replies = await call_each(self._client, calls)
            for partition, reply in zip(list(cursors), replies, strict=True):
                if isinstance(reply, ResponseError) and _is_missing(reply):
                    del cursors[partition]
                    continue
                raise_first([reply])
                entries = list(_entries(partition, reply[1]))
                found += entries
                room_bytes -= sum(entry.size_bytes for entry in entries)
                cursors[partition] = reply[0]
                if reply[0] == b"0-0":
                    del cursors[partition]
        return found

    async def keep(self, entries: Iterable[Entry]) -> None:
        """Tells the other publishers that these entries are being worked on, unless one has taken them over."""
        calls = [
            script_call(scripts.KEEP, [self._outboxes[partition]], GROUP, self._consumer, _pack(ids))
            for partition, some in _by_partition(entries).items()
            for ids in _chunks([entry.id for entry in some])
        ]
        await self._run(calls)

    async def finish(self, entries: Iterable[Entry]) -> None:
        """Removes entries whose events are all delivered or condemned, and writes their dead letters.

        Repeating it changes nothing.
        """
        calls: list[Call] = []
        for partition, some in _by_partition(entries).items():
            keys = [self._outboxes[partition], self._dead[partition]]
            clean = [entry.id for entry in some if not entry.letters]
            calls += [script_call(scripts.FINISH, keys, GROUP, _pack(ids), _pack([])) for ids in _chunks(clean)]
            for entry in some:
                if entry.letters:
                    condemned = (entry.id, [_flat(letter) for letter in entry.letters])
                    calls.append(script_call(scripts.FINISH, keys, GROUP, _pack([]), _pack([condemned])))
        raise_first(await call_each(self._client, calls))

    async def forget(self, silent_ms: int) -> None:
        """Removes the names of publishers that are gone and owe nothing."""
        await self._run(
            [script_call(scripts.FORGET, [key], GROUP, self._consumer, silent_ms) for key in self._outboxes]
        )

    async def leave(self) -> None:
        """Lets others take over at once whatever this consumer has not finished."""
        await self._run([script_call(scripts.LEAVE, [key], GROUP, self._consumer) for key in self._outboxes])

    async def measure(self) -> Measure:
        """What is in the streams."""
        keys = zip(self._outboxes, self._dead, strict=True)
        replies = await call_each(self._client, [script_call(scripts.MEASURE, pair) for pair in keys])
        raise_first(replies)
        oldest_ms = max(0, *(age_ms for _, age_ms, _ in replies))
        return Measure(sum(reply[0] for reply in replies), oldest_ms / 1000, sum(reply[2] for reply in replies))

    async def _run(self, calls: Sequence[Call]) -> None:
        replies = await call_each(self._client, calls)
        raise_first(r for r in replies if not (isinstance(r, ResponseError) and _is_missing(r)))


def _is_missing(error: ResponseError) -> bool:
    return "NOGROUP" in str(error) or "no such key" in str(error)


def _stream_entries(reply: Any) -> Any:
    """XREADGROUP's entries of its only stream, in each of the shapes that the library has for its reply."""
    if not reply:
        return ()
    if isinstance(reply, dict):
        (entries,) = reply.values()
        return entries[0] if entries and isinstance(entries[0], list) else entries
    return reply[0][1]


def _entries(partition: int, items: Any) -> Iterator[Entry]:
    for id_, fields in items:
        if id_ is not None:  # a trimmed entry, in the reply of servers before 7
            yield Entry(partition, id_, fields, sum(map(len, fields.values())))


def _by_partition(entries: Iterable[Entry]) -> dict[int, list[Entry]]:
    found: dict[int, list[Entry]] = defaultdict(list)
    for entry in entries:
        found[entry.partition].append(entry)
    return found


def _chunks(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), IDS_MAX):
        yield items[start : start + IDS_MAX]


def _flat(letter: dict[bytes, bytes]) -> list[bytes]:
    return [part for field in letter.items() for part in field]


def _pack(value: object) -> bytes:
    return bytes(msgpack.packb(value, use_bin_type=False))  # Valkey's cmsgpack does not know the bin type
