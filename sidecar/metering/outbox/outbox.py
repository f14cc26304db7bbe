"""The outbox streams, read by one consumer of the group ``publishers``."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgpack

from sidecar.ledger.keys import Keys
from sidecar.metering.dead_letters import EVENT
from sidecar.metering.outbox import outbox_scripts
from sidecar.metering.publisher.batches import Entry
from sidecar.valkey.calls import VALKEY_ERRORS, Argument, Call, PartitionCalls, is_missing, script_call
from sidecar.valkey.topology import Client

GROUP = "publishers"

NUMBER, SKIPPED = b"i", b"x"
"""Fields of an entry: the number of its first event, and, in the tail, the numbers of those that were not accepted."""

COUNT_MIN, COUNT_MAX = 8, 256
"""Entries asked of a stream at once: few of one that was empty, twice as many each time that it gave all."""

IDS_MAX = 250
"""Ids in one call of a script, which keeps every call well below a millisecond of the server's only thread."""

FINISH_ENTRIES_MAX, FINISH_BYTES_MAX = 100, 262_144
"""Entries, and their bytes, that one call moves to the tail, to the same end."""

CLAIM_COUNT = 16

OLDEST_COUNT, OLDEST_ROUNDS_MAX = 100, 50
"""Dead letters of a partition that are looked at for the oldest, and how often in one go."""

ENTRY_BYTES_ASSUMED = 32_768
"""Size of the entries of a stream before one has been seen; that of a busy gateway holds hundreds of events."""


@dataclass(frozen=True, slots=True)
class Reading:
    """``more``: some stream gave as many entries as it was asked for."""

    entries: list[Entry]
    more: bool


@dataclass(frozen=True, slots=True)
class Retention:
    """How long, in ms, and how many accepted entries are kept in each partition's tail. 0 ms: none."""

    keep_ms: int = 0
    entries_max: int = 0


@dataclass(frozen=True, slots=True)
class Measure:
    """``entries`` in all outboxes, read by a publisher or not; age of the oldest in seconds, 0 if there is none;
    ``sent_entries`` that were accepted and are kept; ``refused_entries`` of settles that no account could take."""

    entries: int
    oldest_s: float
    dead_letters: int
    sent_entries: int
    refused_entries: int = 0


@dataclass(slots=True)
class _Window:
    count: int = COUNT_MIN
    entry_bytes: int = ENTRY_BYTES_ASSUMED


