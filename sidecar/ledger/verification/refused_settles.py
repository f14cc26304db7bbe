"""Settles that no account could take: served calls that nobody was charged for (lua/refuse.lua).

A gateway keeps them when an account cannot be read or charged. Once it can, they are charged, with the events and the
ids that they had from the start; or somebody decides that they are not to be charged.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

import msgpack
import orjson
from redis.exceptions import ResponseError

from sidecar.basics.fault_reasons import reason_of
from sidecar.basics.logger import get_logger
from sidecar.ledger.client.server_answers import server_answer
from sidecar.ledger.keys import Keys
from sidecar.valkey.calls import Call, call_each, raise_first, script_call
from sidecar.valkey.scripts import script
from sidecar.valkey.topology import Client

log = get_logger("sidecar.ledger")

PAGE_ENTRIES: Final = 100
MARKS_MAX: Final = 6_000
"""Idempotency keys and records of spools of one entry: a script takes fewer than 8,000 values from its stack at once.
Two for each of PARTS_MAX in lua/batch.lua, so that no gateway's are too many."""

_ID = re.compile(r"([0-9]{1,5})/([0-9]{1,20}-[0-9]{1,20})")


class UnknownRefusedSettles(ValueError):
    """A text is not the id of refused settles. The message names it."""


@dataclass(frozen=True, slots=True)
class RefusedMark:
    """What is kept of an event's idempotency key (lua/reapply.lua). ``record``: of a spool; ``digest`` and
    ``fingerprint``: of the caller's key. What there is not is empty. ``p``, ``q``: with a record the most free repeats
    and 0, else epoch and token of the hold."""

    record: bytes = b""
    digest: bytes = b""
    fingerprint: bytes = b""
    p: int = 0
    q: int = 0

    @property
    def count(self) -> int:
        """How many fields of the account it is about."""
        return bool(self.record) + bool(self.digest)


@dataclass(frozen=True, slots=True)
class RefusedEvent:
    """``number``: of the event in its batch."""

    number: int
    metric: str
    units: int
    text: bytes
    mark: RefusedMark


@dataclass(frozen=True, slots=True)
class RefusedSettles:
    """One entry. ``id``: what :func:`reapply` and :func:`drop` take. ``broken``: why it cannot be read, or ""."""

    id: str
    account: str
    at_ms: int
    reason: str
    origin: str
    seq: int
    events: tuple[RefusedEvent, ...]
    broken: str = ""

    @property
    def units(self) -> int:
        return sum(event.units for event in self.events)

    @property
    def place(self) -> tuple[int, str]:
        """Partition and id in its stream."""
        return _place(self.id)


@dataclass(frozen=True, slots=True)
class Reapplied:
    """What became of one entry. ``skipped``: events that had been charged by another call. ``problem``: why it stays,
    or ""."""

    id: str
    account: str
    units: int = 0
    events: int = 0
    skipped: int = 0
    problem: str = ""


async def refused_settles(
    client: Client, keys: Keys, *, account: str | None = None, ids: Iterable[str] = (), limit: int | None = None
) -> list[RefusedSettles]:
    """The oldest ``limit`` entries of all partitions, oldest first; of one account, or with these ids, where given.

    Raises:
        UnknownRefusedSettles: a text is not an id.
        RedisError, OSError: Valkey cannot be reached.
    """
    wanted = {_checked(id_, keys) for id_ in ids}
    found: list[list[RefusedSettles]] = []
    for partition in sorted({place for place, _ in wanted}) if wanted else range(keys.partitions):
        of_partition: list[RefusedSettles] = []
        async for entry in _entries(client, keys, partition):
            if account in (None, entry.account) and (not wanted or entry.place in wanted):
                of_partition.append(entry)
                if limit is not None and len(of_partition) >= limit:
                    break
        found.append(of_partition)
    return list(islice(heapq.merge(*found, key=lambda entry: int(entry.place[1].partition("-")[0])), limit))


async def count_refused(client: Client, keys: Keys) -> int:
    """How many entries there are. Raises what redis-py raises."""
    streams = [keys.refused(partition) for partition in range(keys.partitions)]
    replies = await call_each(client, [Call(key, ("XLEN", key)) for key in streams])
    raise_first(replies)
    return sum(replies)


