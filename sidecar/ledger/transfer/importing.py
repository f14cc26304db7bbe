"""Makes a ledger of an exported file, on any server and with any number of partitions.

While it goes on, every partition says that it is being imported, so no gateway takes it for a ledger. Each line can be
written twice, and events are appended once; so an import that was interrupted goes on where it stood.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Any, Final

import msgpack

from sidecar.ledger.accounts.idempotency_marks import mark_until_ms
from sidecar.ledger.keys import FIRST_FORMAT_PARTITIONS, FORGET_MS, FORMAT, Keys
from sidecar.ledger.ledger_format import IMPORTING
from sidecar.ledger.transfer.access import Access, Progress, TransferError, no_progress
from sidecar.ledger.transfer.export import check_nobody_lives
from sidecar.ledger.transfer.file_format import CheckedFile, FileError, check_file, decoded, lines_of
from sidecar.ledger.transfer.names import key_pages, stream_key, value_key
from sidecar.ledger.transfer.streams import STREAMS, StreamEntry, StreamIds, StreamWriter, entry_id
from sidecar.valkey.calls import Argument, Call

CALLS_AT_ONCE: Final = 500
"""Commands after which it is noted how far the import has come."""
BYTES_AT_ONCE: Final = 4_000_000
FIELDS_AT_ONCE: Final = 1_000

_MARKS: Final = """
-- Idempotency keys of an account, which go by themselves where the server can do that.
-- KEYS [1] hash   ARGV [1] now, ms [2 ...] field, value, until when, ms, ...
for n = 2, #ARGV, 3 do
  redis.call('HSET', KEYS[1], ARGV[n], ARGV[n + 1])
end
for n = 2, #ARGV, 3 do
  local left_ms = tonumber(ARGV[n + 2]) - tonumber(ARGV[1])
  if left_ms > 0 then
    local reply = redis.pcall('HPEXPIRE', KEYS[1], string.format('%.0f', left_ms), 'FIELDS', 1, ARGV[n])
    if type(reply) == 'table' and reply.err then
      return 0
    end
  end
end
return 1
"""

_BEGIN: Final = """
-- A partition of the imported ledger is complete.
-- KEYS [1] meta hash [2] clock [3] outbox [4] accounts and [5] alive of format 1
-- ARGV [1] format [2] partitions [3] generation [4] epochs [5] adjustments [6] checksum of the file
local time = redis.call('TIME')
if redis.call('TYPE', KEYS[3]).ok == 'none' then
  redis.call('XDEL', KEYS[3], redis.call('XADD', KEYS[3], '*', 'o', ''))
end
for k = 4, 5 do
  if redis.call('EXISTS', KEYS[k]) == 0 then
    redis.call('SET', KEYS[k], 'format ' .. ARGV[1])
  end
end
redis.call('SET', KEYS[2], cmsgpack.pack(tonumber(ARGV[1]), time[1] * 1000000 + time[2]))
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], 'format', ARGV[1], 'partitions', ARGV[2], 'generation', ARGV[3], 'epochs', ARGV[4],
  'adjustments', ARGV[5], 'imported', ARGV[6])
