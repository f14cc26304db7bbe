"""Writes all of a ledger into a file: accounts, API keys, events, and what the control plane keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import IO, Any, Final

import msgpack

from sidecar.ledger.accounts.idempotency_marks import is_mark, is_under_way, mark_until_ms
from sidecar.ledger.accounts.state_values import unpack_state
from sidecar.ledger.keys import Keys
from sidecar.ledger.ledger_format import open_ledger
from sidecar.ledger.transfer.access import (
    Access,
    Progress,
    TransferError,
    leases_pattern,
    living,
    no_progress,
)
from sidecar.ledger.transfer.file_format import Header, LineWriter, encoded
from sidecar.ledger.transfer.names import ACCOUNT_KINDS, DROPPED_KINDS, SINGLE_KINDS, ParsedKey, key_pages, stream_key
from sidecar.ledger.transfer.streams import STREAMS, id_text, merged_pages, stream_ids
from sidecar.valkey.calls import Call

PAGE_ACCOUNTS: Final = 100
"""Accounts of one script: about a millisecond of the server."""
PAGE_MEMBERS: Final = 1_000
HASHES_OF_API_KEYS: Final = 256

_READ: Final = """
-- Accounts, each of one instant.
-- KEYS [1 2, 3 4, ...] state and hash of each account
-- reply {state, {field, value, ...}, state, ...}
local found = {}
for k = 1, #KEYS, 2 do
  found[#found + 1] = redis.call('GET', KEYS[k])
  found[#found + 1] = redis.call('HGETALL', KEYS[k + 1])
end
return found
"""


@dataclass(frozen=True, slots=True)
class ExportReport:
    """``released``: held units, by metric, that the file gives back. ``counts``: what was written. ``expired_marks``:
    idempotency keys whose time is over."""

    header: Header
    counts: dict[str, int] = field(default_factory=dict)
    released: dict[str, int] = field(default_factory=dict)
    expired_marks: int = 0
    sha256: str = ""


class Export:
    """One run. ``live``: although others use the ledger. Then each account is of one instant, but not all of the same,
    and a charge may be in the file without its event."""

    def __init__(
        self,
        access: Access,
        keys: Keys,
        file: IO[bytes],
        *,
        instance_ttl_ms: int,
        live: bool = False,
        progress: Progress = no_progress,
    ) -> None:
        self._access = access
        self._keys = keys
        self._lines = LineWriter(file)
        self._ttl_ms = instance_ttl_ms
        self._live = live
        self._progress = progress
        self._released: dict[str, int] = {}
        self._expired_marks = 0
        self._now_ms = 0
        self._instances: list[ParsedKey] = []

    def __repr__(self) -> str:
        return f"Export({self._keys!r})"

    async def run(self) -> ExportReport:
        """Writes the file.

        Raises:
            TransferError: others use the ledger, or it has something that this release does not know.
            FormatError: there is no ledger, or it does not fit.
            RedisError, OSError: Valkey cannot be reached, or the file cannot be written.
        """
        generations = (await open_ledger(self._access.client, self._keys, create=False)).generations
        if not self._live:
            await check_nobody_lives(self._access, self._keys, self._ttl_ms, "--live exports it all the same")
        before = await self._instants()
        self._now_ms = await self._access.now_ms(self._keys.clock(0))
        header = Header(
            self._keys.prefix,
            self._keys.partitions,
            generations,
            self._now_ms,
            await self._largest("epochs"),
            await self._largest("adjustments"),
            self._live,
        )
        self._lines.write(header.row())
        for partition in range(self._keys.partitions):
            await self._listed(partition)
        for partition in range(self._keys.partitions):
            await self._api_keys(partition)
        await self._others()
        for name in STREAMS:
            await self._stream(name)
        # Last: of a ledger in use, what a gateway charges meanwhile is missing then, and not charged twice.
        await self._write_numbers()
        if not self._live and await self._instants() != before:
            raise TransferError("the ledger was used while it was exported: stop what uses it, and export again")
        digest = self._lines.end()
        return ExportReport(header, dict(self._lines.counts), self._released, self._expired_marks, digest)

    async def _instants(self) -> list[Any]:
        """What changes whenever a ledger is used."""
        clocks = [self._keys.clock(partition) for partition in range(self._keys.partitions)]
        return await self._access.each([Call(key, ("GET", key)) for key in clocks])

    async def _largest(self, name: str) -> int:
        metas = [self._keys.meta(partition) for partition in range(self._keys.partitions)]
        found = await self._access.each([Call(key, ("HGET", key, name)) for key in metas])
        return max(int(each or 0) for each in found)

    # Accounts

    async def _listed(self, partition: int) -> None:
        index = self._keys.accounts(partition)
        low = b"-"
        while True:
            page: Any = await self._access.one(index, "ZRANGEBYLEX", index, low, "+", "LIMIT", 0, PAGE_ACCOUNTS)
            if page:
                await self._accounts([each.decode() for each in page], listed=True)
                low = b"(" + page[-1]
            if len(page) < PAGE_ACCOUNTS:
                return

    async def _accounts(self, ids: Sequence[str], *, listed: bool) -> None:
        """Of one partition."""
        names = [name for id_ in ids for name in (self._keys.state(id_), self._keys.account(id_))]
        replies: Any = await self._access.one(names[0], "EVAL", _READ, len(names), *names)
        for id_, state, parts in zip(ids, replies[::2], replies[1::2], strict=True):
            fields = dict(zip(parts[::2], parts[1::2], strict=True))
            self._lines.write(self._account(id_, state, fields, listed))
            self._lines.count("accounts" if listed else "unlisted accounts")
        self._progress("accounts exported", self._lines.counts["accounts"], None)

    def _account(self, id_: str, state: bytes | None, fields: Mapping[bytes, bytes], listed: bool) -> dict[str, Any]:
        marks, others = {}, {}
        for name, value in fields.items():
            if is_mark(name):
                until_ms = mark_until_ms(value)
                if until_ms is not None and until_ms <= self._now_ms:
                    self._expired_marks += 1
                elif not is_under_way(value):  # it ends with its hold, which is not exported
                    marks[name[1:].hex()] = encoded(value)
            else:
                others[name.decode()] = encoded(value)
        self._lines.count("idempotency keys", len(marks))
        return {
            "kind": "account", "id": id_, "listed": listed,
            "state": None if state is None else encoded(self._without_holds(id_, state)), "fields": others,
            "marks": marks,
        }  # fmt: skip

    def _without_holds(self, id_: str, state: bytes) -> bytes:
        """Who holds units is no gateway of the ledger that this becomes."""
        try:
            values = unpack_state(state)
        except ValueError as error:
            raise TransferError(f"account {id_!r} cannot be read: {error}") from None
        if not values.shares and not any(row[9] for row in values.counters):
            return state
        for row in values.counters:
            if row[9]:
                self._released[row[1]] = self._released.get(row[1], 0) + row[9]
        counters = [[*row[:9], 0, *row[10:]] for row in values.counters]
        return replace(values, counters=counters, shares=()).packed()

    # All else

    async def _api_keys(self, partition: int) -> None:
        names = [self._keys.api_keys_hash(partition, first) for first in range(HASHES_OF_API_KEYS)]
        for found in await self._access.each([Call(key, ("HGETALL", key)) for key in names]):
            if found:
                self._lines.write(
                    {"kind": "api_keys", "keys": {sha256.hex(): owner.decode() for sha256, owner in found.items()}}
                )
                self._lines.count("API keys", len(found))
        self._progress("API keys exported", self._lines.counts["API keys"], None)

    async def _others(self) -> None:
        unlisted: set[tuple[int, str]] = set()
        looked_at = 0
        async for page in key_pages(self._access, self._keys):
            for each in page:
                if each.partition >= self._keys.partitions:
                    raise TransferError(f"{each.key!r} is beyond the {self._keys.partitions} partitions of the ledger")
            await self._values([each for each in page if each.kind in (*ACCOUNT_KINDS, *SINGLE_KINDS, "audited")])
            self._instances += [each for each in page if each.kind == "instance"]
            unlisted |= await self._not_listed([each for each in page if each.kind in ("state", "account")])
            if unknown := [each.key for each in page if each.kind not in KNOWN_KINDS]:
                raise TransferError(f"this release does not know the key {unknown[0]!r}")
            looked_at += len(page)
            self._progress("keys looked at", looked_at, None)
        by_partition: dict[int, list[str]] = {}
        for partition, id_ in sorted(unlisted):
            by_partition.setdefault(partition, []).append(id_)
        for ids in by_partition.values():
            for at in range(0, len(ids), PAGE_ACCOUNTS):
                await self._accounts(ids[at : at + PAGE_ACCOUNTS], listed=False)

    async def _not_listed(self, found: Sequence[ParsedKey]) -> set[tuple[int, str]]:
        indexes = [self._keys.accounts(each.partition) for each in found]
        scores = await self._access.each(
            [Call(index, ("ZSCORE", index, each.rest)) for index, each in zip(indexes, found, strict=True)]
        )
        return {(each.partition, each.rest) for each, score in zip(found, scores, strict=True) if score is None}

    async def _values(self, found: Sequence[ParsedKey]) -> None:
        reads: list[Call] = []
        for each in found:
            reads.append(Call(each.key, ("PTTL", each.key)))
            command = {"absent": ("GET", each.key)}.get(each.kind, ("HGETALL", each.key))
            reads.append(Call(each.key, command if each.kind not in SINGLE_KINDS else ("ZCARD", each.key)))
        replies = await self._access.each(reads)
        for each, ttl_ms, value in zip(found, replies[::2], replies[1::2], strict=True):
            row = {"key": each.kind, "of": each.rest, "expires_ms": self._now_ms + ttl_ms if ttl_ms >= 0 else None}
            if not value:
                continue
            if each.kind in SINGLE_KINDS:
                await self._sorted_set(each.key, row)
            elif each.kind == "absent":
                self._lines.write({"kind": "string", **row, "value": encoded(value)})
            else:
                fields = [[encoded(name), encoded(text)] for name, text in value.items()]
                self._lines.write({"kind": "hash", **row, "fields": fields})
            self._lines.count(each.kind)

    async def _write_numbers(self) -> None:
        """The number of each gateway's last batch: a gateway that goes on with the imported ledger, or the spool of
        one that died, is owed only what came after it."""
        found = await self._access.each([Call(each.key, ("GET", each.key)) for each in self._instances])
        for each, packed in zip(self._instances, found, strict=True):
            if packed is None:
                continue
            try:
                _epoch, number, _held, chain = islice(_unpacker(packed), 4)
            except ValueError as error:
                raise TransferError(f"{each.key!r} cannot be read: {error}") from None
            row = {"partition": each.partition, "of": each.rest, "number": int(number), "chain": encoded(chain)}
            self._lines.write({"kind": "instance", **row})
            self._lines.count("gateways' numbers")

    async def _sorted_set(self, key: str, row: dict[str, Any]) -> None:
        at = 0
        while True:
            page: Any = await self._access.one(key, "ZRANGE", key, at, at + PAGE_MEMBERS - 1, "WITHSCORES")
            if page:
                members = [
                    [encoded(member), score.decode()] for member, score in zip(page[::2], page[1::2], strict=True)
                ]
                self._lines.write({"kind": "zset", **row, "members": members})
            if len(page) < 2 * PAGE_MEMBERS:
                return
            at += PAGE_MEMBERS

    async def _stream(self, name: str) -> None:
        sources = {str(p): stream_key(self._keys, name, p) for p in range(self._keys.partitions)}
        # First: what is deleted while this reads was there.
        ids = await stream_ids(self._access, list(sources.values()))
        async for page in merged_pages(self._access, sources, {}):
            entries = [
                {"p": int(entry.source), "id": id_text(entry.id), "f": [encoded(part) for part in entry.fields]}
                for entry in page
            ]
            self._lines.write({"kind": "entries", "stream": name, "entries": entries})
            self._lines.count(f"entries of {name}", len(entries))
            self._progress(f"entries of {name} exported", self._lines.counts[f"entries of {name}"], None)
        self._lines.write(
            {"kind": "stream", "stream": name, "last": id_text(ids.last), "deleted": id_text(ids.deleted)}
        )


KNOWN_KINDS: Final = frozenset(
    {"state", "account", "accounts", "apikeys", "audited", *ACCOUNT_KINDS, *SINGLE_KINDS, *STREAMS, *DROPPED_KINDS}
)


def _unpacker(packed: bytes) -> msgpack.Unpacker:
    unpacker = msgpack.Unpacker(raw=True)
    unpacker.feed(packed)
    return unpacker


async def check_nobody_lives(access: Access, keys: Keys, ttl_ms: int, otherwise: str) -> None:
    """Raises ``TransferError``: a gateway or a control plane uses the ledger. ``otherwise``: what can be done then."""
    alive = [keys.alive(partition) for partition in range(keys.partitions)]
    if names := await living(access, alive, ttl_ms):
        raise TransferError(
            f"gateways use the ledger: {', '.join(sorted(set(names))[:10])}. Stop them and the control planes, wait "
            f"for {ttl_ms / 1000:.0f} s, then try again ({otherwise})"
        )
    async for page in access.key_pages(leases_pattern(keys, first_format=False)):
        for key in page:
            name = key.decode()
            holder, until_us = await access.one(name, "HMGET", name, "holder", "until_us")
            if until_us and int(until_us) > await access.now_ms(name) * 1000:
                raise TransferError(
                    f"a control plane uses the ledger: {holder.decode('utf-8', 'replace')}. Stop it, then try again "
                    f"({otherwise})"
                )