async def reapply(
    client: Client, keys: Keys, entries: Sequence[RefusedSettles], marks_ttl_ms: int
) -> AsyncIterator[Reapplied]:
    """Charges them one by one. What cannot be charged stays. ``marks_ttl_ms``: how long their idempotency keys count.

    Raises:
        RedisError, OSError: Valkey cannot be reached; those that were answered are done.
    """
    for entry in entries:
        marks = sum(event.mark.count for event in entry.events)
        problem = entry.broken or (f"it has {marks} idempotency keys" if marks > MARKS_MAX else "")
        if problem:
            yield Reapplied(entry.id, entry.account, problem=problem)
            continue
        partition, id_ = entry.place
        events = [
            (each.number, each.metric, each.units, each.text, each.mark.record, each.mark.digest,
             each.mark.fingerprint, each.mark.p, each.mark.q)
            for each in entry.events
        ]  # fmt: skip
        argument = msgpack.packb((id_, marks_ttl_ms, entry.origin, entry.seq, events), use_bin_type=False)
        names = [
            keys.clock(partition), keys.outbox(partition), keys.refused(partition), keys.state(entry.account),
            keys.account(entry.account),
        ]  # fmt: skip
        [reply] = await call_each(client, [script_call(script("reapply").text, names, argument)])
        yield _reapplied(entry, reply)


def _reapplied(entry: RefusedSettles, reply: Any) -> Reapplied:
    if isinstance(reply, ResponseError):
        return Reapplied(entry.id, entry.account, problem=server_answer(reason_of(reply)).reason)
    raise_first([reply])
    if reply[0] != b"OK":
        return Reapplied(entry.id, entry.account, problem="it is not there any more")
    _, units, events, skipped = reply
    log.info("refused settles were charged", account=entry.account, units=units, events=events, skipped=skipped,
             entry=entry.id)  # fmt: skip
    return Reapplied(entry.id, entry.account, units, events, skipped)


async def drop(client: Client, keys: Keys, entries: Sequence[RefusedSettles], why: str) -> list[RefusedSettles]:
    """Deletes them: nobody is ever charged. Each is in the log with its events. Answers those that were there.

    Raises:
        RedisError, OSError: Valkey cannot be reached.
    """
    gone = []
    for entry in entries:
        partition, id_ = entry.place
        [reply] = await call_each(client, [Call(keys.refused(partition), ("XDEL", keys.refused(partition), id_))])
        raise_first([reply])
        if reply:
            gone.append(entry)
            log.warning(
                "refused settles were dropped", account=entry.account, units=entry.units, why=why, entry=entry.id,
                refused_because=entry.reason, events=[event.text.decode("utf-8", "replace") for event in entry.events],
            )  # fmt: skip
    return gone


async def _entries(client: Client, keys: Keys, partition: int) -> AsyncIterator[RefusedSettles]:
    start = "-"
    while True:
        page: Any = await client.xrange(keys.refused(partition), start, "+", PAGE_ENTRIES)
        for id_, fields in page or ():
            yield _refused(f"{partition}/{id_.decode()}", fields)
        if len(page or ()) < PAGE_ENTRIES:
            return
        start = "(" + page[-1][0].decode()


def _refused(id_: str, fields: Mapping[bytes, bytes]) -> RefusedSettles:
    def text(name: bytes) -> str:
        return fields.get(name, b"").decode("utf-8", "replace")

    account, reason = text(b"account"), text(b"reason")
    try:
        rows, marks = orjson.loads(fields[b"e"]), orjson.loads(fields[b"marks"])
        events = []
        for number, (row, mark) in enumerate(zip(rows, marks, strict=True)):
            of, metric, units, *_ = row
            if of != account or type(units) is not int or units < 0 or not isinstance(metric, str):
                raise ValueError(f"event {number} is none of the account's")
            events.append(RefusedEvent(number, metric, units, orjson.dumps(row), _mark(mark)))
        at_ms, seq = int(fields[b"t"]), int(fields[b"q"])
    except (LookupError, TypeError, ValueError) as error:
        return RefusedSettles(id_, account, 0, reason, text(b"o"), 0, (), f"the entry cannot be read: {error}"[:200])
    return RefusedSettles(id_, account, at_ms, reason, text(b"o"), seq, tuple(events))


def _mark(parts: Any) -> RefusedMark:
    match parts:
        case None:
            return RefusedMark()
        case [str(record), str(digest), str(fingerprint), int(p), int(q)]:
            return RefusedMark(bytes.fromhex(record), bytes.fromhex(digest), bytes.fromhex(fingerprint), p, q)
    raise ValueError("an idempotency key")


def _checked(id_: str, keys: Keys) -> tuple[int, str]:
    match = _ID.fullmatch(id_)
    if match is None or int(match[1]) >= keys.partitions:
        raise UnknownRefusedSettles(f"{id_[:80]!r} is not the id of refused settles, such as 7/1767225600000-0")
    return int(match[1]), match[2]


def _place(id_: str) -> tuple[int, str]:
    partition, _, of_stream = id_.partition("/")
    return int(partition), of_stream
