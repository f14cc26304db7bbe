"""Reads what the ledger has of the books: the records of instances, outbox and tail."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Final

from redis.exceptions import ResponseError

from sidecar.ledger.keys import Keys
from sidecar.ledger.proof.checkpoint import OriginMark, PartitionMark
from sidecar.ledger.proof.instance_record import InstanceRecord
from sidecar.metering.archive.archived_entries import ArchivedEntry
from sidecar.metering.outbox.outbox import SKIPPED
from sidecar.valkey.topology import Client

PAGE: Final = 100
NO_ID: Final = "0-0"
EDGE_MS: Final = 600_000
"""Entries are accepted in another order than they were written, but not by more than this."""


@dataclass(frozen=True, slots=True)
class KeptEntry:
    """``what``: as an archive would have it. ``is_sent``: it is in the tail; its id is then that of the tail.
    ``is_edge``: the tail may have dropped what was before it."""

    what: ArchivedEntry
    is_sent: bool
    is_edge: bool

    @property
    def place(self) -> str:
        return f"{'tail' if self.is_sent else 'outbox'} {{p{self.what.partition:02d}}} {self.what.id}"


@dataclass(frozen=True, slots=True)
class _Tail:
    """``edge_ms``: up to when an entry may lack the one before it; 0 if nothing was dropped, None if nothing is left.
    ``deleted``: the last id that somebody deleted, of those that are still kept."""

    edge_ms: int | None
    deleted: str


class LedgerBooks:
    """Every method raises RedisError or OSError when Valkey cannot be reached."""

    def __init__(self, client: Client, keys: Keys) -> None:
        self._client = client
        self._keys = keys

    def __repr__(self) -> str:
        return f"LedgerBooks({self._keys!r})"

    async def origins(self) -> list[OriginMark]:
        """Every instance with a chain. Read it before the entries: they only grow."""
        head, _, tail = self._keys.instance(0, "").partition("{p00}")
        found = []
        client: Any = self._client
        async for name in client.scan_iter(match=f"{head}{{p*}}{tail}*", count=1000):
            partition, _, rest = name.decode("utf-8", "replace").removeprefix(head + "{p").partition("}")
            packed = await client.get(name)
            if packed is None or not partition.isdigit():
                continue
            try:
                record = InstanceRecord.from_bytes(packed)
            except ValueError:
                continue  # `ledger verify` reports it
            if record.chain:
                origin = f"{rest.removeprefix(tail)}.{int(partition):02d}"
                found.append(OriginMark(origin, record.number, record.chain))
        return sorted(found, key=lambda mark: mark.origin)

    async def partitions(self) -> list[PartitionMark]:
        """After the origins, so that an entry that their values tell of is waiting, or was sent."""
        found = []
        client: Any = self._client
        for partition in range(self._keys.partitions):
            generation = await client.hget(self._keys.meta(partition), "generation")
            streams = []
            for key in (self._keys.outbox(partition), self._keys.sent(partition)):
                last = await client.xrevrange(key, count=1)
                streams.append(last[0][0].decode() if last else "")
            waiting = await client.xlen(self._keys.outbox(partition))
            found.append(PartitionMark(partition, (generation or b"").decode(), waiting, *streams))
        return found

    async def entries(self) -> AsyncIterator[KeptEntry]:
        """An entry that leaves the outbox meanwhile may come twice; none is missing."""
        for partition in range(self._keys.partitions):
            sent = self._keys.sent(partition)
            tail = await self._tail(partition)
            edge_ms = tail.edge_ms
            async for id_, fields in self._stream(self._keys.outbox(partition)):
                if edge_ms is None:
                    edge_ms = _ms(id_) + EDGE_MS
                is_edge = tail.edge_ms is None and _ms(id_) <= edge_ms
                yield KeptEntry(ArchivedEntry(partition, id_.decode(), 0, fields), False, is_edge)
            async for id_, fields in self._stream(sent):
                refused = frozenset(int(n) for n in fields.get(SKIPPED, b"").split(b",") if n.isdigit())
                what = ArchivedEntry(partition, id_.decode(), _ms(id_), fields, refused)
                yield KeptEntry(what, True, _ms(id_) <= (tail.edge_ms or 0))

    async def deleted(self) -> list[str]:
        """Places of entries that somebody deleted from a tail. It is trimmed, but nothing deletes from it."""
        return [
            f"tail {{p{partition:02d}}} {tail.deleted}"
            for partition in range(self._keys.partitions)
            if (tail := await self._tail(partition)).deleted != NO_ID
        ]

    async def _tail(self, partition: int) -> _Tail:
        client: Any = self._client
        try:
            info = await client.xinfo_stream(self._keys.sent(partition))
        except ResponseError:  # there is none
            return _Tail(None, NO_ID)
        deleted: bytes = info["max-deleted-entry-id"]
        if not info["length"]:
            return _Tail(None, NO_ID if deleted == NO_ID.encode() else deleted.decode())
        first = info["first-entry"][0]
        if _ms(deleted) >= _ms(first):
            return _Tail(0, deleted.decode())
        return _Tail(_ms(first) + EDGE_MS if info["entries-added"] > info["length"] else 0, NO_ID)

    async def _stream(self, key: str) -> AsyncIterator[tuple[bytes, dict[bytes, bytes]]]:
        start = "-"
        while True:
            page: Any = await self._client.xrange(key, start, "+", PAGE)
            for id_, fields in page:
                yield id_, fields
            if len(page) < PAGE:
                return
            start = "(" + page[-1][0].decode()


def _ms(id_: bytes) -> int:
    return int(id_.partition(b"-")[0])
