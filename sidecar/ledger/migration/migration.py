"""Makes a ledger of format 2 out of one of format 1, beside it on the same Valkey, while nobody uses either.

Until the last step the old ledger is as it was, but for a note of how far the work has come; a gateway of release 0.2
can go on with it, and one of the new release says that it has format 1. The last step gives the new partitions what
they say of themselves, those last that would still say "format 1" otherwise.

Every step can be done twice. What was begun and not finished is gone on with, and if the old ledger has changed
meanwhile, so that the sides differ, all of it is copied anew.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import orjson

from sidecar.ledger.hours import HOURS_OF_DAY
from sidecar.ledger.keys import FORMAT, Keys
from sidecar.ledger.ledger_format import new_generation
from sidecar.ledger.migration.conversion import converted_fields, converted_state, hours_of, taken, with_hours
from sidecar.ledger.migration.first_format import (
    PARTITIONS_MAX,
    FirstKey,
    FirstKeys,
    MigrationError,
    decode_first_account,
)
from sidecar.ledger.migration.first_reader import FirstCensus, day_pages, id_pages, parsed_pages
from sidecar.ledger.migration.migration_report import DIFFERENCES_MAX, MigrationReport, ReportRow, rows_of
from sidecar.ledger.migration.verification import (
    MOVED_KINDS,
    STREAM_NAMES,
    Verification,
    moved_key,
    stream_sources,
)
from sidecar.ledger.transfer.access import Access, Progress, living, no_progress
from sidecar.ledger.transfer.names import stream_key
from sidecar.ledger.transfer.streams import StreamWriter, merged_pages, stream_ids
from sidecar.valkey.calls import Call

KNOWN_KINDS: Final = frozenset(
    {
        "account", "accounts", "instance", "alive", "outbox", "hour", "sent", "idem", "dead-letters", "apikey",
        "lease", "migration", "migration-unlisted", *MOVED_KINDS,
    }
)  # fmt: skip
"""What release 0.2 stores, and what this stores beside it."""

GUARDS: Final = ("accounts", "alive")
"""Keys of release 0.2 that become texts, so that it fails instead of beginning an empty ledger."""

FADING_MS: Final = 6 * 3_600_000
"""Hours that release 0.2 forgets within this time are left out: they would go while both sides are compared. The units
of a running period that no hour has are known as such."""

_COPY, _FINISH, _CLEAN = b"copy", b"finish", b"clean"

_BEGIN: Final = """
-- The new partition says what it is, and a gateway of release 0.2 no longer finds its own.
-- KEYS [1] meta hash [2] clock [3] outbox [4] accounts and [5] alive of format 1 [6] [7] where these are kept
-- ARGV [1] format [2] partitions [3] generation [4] 1: keep
local time = redis.call('TIME')
if redis.call('TYPE', KEYS[3]).ok == 'none' then
  redis.call('XDEL', KEYS[3], redis.call('XADD', KEYS[3], '*', 'o', ''))
end
for k = 4, 5 do
  if redis.call('TYPE', KEYS[k]).ok == 'zset' then
    if ARGV[4] == '1' then
      redis.call('RENAME', KEYS[k], KEYS[k + 2])
    end
    redis.call('SET', KEYS[k], 'format ' .. ARGV[1])
  elseif redis.call('EXISTS', KEYS[k]) == 0 then
    redis.call('SET', KEYS[k], 'format ' .. ARGV[1])
  end
end
redis.call('SET', KEYS[2], cmsgpack.pack(tonumber(ARGV[1]), time[1] * 1000000 + time[2]))
redis.call('HSET', KEYS[1], 'format', ARGV[1], 'partitions', ARGV[2], 'generation', ARGV[3])
"""

_GUARD: Final = """
-- KEYS [1] accounts and [2] alive of format 1, of a partition that the new ledger lacks [3] [4] where these are kept
-- ARGV [1] format [2] 1: keep
for k = 1, 2 do
  if redis.call('TYPE', KEYS[k]).ok == 'zset' then
    if ARGV[2] == '1' then
      redis.call('RENAME', KEYS[k], KEYS[k + 2])
    end
    redis.call('SET', KEYS[k], 'format ' .. ARGV[1])
  end
