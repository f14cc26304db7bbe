"""The state of the outbox and the dead letters, for ``sidecar outbox status`` and ``dead-letters``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sidecar.ledger.keys import Keys
from sidecar.metering.dead_letters import AT_MS, ENTRY, EVENT, PREFIX, REASON
from sidecar.metering.outbox import outbox_scripts
from sidecar.metering.outbox.events import count_events
from sidecar.metering.outbox.outbox import GROUP
from sidecar.valkey.calls import Call, call_each, is_missing, raise_first, script_call
from sidecar.valkey.topology import Client

SAMPLE_ENTRIES = 5
IDS_MAX = 250
_LETTER_ID = re.compile(r"([0-9]{1,5})/([0-9]{1,20}-[0-9]{1,20})")


class UnknownDeadLetter(ValueError):
    """A text is not the id of a dead letter. The message names it."""


@dataclass(frozen=True, slots=True)
class ConsumerStatus:
    """A publisher as one stream knows it; ``idle_s`` since it last called."""

    name: str
    pending: int
    idle_s: float


@dataclass(frozen=True, slots=True)
class PartitionStatus:
    """One stream. ``entries`` are in it, of which ``pending`` are with a publisher and ``lag`` are not yet.

    ``events``: an estimate, by the mean of a few entries from both ends. ``sent_entries``: those that OpenMeter has
    accepted and that are kept for the audit.
    """

    partition: int
    entries: int
    events: int
    lag: int
    pending: int
    oldest_s: float
    dead_letters: int
    sent_entries: int
    consumers: tuple[ConsumerStatus, ...]


@dataclass(frozen=True, slots=True)
class OutboxStatus:
    """All streams, and their sums."""

    partitions: tuple[PartitionStatus, ...]

    @property
    def entries(self) -> int:
        return sum(each.entries for each in self.partitions)

    @property
    def events(self) -> int:
        return sum(each.events for each in self.partitions)

    @property
    def lag(self) -> int:
        return sum(each.lag for each in self.partitions)

    @property
    def pending(self) -> int:
        return sum(each.pending for each in self.partitions)

    @property
    def oldest_s(self) -> float:
        return max((each.oldest_s for each in self.partitions), default=0.0)

    @property
    def dead_letters(self) -> int:
        return sum(each.dead_letters for each in self.partitions)

    @property
    def sent_entries(self) -> int:
        return sum(each.sent_entries for each in self.partitions)

    @property
    def consumers(self) -> tuple[str, ...]:
        """Names of all publishers, sorted."""
        return tuple(sorted({consumer.name for each in self.partitions for consumer in each.consumers}))


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """``id`` is what :func:`requeue_dead_letters` takes. ``event``: the CloudEvent's JSON, None if it did not get
    that far. ``fields``: those of the outbox entry, cut to the one event.
    """

    id: str
    reason: str
    at_ms: int
    entry: str
    event: bytes | None
    fields: dict[bytes, bytes]


async def outbox_status(client: Client, keys: Keys, *, reachable: bool = False) -> OutboxStatus:
    """The state of all partitions, each at its own moment. ``reachable``: of those that can be reached, if any can.

    Raises:
        RedisError, OSError: Valkey cannot be reached.
    """
    partitions = range(keys.partitions)
    calls: list[Call] = []
    for partition in partitions:
        outbox = keys.outbox(partition)
        calls += [
            script_call(
                outbox_scripts.MEASURE,
                [outbox, keys.dead_letters(partition), keys.sent(partition), keys.refused(partition)],
            ),
            Call(outbox, ("XPENDING", outbox, GROUP)),
            Call(outbox, ("XINFO CONSUMERS", outbox, GROUP)),
            Call(outbox, ("XRANGE", outbox, "-", "+", "COUNT", SAMPLE_ENTRIES)),
            Call(outbox, ("XREVRANGE", outbox, "+", "-", "COUNT", SAMPLE_ENTRIES)),
        ]
    replies = await call_each(client, calls)
    width = len(calls) // len(partitions)
    by_partition = {p: replies[p * width : (p + 1) * width] for p in partitions}
    if reachable:
        by_partition = {p: mine for p, mine in by_partition.items() if not any(map(_is_lost, mine))} or by_partition
    return OutboxStatus(tuple(_partition_status(p, mine) for p, mine in by_partition.items()))


def _is_lost(reply: Any) -> bool:
    return isinstance(reply, Exception) and not is_missing(reply)


def _partition_status(partition: int, replies: Sequence[Any]) -> PartitionStatus:
    measure, pending, consumers, first, last = (_unless_missing(reply) for reply in replies)
    entries, age_ms, dead_letters, sent_entries, _refused = measure
    sample = [count_events(fields) for _, fields in (*first, *last)]
    taken = _pending_count(pending)
    return PartitionStatus(
        partition=partition,
        entries=entries,
        events=round(entries * sum(sample) / len(sample)) if sample else 0,
        lag=max(0, entries - taken),
        pending=taken,
        oldest_s=max(0, age_ms) / 1000,
        dead_letters=dead_letters,
        sent_entries=sent_entries,
        consumers=tuple(
            ConsumerStatus(_text(item["name"]), item["pending"], item["idle"] / 1000) for item in consumers
        ),
    )


def _unless_missing(reply: Any) -> Any:
    """A reply; an empty one where stream or group do not exist yet."""
    if is_missing(reply):
        return ()
    raise_first([reply])
    return reply


def _pending_count(reply: Any) -> int:
    return int(reply["pending"]) if isinstance(reply, dict) else int(reply[0]) if reply else 0


async def dead_letters(client: Client, keys: Keys, limit: int = 100) -> list[DeadLetter]:
    """The oldest ``limit`` dead letters of all partitions, oldest first.

    Raises:
        RedisError, OSError: Valkey cannot be reached.
    """
    assert limit > 0
    streams = [keys.dead_letters(partition) for partition in range(keys.partitions)]
    calls = [Call(key, ("XRANGE", key, "-", "+", "COUNT", limit)) for key in streams]
    replies = await call_each(client, calls)
    raise_first(replies)
    found = [_letter(partition, id_, fields) for partition, reply in enumerate(replies) for id_, fields in reply]
    return sorted(found, key=lambda letter: (letter.at_ms, letter.id))[:limit]


def _letter(partition: int, id_: bytes, fields: dict[bytes, bytes]) -> DeadLetter:
    return DeadLetter(
        id=f"{partition}/{id_.decode()}",
        reason=fields.get(REASON, b"").decode("utf-8", "replace"),
        at_ms=int(fields.get(AT_MS, b"0")),
        entry=fields.get(ENTRY, b"").decode("utf-8", "replace"),
        event=fields.get(EVENT),
        fields={name: value for name, value in fields.items() if not name.startswith(PREFIX)},
    )


async def requeue_dead_letters(client: Client, keys: Keys, ids: Iterable[str]) -> int:
    """Puts dead letters back into the outbox, with the ids that their events had. Answers how many were there.

    Raises:
        UnknownDeadLetter: a text is not an id; nothing has been done then.
        RedisError, OSError: Valkey cannot be reached; some may have been put back.
    """
    calls = [
        script_call(outbox_scripts.REQUEUE, [keys.outbox(partition), keys.dead_letters(partition)], *some)
        for partition, some in _grouped(ids, keys)
    ]
    return await _total(client, calls)


async def drop_dead_letters(client: Client, keys: Keys, ids: Iterable[str]) -> int:
    """Deletes dead letters: their events are never counted. Answers how many were there.

    Raises:
        UnknownDeadLetter, RedisError, OSError: as :func:`requeue_dead_letters` does.
    """
    calls = [
        Call(keys.dead_letters(partition), ("XDEL", keys.dead_letters(partition), *some))
        for partition, some in _grouped(ids, keys)
    ]
    return await _total(client, calls)


def _grouped(ids: Iterable[str], keys: Keys) -> list[tuple[int, list[str]]]:
    by_partition: dict[int, list[str]] = {}
    for text in ids:
        match = _LETTER_ID.fullmatch(text)
        if match is None or int(match[1]) >= keys.partitions:
            raise UnknownDeadLetter(f"{text[:80]!r} is not the id of a dead letter, such as 7/1767225600000-0")
        by_partition.setdefault(int(match[1]), []).append(match[2])
    return [
        (partition, some[start : start + IDS_MAX])
        for partition, some in by_partition.items()
        for start in range(0, len(some), IDS_MAX)
    ]


async def _total(client: Client, calls: Sequence[Call]) -> int:
    replies = await call_each(client, calls)
    raise_first(replies)
    return sum(int(reply) for reply in replies)


def _text(value: bytes | str) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
