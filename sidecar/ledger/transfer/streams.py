"""Reads streams as one, in the order of their ids, and appends to a stream exactly once.

A stream's entries are appended by a script that notes, in the slot of the stream, up to which entry of which source it
has come. So a copy that was interrupted goes on where it stood.
"""

from __future__ import annotations

import heapq
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgpack

from sidecar.ledger.transfer.access import Access
from sidecar.valkey.calls import Call

STREAMS: Final = ("outbox", "sent", "dead-letters", "refused", "audit-log")
"""Names of the streams of a partition."""

PAGE_ENTRIES: Final = 32
"""Entries of one look at a stream: that of a busy gateway holds hundreds of events."""
PAGE_BYTES: Final = 1_000_000

EntryId = tuple[int, int]
"""Milliseconds and number of a stream's entry."""

_APPEND: Final = """
-- KEYS [1] stream [2] hash of cursors
-- ARGV [1] msgpack {{id, field, value, ...}, ...} [2 ...] name, cursor, name, cursor, ...
-- reply how many were appended; 0 if the cursors are there already
local known = redis.call('HMGET', KEYS[2], ARGV[2])
if known[1] == ARGV[3] then
  return 0
end
local entries = cmsgpack.unpack(ARGV[1])
for _, entry in ipairs(entries) do
  redis.call('XADD', KEYS[1], unpack(entry))
end
redis.call('HSET', KEYS[2], unpack(ARGV, 2))
return #entries
"""


_IDS: Final = """
-- reply {the largest id, the largest one that was deleted}, or nothing if there is no stream
if redis.call('EXISTS', KEYS[1]) == 0 then
  return false
end
local info, found = redis.call('XINFO', 'STREAM', KEYS[1]), {}
for n = 1, #info, 2 do
  found[info[n]] = info[n + 1]
end
return {found['last-generated-id'], found['max-deleted-entry-id']}
"""

_SEAL: Final = """
-- KEYS [1] stream   ARGV [1] the largest id that there was [2] the largest that was deleted
local function number_of(id)
  local ms, number = string.match(id, '^(%d+)-(%d+)$')
  return tonumber(ms), tonumber(number)
end
local function larger(one, other)
  local a, b = number_of(one)
  local c, d = number_of(other)
  return (a > c or (a == c and b > d)) and one or other
end
if redis.call('EXISTS', KEYS[1]) == 0 then
  redis.call('XDEL', KEYS[1], redis.call('XADD', KEYS[1], '0-1', 'o', ''))
end
local info, found = redis.call('XINFO', 'STREAM', KEYS[1]), {}
for n = 1, #info, 2 do
  found[info[n]] = info[n + 1]
end
local last = larger(found['last-generated-id'], larger(ARGV[1], ARGV[2]))
local added = math.max(found['entries-added'], found['length'] + 1)
redis.call('XSETID', KEYS[1], last, 'ENTRIESADDED', added, 'MAXDELETEDID',
  larger(found['max-deleted-entry-id'], ARGV[2]))
"""


@dataclass(frozen=True, slots=True)
class StreamIds:
    """The largest id that a stream has ever had, and the largest of those that were deleted."""

    last: EntryId = (0, 0)
    deleted: EntryId = (0, 0)


@dataclass(frozen=True, slots=True)
class StreamEntry:
    """``source``: of which stream, by its name to the reader. ``fields``: names and values one after another."""

    source: str
    id: EntryId
    fields: tuple[bytes, ...]

    @property
    def size(self) -> int:
        return sum(map(len, self.fields))


def entry_id(text: bytes | str) -> EntryId:
    """Raises ``ValueError``."""
    ms, _, number = (text.decode() if isinstance(text, bytes) else text).partition("-")
    return int(ms), int(number or 0)


def flat(fields: Mapping[bytes, bytes] | None) -> list[bytes]:
    """Names and values one after another, as redis-py's map of them has them."""
    return [part for pair in (fields or {}).items() for part in pair]


def id_text(id_: EntryId) -> str:
    return f"{id_[0]}-{id_[1]}"