class Outbox:
    """Reads, takes over and finishes entries as ``consumer``, a name that no other process may have.

    ``tail_entries_dropped``: accepted entries that went early, because Valkey had no memory for them.

    Every method raises RedisError or OSError when Valkey cannot be reached. Where only some of the partitions cannot,
    it does its work on the others, and :meth:`take_errors` tells.
    """

    def __init__(self, client: Client, keys: Keys, consumer: str, retention: Retention | None = None) -> None:
        self._calls = PartitionCalls(client, keys.partitions)
        self._consumer = consumer
        self._retention = retention or Retention()
        self._outboxes = [keys.outbox(partition) for partition in range(keys.partitions)]
        self._dead = [keys.dead_letters(partition) for partition in range(keys.partitions)]
        self._sent = [keys.sent(partition) for partition in range(keys.partitions)]
        self._refused = [keys.refused(partition) for partition in range(keys.partitions)]
        self._windows = [_Window() for _ in self._outboxes]
        self._without_tail: frozenset[int] = frozenset()
        self.tail_entries_dropped = 0

    def __repr__(self) -> str:
        return f"Outbox({self._consumer}, {self._calls!r})"

    @property
    def all_partitions_available(self) -> bool:
        """Whether calls go to every partition: none is paused after a failure."""
        return len(self._calls.live()) == len(self._outboxes)

    @property
    def tails(self) -> Sequence[str]:
        """The streams of accepted entries, by partition."""
        return self._sent

    def take_errors(self) -> list[Exception]:
        """The failures that were not raised since the last time."""
        return self._calls.take_errors()

    async def read(self, room_bytes: int) -> Reading:
        """New entries of all partitions, about ``room_bytes`` of them at most. Makes the group where it is missing."""
        share = room_bytes // len(self._outboxes)
        asked = [min(window.count, max(1, share // window.entry_bytes)) for window in self._windows]
        head = ("XREADGROUP", "GROUP", GROUP, self._consumer, "COUNT")
        calls: list[tuple[int, Call]] = []
        for partition in self._calls.live():
            key = self._outboxes[partition]
            calls.append((partition, Call(key, (*head, asked[partition], "STREAMS", key, ">"))))
        found: list[Entry] = []
        missing: list[int] = []
        more = False
        for partition, reply in await self._calls.each(calls):
            if is_missing(reply):
                missing.append(partition)
                continue
            entries = list(_entries(partition, _stream_entries(reply)))
            more |= self._note(self._windows[partition], asked[partition], entries)
            found += entries
        if missing:
            await self._create_groups(missing)
        return Reading(found, more or bool(missing))

    def _note(self, window: _Window, asked: int, entries: list[Entry]) -> bool:
        if entries:
            window.entry_bytes = max(1, *(entry.size_bytes for entry in entries))
        full = len(entries) == asked
        window.count = min(COUNT_MAX, max(COUNT_MIN, asked * 2)) if full else COUNT_MIN
        return full

    async def _create_groups(self, partitions: Iterable[int]) -> None:
        # From 0: whatever the stream holds is not delivered. A group is missing at the very first start and after
        # Valkey has lost its data.
        calls: list[tuple[int, Call]] = []
        for partition in partitions:
            key = self._outboxes[partition]
            calls.append((partition, script_call(outbox_scripts.CREATE, [key], GROUP)))
        await self._calls.each(calls)

    async def claim(self, idle_ms: int, room_bytes: int) -> list[Entry]:
        """Takes over entries that no publisher has touched for ``idle_ms``, until there is no more room."""
        found: list[Entry] = []
        cursors: dict[int, bytes] = dict.fromkeys(self._calls.live(), b"0-0")
        while cursors and room_bytes > 0:
            calls: list[tuple[int, Call]] = []
            for partition, cursor in cursors.items():
                key = self._outboxes[partition]
                args = ("XAUTOCLAIM", key, GROUP, self._consumer, idle_ms, cursor, "COUNT", CLAIM_COUNT)
                calls.append((partition, Call(key, args)))
            cursors = {}
            for partition, reply in await self._calls.each(calls):
                if is_missing(reply):
                    continue
                entries = list(_entries(partition, reply[1]))
                found += entries
                room_bytes -= sum(entry.size_bytes for entry in entries)
                if reply[0] != b"0-0":
                    cursors[partition] = reply[0]
        return found

    async def keep(self, entries: Iterable[Entry]) -> None:
        """Tells the other publishers that these entries are being worked on, unless one has taken them over."""
        live = frozenset(self._calls.live())
        calls = [
            (
                partition,
                script_call(outbox_scripts.KEEP, [self._outboxes[partition]], GROUP, self._consumer, _pack(ids)),
            )
            for partition, some in _by_partition(entries).items()
            if partition in live
            for ids in _chunks([entry.id for entry in some])
        ]
        await self._calls.each(calls)

    async def finish(self, entries: Sequence[Entry]) -> list[Entry]:
        """Removes entries whose events are all accepted or dead letters, writes the dead letters, keeps what was
        accepted for as long as ``retention`` says.

        Answers those that could not be removed, instead of raising. Repeating it changes nothing.
        """
        live = frozenset(self._calls.live())
        left = _by_partition(entries)
        calls: list[tuple[int, Call]] = []
        for partition, some in left.items():
            if partition not in live:
                continue
            keys = [self._outboxes[partition], self._dead[partition], self._sent[partition]]
            packed = [
                (_pack(part), _pack([])) for part in _finishable([entry for entry in some if not entry.dead_letters])
            ]
            packed += [(_pack([]), _pack([_with_dead_letters(entry)])) for entry in some if entry.dead_letters]
            how = self._keep_ms(partition), self._retention.entries_max
            calls += [(partition, script_call(outbox_scripts.FINISH, keys, GROUP, *args, *how)) for args in packed]
        try:
            replies = await self._calls.each(calls)
            done = Counter(partition for partition, _ in replies)
            self.tail_entries_dropped += sum(reply[2] for _, reply in replies if not isinstance(reply, Exception))
        except VALKEY_ERRORS as error:
            self._calls.note(error)
            return list(entries)
        wanted = Counter(partition for partition, _ in calls)
        return [entry for p, some in left.items() if not wanted[p] or done[p] < wanted[p] for entry in some]

    async def forget(self, silent_ms: int) -> None:
        """Removes the names of publishers that are gone and owe nothing."""
        await self._run(outbox_scripts.FORGET, silent_ms)

    async def trim(self) -> None:
        """Drops what has been kept long enough, also where nothing is sent any more."""
        calls = [
            (partition, script_call(outbox_scripts.TRIM, [self._sent[partition]], self._keep_ms(partition)))
            for partition in self._calls.live()
        ]
        await self._calls.each(calls)

    async def drop_tail(self, partitions: Iterable[int], *, half: bool) -> int:
        """Drops the older half of what these partitions keep, or all. Answers how many entries that were."""
        # Also of those that rest: what has failed there may be what this is to mend.
        calls = [
            (partition, script_call(outbox_scripts.DROP, [self._sent[partition]], int(half)))
            for partition in partitions
        ]
        dropped = sum(int(reply) for _, reply in await self._calls.each(calls))
        self.tail_entries_dropped += dropped
        return dropped

    def keep_nothing(self, partitions: Iterable[int]) -> None:
        """From now on these partitions keep nothing of what is accepted, until :meth:`keep_again`."""
        self._without_tail |= frozenset(partitions)

    def keep_again(self, partitions: Iterable[int]) -> None:
        self._without_tail -= frozenset(partitions)

    def _keep_ms(self, partition: int) -> int:
        return 0 if partition in self._without_tail else self._retention.keep_ms

    async def bound_dead_letters(self, letters_max: int) -> int:
        """Deletes the oldest dead letters until there are ``letters_max`` in all; answers how many went. What is not
        done in a moment is left to the next time."""
        gone = 0
        for _ in range(OLDEST_ROUNDS_MAX):
            # Counted anew in every round: another publisher may be at it too.
            looks = await self._calls.each(
                [(p, script_call(outbox_scripts.OLDEST, [self._dead[p]], OLDEST_COUNT)) for p in self._calls.live()]
            )
            excess = sum(entries for _, (entries, _) in looks) - letters_max
            if excess <= 0:
                break
            # Of each partition the oldest are known, so the first of all of them are the oldest there are.
            oldest = sorted((_id_order(id_), partition, id_) for partition, (_, ids) in looks for id_ in ids)
            by_partition: dict[int, list[bytes]] = defaultdict(list)
            for _, partition, id_ in oldest[: min(excess, OLDEST_COUNT)]:
                by_partition[partition].append(id_)
            calls = [(p, Call(self._dead[p], ("XDEL", self._dead[p], *ids))) for p, ids in by_partition.items()]
            gone += sum(int(reply) for _, reply in await self._calls.each(calls))
        return gone

    async def leave(self) -> None:
        """Lets others take over at once whatever this consumer has not finished."""
        await self._run(outbox_scripts.LEAVE)

    async def measure(self) -> Measure:
        """Measure the streams of the partitions that work."""
        streams = self._outboxes, self._dead, self._sent, self._refused
        replies = await self._calls.each(
            [(p, script_call(outbox_scripts.MEASURE, [of[p] for of in streams])) for p in self._calls.live()]
        )
        measures = [reply for _, reply in replies]
        return Measure(
            entries=sum(entries for entries, *_ in measures),
            oldest_s=max((age_ms for _, age_ms, *_ in measures if age_ms > 0), default=0) / 1000,
            dead_letters=sum(letters for _, _, letters, _, _ in measures),
            sent_entries=sum(sent for *_, sent, _ in measures),
            refused_entries=sum(refused for *_, refused in measures),
        )

    async def _run(self, script: bytes, *args: Argument) -> None:
        calls = [
            (partition, script_call(script, [self._outboxes[partition]], GROUP, self._consumer, *args))
            for partition in self._calls.live()
        ]
        await self._calls.each(calls)


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


def _id_order(id_: bytes) -> tuple[int, int]:
    ms, _, number = id_.partition(b"-")
    return int(ms), int(number)


def _by_partition(entries: Iterable[Entry]) -> dict[int, list[Entry]]:
    found: dict[int, list[Entry]] = defaultdict(list)
    for entry in entries:
        found[entry.partition].append(entry)
    return found


def _chunks(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), IDS_MAX):
        yield items[start : start + IDS_MAX]


def _finishable(entries: Iterable[Entry]) -> Iterator[list[tuple[bytes, bytes]]]:
    """Ids and names of entries, as many as FINISH takes at once."""
    part: list[tuple[bytes, bytes]] = []
    size_bytes = 0
    for entry in entries:
        if part and (len(part) == FINISH_ENTRIES_MAX or size_bytes + entry.size_bytes > FINISH_BYTES_MAX):
            yield part
            part, size_bytes = [], 0
        part.append((entry.id, entry.name))
        size_bytes += entry.size_bytes
    if part:
        yield part


def _with_dead_letters(entry: Entry) -> tuple[bytes, int, bytes, list[list[bytes]], bytes]:
    """An entry with dead letters as FINISH takes it. A letter without a number is that of an unreadable entry."""
    refused = sum(EVENT in letter for letter in entry.dead_letters)
    numbers = [letter[NUMBER] for letter in entry.dead_letters if NUMBER in letter]
    letters = [_flat(letter) for letter in entry.dead_letters]
    return entry.id, int(entry.events > refused), b",".join(numbers), letters, entry.name


def _flat(letter: dict[bytes, bytes]) -> list[bytes]:
    return [part for field in letter.items() for part in field]


def _pack(value: object) -> bytes:
    return bytes(msgpack.packb(value, use_bin_type=False))  # Valkey's cmsgpack does not know the bin type