end
"""


class Migration:
    """One run. ``force``: also while gateways of release 0.2 seem to live. ``keep_old``: the old keys stay, the index
    and the heartbeats under the names ``accounts-kept`` and ``alive-kept``."""

    def __init__(
        self,
        access: Access,
        keys: Keys,
        *,
        first_partitions: int,
        instance_ttl_ms: int,
        force: bool = False,
        keep_old: bool = False,
        progress: Progress = no_progress,
    ) -> None:
        self._access = access
        self._keys = keys
        self._first = FirstKeys(keys, first_partitions)
        self._ttl_ms = instance_ttl_ms
        self._force = force
        self._keep_old = keep_old
        self._progress = progress
        self._notes: dict[bytes, bytes] = {}
        self._census = FirstCensus()
        self._differences: list[str] = []
        self._entries = Counter[str]()
        self._indexed: set[int] = set()

    def __repr__(self) -> str:
        return f"Migration({self._keys!r}, from {self._first.partitions} partitions)"

    async def run(self) -> MigrationReport:
        """Migrates, or goes on where an interrupted run stopped.

        Raises:
            MigrationError: there is nothing to migrate, somebody uses it, or the numbers of partitions are wrong.
            RedisError, OSError: Valkey cannot be reached; a further run goes on.
        """
        self._notes = await self._read_notes()
        formats = await self._formats()
        if not self._notes:
            if all(each is not None for each in formats) and not await self._zsets():
                return MigrationReport(already=True)
            await self._check_old(formats)
            await self._start_anew()
            report = await self._copied_and_compared(resumed=False)
        else:
            self._check_numbers()
            report = self._noted_report()
            if self._notes[b"stage"] == _COPY:
                report = await self._copied_and_compared(resumed=True)
                if report.differences:
                    # The old ledger has been used since.
                    await self._start_anew()
                    report = await self._copied_and_compared(resumed=True)
        if report.differences:
            await self._forget()
            return report
        if self._notes[b"stage"] == _COPY:
            await self._check_living()
            await self._note(stage=_FINISH, rows=orjson.dumps(report.rows))
        if self._notes[b"stage"] == _FINISH:
            await self._finish()
            await self._note(stage=_CLEAN)
        await self._clean()
        return report

    # What there is

    async def _read_notes(self) -> dict[bytes, bytes]:
        key = self._first.progress()
        notes: dict[bytes, bytes] = await self._access.one(key, "HGETALL", key)
        return notes if b"stage" in notes else {}

    def _noted_report(self) -> MigrationReport:
        """Of a run that was interrupted after its comparison."""
        rows = orjson.loads(self._notes.get(b"rows", b"[]"))
        return MigrationReport(
            rows=tuple(ReportRow(**row) for row in rows),
            resumed=True,
            generation=self._notes[b"generation"].decode(),
        )

    async def _note(self, **notes: bytes | str | int) -> None:
        key = self._first.progress()
        await self._access.one(key, "HSET", key, *[part for pair in notes.items() for part in pair])
        self._notes |= {
            name.encode(): value if isinstance(value, bytes) else str(value).encode() for name, value in notes.items()
        }

    async def _formats(self) -> list[bytes | None]:
        metas = [self._keys.meta(partition) for partition in range(self._keys.partitions)]
        return await self._access.each([Call(key, ("HGET", key, "format")) for key in metas])

    async def _zsets(self, first: int = 0, beyond: int | None = None) -> list[int]:
        """Partitions that have an index or heartbeats of format 1."""
        partitions = range(first, self._first.partitions if beyond is None else beyond)
        names = [(p, self._first.name(p, name)) for p in partitions for name in GUARDS]
        types = await self._access.each([Call(key, ("TYPE", key)) for _, key in names])
        return sorted({p for (p, _), found in zip(names, types, strict=True) if found == b"zset"})

    async def _check_old(self, formats: Sequence[bytes | None]) -> None:
        prefix = self._keys.prefix
        if not await self._zsets():
            raise MigrationError(f"there is no ledger of format 1 with the prefix {prefix!r}: nothing was changed")
        if beyond := await self._zsets(self._first.partitions, PARTITIONS_MAX):
            raise MigrationError(
                f"the ledger of format 1 has a partition {beyond[-1]}: give the number of its partitions with "
                f"--from-partitions (more than {beyond[-1]})"
            )
        made = [partition for partition, each in enumerate(formats) if each is not None]
        if made := [partition for partition in made if await self._is_used(partition)]:
            raise MigrationError(
                f"with the prefix {prefix!r} there are data of both formats (format {FORMAT} in partition {made[0]}), "
                "and no migration has begun: remove those of one, or use another prefix"
            )
        await self._check_living()

    async def _is_used(self, partition: int) -> bool:
        """Whether a new partition has data. A gateway of the new release that starts while Valkey is away asks, once it
        is back, only its home partition, which may be one that the old ledger did not have; it then makes it."""
        keys = self._keys
        calls = [
            ("ZCARD", keys.accounts(partition)),
            ("XLEN", keys.outbox(partition)),
            ("ZCARD", keys.alive(partition)),
        ]
        return any(await self._access.each([Call(key, (command, key)) for command, key in calls]))

    async def _check_living(self) -> None:
        if self._force:
            return
        first = self._first
        alive = [first.name(partition, "alive") for partition in range(first.partitions)]
        if names := await living(self._access, alive, self._ttl_ms):
            raise MigrationError(
                f"gateways of release 0.2 are running: {', '.join(sorted(set(names))[:10])}. Stop them and their "
                f"control planes, wait for {self._ttl_ms / 1000:.0f} s, then try again (--force migrates all the same)"
            )
        key = first.name(0, "lease:billing")
        holder, until_us = await self._access.one(key, "HMGET", key, "holder", "until_us")
        if until_us and int(until_us) > await self._access.now_ms(key) * 1000:
            raise MigrationError(
                f"a control plane of release 0.2 is running: {holder.decode('utf-8', 'replace')}. Stop it, then try "
                "again (--force migrates all the same)"
            )

    def _check_numbers(self) -> None:
        begun = int(self._notes[b"from"]), int(self._notes[b"to"])
        if begun != (self._first.partitions, self._keys.partitions):
            raise MigrationError(
                f"a migration from {begun[0]} to {begun[1]} partitions was begun and not finished: go on with "
                f"--from-partitions {begun[0]} and ledger.partitions {begun[1]}"
            )

    # Copying

    async def _start_anew(self) -> None:
        """Nothing of an earlier attempt stays."""
        await self._forget()
        await self._note(
            **{"from": self._first.partitions, "to": self._keys.partitions}, generation=new_generation(), stage=_COPY
        )

    async def _forget(self) -> None:
        """Removes what was copied, and what was noted."""
        async for page in self._access.key_pages(f"{self._keys.prefix}:v{FORMAT}:{{p*}}:*"):
            await self._access.unlink(page)
        await self._forget_notes()
        self._census = FirstCensus()

    async def _forget_notes(self) -> None:
        first = self._first
        partitions = range(max(first.partitions, self._keys.partitions))
        await self._access.unlink([first.unlisted(partition) for partition in partitions])
        # That of partition 0 last: it tells that there is something to go on with.
        await self._access.unlink([first.progress(partition) for partition in partitions if partition])
        await self._access.unlink([first.progress()])
        self._notes = {}

    async def _copied_and_compared(self, *, resumed: bool) -> MigrationReport:
        self._differences = []
        self._entries.clear()
        self._census = FirstCensus()
        await self._copy_keys()
        await self._copy_hours()  # first: an account is told what no hour has
        done = 0
        for partition in range(self._first.partitions):
            done = await self._copy_accounts(partition, done, listed=True)
            done = await self._copy_accounts(partition, done, listed=False)
        for name in STREAM_NAMES:
            for partition in range(self._keys.partitions):
                await self._copy_stream(name, partition)
        comparison = Verification(self._access, self._keys, self._first, self._census, self._progress)
        if not self._differences:
            await comparison.run()
        return MigrationReport(
            rows=rows_of(comparison.before, comparison.after),
            differences=(*self._differences, *comparison.differences),
            resumed=resumed,
            released=comparison.released,
            marks=self._census.marks,
            marks_ms=self._census.marks_ms,
            unknown_keys=tuple(self._census.unknown),
            generation=self._notes[b"generation"].decode(),
        )

    def _differ(self, what: str) -> None:
        if len(self._differences) < DIFFERENCES_MAX:
            self._differences.append(what)

    async def _copy_keys(self) -> None:
        """All that no index lists. It is looked through in every run, from the beginning."""
        names = [self._first.name(partition, "accounts") for partition in range(self._first.partitions)]
        types = await self._access.each([Call(key, ("TYPE", key)) for key in names])
        self._indexed = {partition for partition, found in enumerate(types) if found == b"zset"}
        looked_at, fading = 0, set[int]()
        async for page in parsed_pages(self._access, self._first):
            by_kind: dict[str, list[tuple[FirstKey, str]]] = defaultdict(list)
            for what, key, _ in page:
                if what.kind not in KNOWN_KINDS:
                    if len(self._census.unknown) < DIFFERENCES_MAX:
                        self._census.unknown.append(key)
                elif what.partition < self._first.partitions:
                    by_kind[what.kind].append((what, key))
                elif what.kind not in ("migration", *GUARDS):
                    raise MigrationError(
                        f"{key!r} is beyond the partitions of the old ledger: give their number with --from-partitions"
                    )
            await self._find_hours(by_kind["hour"], fading)
            await self._find_unlisted(by_kind["account"])
            await self._copy_api_keys(by_kind["apikey"])
            await self._copy_alike([each for kind in MOVED_KINDS for each in by_kind[kind]])
            await self._count_marks([key for _, key in by_kind["idem"]])
            looked_at += len(page)
            self._progress("keys looked at", looked_at, None)
        for hour in fading:
            self._census.hours.pop(hour, None)

    async def _find_hours(self, found: Sequence[tuple[FirstKey, str]], fading: set[int]) -> None:
        """Notes which hours there are, and in ``fading`` those that go too soon to be compared."""
        ttls = await self._access.each([Call(key, ("PTTL", key)) for _, key in found])
        for (what, _), ttl_ms in zip(found, ttls, strict=True):
            self._census.hours[int(what.rest)].add(what.partition)
            if ttl_ms != -1 and ttl_ms < FADING_MS:
                fading.add(int(what.rest))

    async def _find_unlisted(self, accounts: Sequence[tuple[FirstKey, str]]) -> None:
        indexed = [what for what, _ in accounts if what.partition in self._indexed]
        indexes = [self._first.name(what.partition, "accounts") for what in indexed]
        scores = await self._access.each(
            [Call(index, ("ZSCORE", index, what.rest)) for index, what in zip(indexes, indexed, strict=True)]
        )
        unlisted = [what for what, _ in accounts if what.partition not in self._indexed]
        unlisted += [what for what, score in zip(indexed, scores, strict=True) if score is None]
        names = [self._first.unlisted(what.partition) for what in unlisted]
        await self._access.each(
            [Call(name, ("ZADD", name, 0, what.rest)) for name, what in zip(names, unlisted, strict=True)]
        )

    async def _copy_api_keys(self, found: Sequence[tuple[FirstKey, str]]) -> None:
        owners = await self._access.each([Call(key, ("GET", key)) for _, key in found])
        calls = []
        for (what, key), owner in zip(found, owners, strict=True):
            try:
                sha256 = bytes.fromhex(what.rest)
            except ValueError:
                sha256 = b""
            if len(sha256) != 32:
                self._differ(f"{key!r} is no API key")
            elif owner is not None:
                place = self._keys.api_keys(sha256)
                calls.append(Call(place, ("HSET", place, sha256, owner)))
        await self._access.each(calls)

    async def _copy_alike(self, found: Sequence[tuple[FirstKey, str]]) -> None:
        reads = [Call(key, command) for _, key in found for command in (("DUMP", key), ("PTTL", key))]
        replies = await self._access.each(reads)
        calls = []
        for (what, _), dumped, ttl_ms in zip(found, replies[::2], replies[1::2], strict=True):
            if dumped is not None:
                key = moved_key(self._keys, what.kind, what.rest)
                calls.append(Call(key, ("RESTORE", key, max(0, ttl_ms), dumped, "REPLACE")))
        await self._access.each(calls)

    async def _count_marks(self, names: Sequence[str]) -> None:
        for ttl_ms in await self._access.each([Call(key, ("PTTL", key)) for key in names]):
            self._census.marks += ttl_ms != -2
            self._census.marks_ms = max(self._census.marks_ms, ttl_ms)

    async def _copy_accounts(self, partition: int, done: int, *, listed: bool) -> int:
        index = self._first.name(partition, "accounts") if listed else self._first.unlisted(partition)
        mark = f"{'accounts' if listed else 'unlisted'}:{partition:02d}"
        noted = self._notes.get(mark.encode())
        if noted == b"done":
            return done
        after = noted.removeprefix(b"after ") if noted is not None else None
        async for page in id_pages(self._access, index, after):
            await self._copy_page(partition, [each.decode() for each in page], listed)
            await self._note(**{mark: b"after " + page[-1]})
            done += len(page)
            self._progress("accounts copied", done, None)
        await self._note(**{mark: b"done"})
        return done

    async def _copy_page(self, partition: int, ids: Sequence[str], listed: bool) -> None:
        olds = [self._first.name(partition, f"account:{id_}") for id_ in ids]
        calls: list[Call] = []
        news = [self._keys.account(id_) for id_ in ids]
        hashes = await self._access.each([Call(key, ("HGETALL", key)) for key in (*olds, *news)])
        for id_, fields, already in zip(ids, hashes[: len(ids)], hashes[len(ids) :], strict=True):
            try:
                account = decode_first_account(fields)
                state, stored = converted_state(account), converted_fields(account)
                if uncounted := taken(account, _hours_in(already)):
                    stored["taken"] = uncounted
            except ValueError as error:
                self._differ(f"account {id_!r} cannot be read: {error}")
                continue
            key = self._keys.state(id_)
            calls.append(Call(key, ("SET", key, state)))
            if stored:
                key = self._keys.account(id_)
                calls.append(Call(key, ("HSET", key, *[part for pair in stored.items() for part in pair])))
            if listed:
                key = self._keys.accounts(self._keys.partition(id_))
                calls.append(Call(key, ("ZADD", key, 0, id_)))
        await self._access.each(calls)

    async def _copy_hours(self) -> None:
        by_day: dict[int, dict[int, set[int]]] = defaultdict(dict)
        for hour, homes in self._census.hours.items():
            by_day[hour // HOURS_OF_DAY][hour] = homes
        for done, (day, homes_of) in enumerate(sorted(by_day.items()), 1):
            if day <= int(self._notes.get(b"day", b"-1")):
                continue
            async for page in day_pages(self._access, self._first, homes_of):
                await self._write_day(day, page.cells)
                for hour, notes in page.notes.items():
                    await self._write_notes(hour, notes)
            await self._note(day=day)
            self._progress("days of hours copied", done, len(by_day))

    async def _write_notes(self, hour: int, notes: Mapping[bytes, bytes]) -> None:
        if notes:
            old, new = self._first.name(0, f"hour:{hour}"), self._keys.audited_hour(hour)
            ttl_ms = await self._access.one(old, "PTTL", old)
            await self._access.one(new, "HSET", new, *[part for pair in notes.items() for part in pair])
            if ttl_ms > 0:
                await self._access.one(new, "PEXPIRE", new, ttl_ms)

    async def _write_day(self, day: int, cells: Mapping[tuple[str, str], Mapping[int, int]]) -> None:
        by_account: dict[str, list[tuple[int, str, int]]] = defaultdict(list)
        for (account, metric), units_of in cells.items():
            by_account[account] += [(hour % HOURS_OF_DAY, metric, units) for hour, units in units_of.items()]
        names = [self._keys.account(account) for account in by_account]
        stored = await self._access.each([Call(key, ("HGET", key, f"h{day}")) for key in names])
        await self._access.each(
            [
                Call(key, ("HSET", key, f"h{day}", with_hours(packed, counts)))
                for key, packed, counts in zip(names, stored, by_account.values(), strict=True)
            ]
        )

    async def _copy_stream(self, name: str, partition: int) -> None:
        sources = stream_sources(self._first, self._keys, name, partition)
        if not sources:
            return
        writer = StreamWriter(
            self._access, stream_key(self._keys, name, partition), self._first.progress(partition), name
        )
        async for page in merged_pages(self._access, sources, await writer.after()):
            await writer.append(page)
            self._entries[name] += len(page)
            self._progress(f"entries of {name} copied", self._entries[name], None)
        await writer.seal(await stream_ids(self._access, list(sources.values())))

    # The end

    async def _finish(self) -> None:
        first, keys = self._first, self._keys
        keep = int(self._keep_old)

        def old_names(partition: int) -> list[str]:
            return [first.name(partition, name) for name in (*GUARDS, *(f"{name}-kept" for name in GUARDS))]

        for partition in range(keys.partitions, first.partitions):
            names = old_names(partition)
            await self._access.one(names[0], "EVAL", _GUARD, len(names), *names, FORMAT, keep)
        old, generation = await self._zsets(), self._notes[b"generation"]
        # Those last that say "format 1" as long as they are not done: no gateway takes half a ledger for an empty one.
        for partition in sorted(range(keys.partitions), key=lambda each: (each in old, each)):
            if await self._access.one(keys.meta(partition), "HGET", keys.meta(partition), "generation") == generation:
                continue
            names = [keys.meta(partition), keys.clock(partition), keys.outbox(partition), *old_names(partition)]
            await self._access.one(
                names[0], "EVAL", _BEGIN, len(names), *names, FORMAT, keys.partitions, generation, keep
            )

    async def _clean(self) -> None:
        if not self._keep_old:
            removed = 0
            async for page in parsed_pages(self._access, self._first):
                gone = [key for what, _, key in page if what.kind in KNOWN_KINDS - {*GUARDS, "migration"}]
                await self._access.unlink(gone)
                removed += len(gone)
                self._progress("old keys removed", removed, None)
        await self._forget_notes()


def _hours_in(fields: Mapping[bytes, bytes]) -> Iterator[tuple[int, str, int]]:
    """Hour since the Unix epoch, metric and units of each count in the new hash of an account."""
    for name, packed in fields.items():
        if name[:1] == b"h" and name[1:].isdigit():
            for hour, metric, units in hours_of(packed):
                yield int(name[1:]) * HOURS_OF_DAY + hour, metric, units


def marks_sentence(report: MigrationReport) -> str:
    """What becomes of idempotency keys, in words; empty if there are none."""
    if not report.marks:
        return ""
    return (
        f"{report.marks:,} idempotency keys could not be taken along, since release 0.2 did not keep whose they are: a "
        f"call that is repeated with one of them is charged again, for up to {report.marks_ms / 3_600_000:.1f} h"
    )