"""


@dataclass(frozen=True, slots=True)
class ImportReport:
    """``counts``: of the file. ``differences``: what the ledger has not; then it cannot be used. ``already``: the file
    was imported before, and nothing was changed."""

    counts: dict[str, int] = field(default_factory=dict)
    differences: tuple[str, ...] = ()
    already: bool = False
    resumed: bool = False
    from_partitions: int = 0
    partitions: int = 0
    generation: str = ""


class Import:
    """One run. ``file`` can be read from its beginning several times. ``replace``: what the target has is removed."""

    def __init__(
        self,
        access: Access,
        keys: Keys,
        file: IO[bytes],
        *,
        instance_ttl_ms: int,
        replace: bool = False,
        progress: Progress = no_progress,
    ) -> None:
        self._access = access
        self._keys = keys
        self._file = file
        self._ttl_ms = instance_ttl_ms
        self._replace = replace
        self._progress = progress
        self._calls: list[Call] = []
        self._bytes = 0
        self._writers: dict[tuple[str, int], StreamWriter] = {}
        self._after: dict[tuple[str, int], dict[str, tuple[int, int]]] = {}
        self._ids: dict[str, StreamIds] = {}
        self._line = 0
        self._now_ms = 0
        self._from_partitions = 0

    def __repr__(self) -> str:
        return f"Import({self._keys!r})"

    async def run(self) -> ImportReport:
        """Imports, or goes on where an interrupted run stopped.

        Raises:
            FileError: the file cannot be imported; nothing was changed.
            TransferError: the target is used, or has something else.
            RedisError, OSError: Valkey cannot be reached, or the file cannot be read; a further run goes on.
        """
        checked = check_file(self._file)
        await check_nobody_lives(self._access, self._keys, self._ttl_ms, "an import needs a ledger that nobody uses")
        resumed = await self._prepare(checked)
        if resumed is None:
            return self._report(checked, already=True)
        self._now_ms = await self._access.now_ms(self._keys.clock(0))
        self._from_partitions = checked.header.partitions
        await self._lines(checked)
        for name, ids in self._ids.items():
            for partition in range(self._keys.partitions):
                await self._writer(name, partition).seal(ids)
        differences = await self._differences(checked)
        if not differences:
            await self._finish(checked)
        return self._report(checked, differences=tuple(differences), resumed=resumed)

    def _report(self, checked: CheckedFile, **more: Any) -> ImportReport:
        header = checked.header
        return ImportReport(
            counts=checked.counts, from_partitions=header.partitions, partitions=self._keys.partitions,
            generation=header.generation_of(0), **more,
        )  # fmt: skip

    # The target

    def _notes(self, partition: int = 0) -> str:
        """How far the import has come. Lines are noted in partition 0, entries of streams in their slots."""
        return self._keys.import_notes(partition)

    async def _prepare(self, checked: CheckedFile) -> bool | None:
        """Whether an interrupted import goes on. None: the file was imported before."""
        keys, notes = self._keys, self._notes()
        sha256, partitions, line, stage = await self._access.one(
            notes, "HMGET", notes, "sha256", "partitions", "line", "stage"
        )
        said = await self._access.one(keys.meta(0), "HMGET", keys.meta(0), "format", "imported", "partitions")
        is_done = said == [b"%d" % FORMAT, checked.sha256.encode(), b"%d" % keys.partitions]
        if is_done and not self._replace:
            await self._access.unlink([self._notes(partition) for partition in range(keys.partitions)])
            return None
        if sha256 is not None:
            fits = sha256.decode() == checked.sha256 and int(partitions) == keys.partitions
            if fits and stage == b"lines" and not is_done:
                self._line = int(line or 0)
                return True
            if not fits and not self._replace:
                raise TransferError(
                    "an import of another file, or into another number of partitions, has not finished: finish it, or "
                    "replace it with --replace"
                )
        elif not self._replace:
            await self._check_empty()
        await self._make_room(checked)
        return False

    async def _check_empty(self) -> None:
        """A ledger that a gateway has begun and nobody has used is no obstacle."""
        keys = self._keys
        partitions = range(FIRST_FORMAT_PARTITIONS)
        first = [keys.first_format(partition, name) for partition in partitions for name in ("accounts", "alive")]
        if b"zset" in await self._access.each([Call(key, ("TYPE", key)) for key in first]):
            raise TransferError(
                f"the prefix {keys.prefix!r} has a ledger of format 1: migrate it, or import under another prefix"
            )
        async for page in key_pages(self._access, keys):
            for each in page:
                if each.kind in ("meta", "clock", "alive", "instance", "lease"):
                    continue
                if each.kind == "outbox" and not await self._access.one(each.key, "XLEN", each.key):
                    continue
                raise TransferError(
                    f"the prefix {keys.prefix!r} has a ledger with data ({each.key}): --replace removes it, another "
                    "ledger.prefix leaves it"
                )

    async def _make_room(self, checked: CheckedFile) -> None:
        keys, notes = self._keys, self._notes()
        metas = [keys.meta(partition) for partition in range(keys.partitions)]
        # From now on no gateway begins, and an interrupted run begins here.
        await self._access.each([Call(key, ("HSET", key, "format", IMPORTING)) for key in metas])
        values: tuple[Argument, ...] = "sha256", checked.sha256, "partitions", keys.partitions, "stage", "room"
        await self._access.one(notes, "HSET", notes, *values)
        removed = 0
        async for page in key_pages(self._access, keys):
            gone = [each.key for each in page if each.key not in (*metas, notes)]
            await self._access.unlink([key.encode("utf-8", "surrogateescape") for key in gone])
            removed += len(gone)
            self._progress("keys removed", removed, None)
        await self._access.one(notes, "HSET", notes, "stage", "lines", "line", 0)

    # Lines

    async def _lines(self, checked: CheckedFile) -> None:
        self._file.seek(0)
        number = 0
        apply: dict[str, Callable[[dict[str, Any]], Any]] = {
            "account": self._account, "api_keys": self._api_keys, "hash": self._hash, "zset": self._zset,
            "string": self._string, "instance": self._instance,
        }  # fmt: skip
        for number, row in lines_of(self._file):
            kind = row["kind"]
            try:
                if kind == "stream":
                    self._ids[row["stream"]] = StreamIds(entry_id(row["last"]), entry_id(row["deleted"]))
                if number <= self._line:
                    continue
                if kind == "entries":
                    await self._entries(row)
                elif kind in apply:
                    apply[kind](row)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise FileError(f"line {number + 1} lacks something, or has something else: {error}") from None
            if len(self._calls) >= CALLS_AT_ONCE or self._bytes >= BYTES_AT_ONCE or kind == "entries":
                await self._done(number)
                self._progress("lines imported", number, checked.lines)
        await self._done(number)
        self._progress("lines imported", number, checked.lines)

    async def _done(self, number: int) -> None:
        if number > self._line:
            await self._access.each(self._calls)
            notes = self._notes()
            await self._access.one(notes, "HSET", notes, "line", number)
            self._calls, self._bytes, self._line = [], 0, number

    def _add(self, key: str, *args: Argument) -> None:
        self._calls.append(Call(key, args))
        self._bytes += sum(len(arg) for arg in args if isinstance(arg, bytes | str))

    def _account(self, row: dict[str, Any]) -> None:
        id_ = str(row["id"])
        key = self._keys.account(id_)
        if row["state"] is not None:
            self._add(self._keys.state(id_), "SET", self._keys.state(id_), decoded(row["state"]))
        for name, value in row["fields"].items():
            self._add(key, "HSET", key, name, decoded(value))
        marks: list[tuple[bytes, bytes, int]] = []
        for digest, text in row["marks"].items():
            packed = decoded(text)
            until_ms = mark_until_ms(packed) or 0
            if until_ms > self._now_ms:
                marks.append((b"i" + bytes.fromhex(digest), packed, until_ms))
        for at in range(0, len(marks), FIELDS_AT_ONCE):
            parts = [part for mark in marks[at : at + FIELDS_AT_ONCE] for part in mark]
            self._add(key, "EVAL", _MARKS, 1, key, self._now_ms, *parts)
        if row["listed"]:
            index = self._keys.accounts(self._keys.partition(id_))
            self._add(index, "ZADD", index, 0, id_)

    def _api_keys(self, row: dict[str, Any]) -> None:
        for digest, owner in row["keys"].items():
            sha256 = bytes.fromhex(digest)
            key = self._keys.api_keys(sha256)
            self._add(key, "HSET", key, sha256, str(owner))

    def _hash(self, row: dict[str, Any]) -> None:
        key = value_key(self._keys, row["key"], row["of"])
        parts = [decoded(part) for pair in row["fields"] for part in pair]
        if parts and not self._is_over(row):
            for at in range(0, len(parts), 2 * FIELDS_AT_ONCE):
                self._add(key, "HSET", key, *parts[at : at + 2 * FIELDS_AT_ONCE])
            self._expire(key, row)

    def _zset(self, row: dict[str, Any]) -> None:
        key = value_key(self._keys, row["key"], row["of"])
        parts = [part for member, score in row["members"] for part in (str(score), decoded(member))]
        if parts and not self._is_over(row):
            self._add(key, "ZADD", key, *parts)
            self._expire(key, row)

    def _string(self, row: dict[str, Any]) -> None:
        key = value_key(self._keys, row["key"], row["of"])
        if not self._is_over(row):
            self._add(key, "SET", key, decoded(row["value"]))
            self._expire(key, row)

    def _instance(self, row: dict[str, Any]) -> None:
        """As one that departed. In another number of partitions no gateway goes on, since its configuration changes."""
        if self._from_partitions != self._keys.partitions:
            return
        key = self._keys.instance(int(row["partition"]), str(row["of"]))
        values = (0, int(row["number"]), 0, decoded(row["chain"]))
        packed = b"".join(msgpack.packb(value, use_bin_type=False) for value in values)
        self._add(key, "SET", key, packed, "PX", FORGET_MS)

    def _is_over(self, row: Mapping[str, Any]) -> bool:
        return row["expires_ms"] is not None and int(row["expires_ms"]) <= self._now_ms

    def _expire(self, key: str, row: Mapping[str, Any]) -> None:
        if row["expires_ms"] is not None:
            self._add(key, "PEXPIREAT", key, int(row["expires_ms"]))

    async def _entries(self, row: dict[str, Any]) -> None:
        name = str(row["stream"])
        if name not in STREAMS:
            raise ValueError(f"a stream {name!r}")
        by_partition: dict[int, list[StreamEntry]] = defaultdict(list)
        for each in row["entries"]:
            fields = tuple(decoded(part) for part in each["f"])
            entry = StreamEntry(str(int(each["p"])), entry_id(each["id"]), fields)
            by_partition[self._place(name, int(each["p"]), fields)].append(entry)
        for partition, entries in by_partition.items():
            writer, place = self._writer(name, partition), (name, partition)
            if place not in self._after:
                self._after[place] = await writer.after()
            after = self._after[place]
            await writer.append([entry for entry in entries if entry.id > after.get(entry.source, (-1, 0))])

    def _place(self, name: str, source: int, fields: Sequence[bytes]) -> int:
        """The partition of an entry: of the account where the scripts or readers look for it there."""
        if name in ("refused", "audit-log"):
            account = dict(zip(fields[::2], fields[1::2], strict=True)).get(b"account", b"")
            return self._keys.partition(account.decode()) if account else 0
        return source % self._keys.partitions

    def _writer(self, name: str, partition: int) -> StreamWriter:
        place = name, partition
        if place not in self._writers:
            key = stream_key(self._keys, name, partition)
            self._writers[place] = StreamWriter(self._access, key, self._notes(partition), name)
        return self._writers[place]

    # The end

    async def _differences(self, checked: CheckedFile) -> list[str]:
        """What was written is there."""
        keys, partitions = self._keys, range(self._keys.partitions)
        found = {"accounts": await self._sum("ZCARD", [keys.accounts(p) for p in partitions])}
        hashes = [keys.api_keys_hash(p, first) for p in partitions for first in range(256)]
        found["API keys"] = await self._sum("HLEN", hashes)
        for name in STREAMS:
            found[f"entries of {name}"] = await self._sum("XLEN", [stream_key(keys, name, p) for p in partitions])
        return [
            f"{what}: {checked.counts.get(what, 0):,} in the file, {number:,} in the ledger"
            for what, number in found.items()
            if number != checked.counts.get(what, 0)
        ]

    async def _sum(self, command: str, names: Sequence[str]) -> int:
        total = 0
        for at in range(0, len(names), CALLS_AT_ONCE):
            some = names[at : at + CALLS_AT_ONCE]
            total += sum(await self._access.each([Call(key, (command, key)) for key in some]))
        return total

    async def _finish(self, checked: CheckedFile) -> None:
        keys, header = self._keys, checked.header
        # That of partition 0 last: it tells that there is something to go on with.
        for partition in reversed(range(keys.partitions)):
            names = [
                keys.meta(partition), keys.clock(partition), keys.outbox(partition),
                keys.first_format(partition, "accounts"), keys.first_format(partition, "alive"),
            ]  # fmt: skip
            await self._access.one(
                names[0], "EVAL", _BEGIN, len(names), *names, FORMAT, keys.partitions,
                header.generation_of(partition), header.epochs, header.adjustments, checked.sha256,
            )  # fmt: skip
        await self._access.unlink([self._notes(partition) for partition in reversed(range(keys.partitions))])