async def merged_pages(
    access: Access, sources: Mapping[str, str], after: Mapping[str, EntryId]
) -> AsyncIterator[list[StreamEntry]]:
    """The entries of all ``sources`` (name to key) by their ids, in pages. ``after``: of each source, the last one that
    is left out."""
    waiting: list[tuple[EntryId, str, tuple[bytes, ...]]] = []
    left: dict[str, int] = {}

    async def fill(source: str, last: EntryId | None) -> None:
        low = "-" if last is None else f"({id_text(last)}"
        key = sources[source]
        found: Any = await access.one(key, "XRANGE", key, low, "+", "COUNT", PAGE_ENTRIES)
        left[source] = len(found)
        for id_, fields in found:
            # An entry that was deleted while it was read has no fields.
            heapq.heappush(waiting, (entry_id(id_), source, tuple(flat(fields))))

    for source in sources:
        await fill(source, after.get(source))
    page: list[StreamEntry] = []
    size = 0
    while waiting:
        id_, source, fields = heapq.heappop(waiting)
        left[source] -= 1
        if fields:
            entry = StreamEntry(source, id_, fields)
            page.append(entry)
            size += entry.size
        if left[source] == 0:
            await fill(source, id_)
        if len(page) >= PAGE_ENTRIES or size >= PAGE_BYTES:
            yield page
            page, size = [], 0
    if page:
        yield page


class StreamWriter:
    """Appends to one stream. ``cursors``: a hash in the stream's slot. Ids stay; one that is not above the last one of
    the stream becomes the next above it."""

    def __init__(self, access: Access, key: str, cursors: str, name: str) -> None:
        self._access = access
        self._key = key
        self._cursors = cursors
        self._name = name
        self._last: EntryId | None = None

    def __repr__(self) -> str:
        return f"StreamWriter({self._key})"

    async def after(self) -> dict[str, EntryId]:
        """Of each source, the last entry that was appended."""
        found: dict[bytes, bytes] = await self._access.one(self._cursors, "HGETALL", self._cursors)
        start = f"{self._name} "
        return {
            name.decode().removeprefix(start): entry_id(value)
            for name, value in found.items()
            if name.decode().startswith(start)
        }

    async def append(self, entries: Sequence[StreamEntry]) -> None:
        """Appends them, in order, once."""
        if not entries:
            return
        last = await self._last_id()
        rows: list[list[bytes]] = []
        cursors: dict[str, EntryId] = {}
        for entry in entries:
            last = entry.id if entry.id > last else (last[0], last[1] + 1)
            rows.append([id_text(last).encode(), *entry.fields])
            cursors[entry.source] = entry.id
        # The source of the last entry tells whether the page was appended: its cursor only grows.
        named = [(entries[-1].source, cursors.pop(entries[-1].source)), *cursors.items()]
        noted = [part for source, id_ in named for part in (f"{self._name} {source}", id_text(id_))]
        packed = msgpack.packb(rows, use_bin_type=False)
        await self._access.one(self._key, "EVAL", _APPEND, 2, self._key, self._cursors, packed, *noted)
        self._last = last

    async def seal(self, ids: StreamIds) -> None:
        """Makes the stream know which entries there have been: the verification of a ledger asks it from when on none
        is missing. Streams that never had any entry are not made."""
        if ids.last > (0, 0):
            last, deleted = id_text(ids.last), id_text(ids.deleted)
            await self._access.one(self._key, "EVAL", _SEAL, 1, self._key, last, deleted)

    async def _last_id(self) -> EntryId:
        if self._last is None:
            self._last = await last_id(self._access, self._key)
        return self._last


async def stream_ids(access: Access, keys: Sequence[str]) -> StreamIds:
    """Of several streams, the largest ids."""
    found = StreamIds()
    for reply in await access.each([Call(key, ("EVAL", _IDS, 1, key)) for key in keys]):
        if reply:
            found = StreamIds(max(found.last, entry_id(reply[0])), max(found.deleted, entry_id(reply[1])))
    return found


async def last_id(access: Access, key: str) -> EntryId:
    """The largest id that the stream has ever had; (0, 0) if there is none."""
    return (await stream_ids(access, [key])).last
