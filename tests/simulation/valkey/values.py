"""What keys hold. A string is bytes; the other types are here, each with a copy that shares nothing that changes."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field, replace
from typing import Final, TypeAlias

NODE_ENTRIES: Final = 100
"""Entries of one node of a stream (``stream-node-max-entries``): what ``~`` trims by. The real limit of bytes for a
node is not here, so where entries are long the real server trims more exactly."""

Id: TypeAlias = tuple[int, int]
"""Of an entry of a stream: milliseconds and sequence."""
ID_MAX: Final = 2**64 - 1
LAST_ID: Final = (ID_MAX, ID_MAX)
UNKNOWN_READ: Final = -1


def id_text(id_: Id) -> bytes:
    return b"%d-%d" % id_


@dataclass(slots=True)
class Hash:
    """``expires``: field to the instant at which it ends, ms. A field that has ended is read as absent, but counts
    until it is reclaimed (:meth:`reclaim`), as on a server whose active expiry has not come by."""

    fields: dict[bytes, bytes] = field(default_factory=dict)
    expires: dict[bytes, int] = field(default_factory=dict)

    def copy(self) -> Hash:
        return Hash(dict(self.fields), dict(self.expires))

    def get(self, name: bytes, now_ms: int) -> bytes | None:
        value = self.fields.get(name)
        if value is not None and self.expires and self.expires.get(name, now_ms) < now_ms:
            return None
        return value

    def set(self, name: bytes, value: bytes) -> None:
        self.fields[name] = value
        self.expires.pop(name, None)

    def remove(self, name: bytes) -> None:
        del self.fields[name]
        self.expires.pop(name, None)

    def living(self, now_ms: int) -> dict[bytes, bytes]:
        """The fields that have not ended."""
        if not self.expires:
            return self.fields
        ends = self.expires
        return {name: value for name, value in self.fields.items() if ends.get(name, now_ms) >= now_ms}

    def reclaim(self, now_ms: int) -> None:
        for name in [name for name, end in self.expires.items() if end < now_ms]:
            self.remove(name)


@dataclass(slots=True)
class SortedSet:
    scores: dict[bytes, float] = field(default_factory=dict)
    _order: list[tuple[float, bytes]] | None = None

    def copy(self) -> SortedSet:
        return SortedSet(dict(self.scores))

    def ordered(self) -> list[tuple[float, bytes]]:
        """By score, then by name. The list is valid until the next change."""
        if self._order is None:
            self._order = sorted((score, name) for name, score in self.scores.items())
        return self._order

    def set(self, name: bytes, score: float) -> None:
        self.scores[name] = score
        self._order = None

    def remove(self, name: bytes) -> None:
        del self.scores[name]
        self._order = None


@dataclass(slots=True)
class Pending:
    """An entry that a consumer got and has not acknowledged."""

    consumer: bytes
    delivered_ms: int
    deliveries: int


@dataclass(slots=True)
class Consumer:
    seen_ms: int
    active_ms: int = -1
    """-1: it never got anything."""


@dataclass(slots=True)
class Group:
    """``read``: how many entries it has read in all; ``UNKNOWN_READ`` where deletions make that unknown."""

    last: Id
    read: int
    pending: dict[Id, Pending] = field(default_factory=dict)
    consumers: dict[bytes, Consumer] = field(default_factory=dict)

    def copy(self) -> Group:
        pending = {id_: replace(each) for id_, each in self.pending.items()}
        consumers = {name: replace(each) for name, each in self.consumers.items()}
        return Group(self.last, self.read, pending, consumers)

    def of(self, consumer: bytes) -> list[Id]:
        """What a consumer has pending, in order."""
        return sorted(id_ for id_, each in self.pending.items() if each.consumer == consumer)


@dataclass(slots=True)
class Node:
    """Entries that the server keeps in one piece: those with ids from ``first`` on. ``size``: with the deleted ones."""

    first: Id
    size: int = 0
    alive: int = 0


@dataclass(slots=True)
class Stream:
    """``ids`` is in order and has the keys of ``entries``."""

    ids: list[Id] = field(default_factory=list)
    entries: dict[Id, list[bytes]] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)
    last: Id = (0, 0)
    deleted_max: Id = (0, 0)
    added: int = 0
    groups: dict[bytes, Group] = field(default_factory=dict)

    def copy(self) -> Stream:
        return Stream(
            list(self.ids), dict(self.entries), [replace(node) for node in self.nodes], self.last, self.deleted_max,
            self.added, {name: group.copy() for name, group in self.groups.items()},
        )  # fmt: skip

    @property
    def first(self) -> Id:
        return self.ids[0] if self.ids else (0, 0)

    def next_id(self, now_ms: int) -> Id:
        """The id that ``*`` gives: of now, or one more than the last where the clock went back."""
        if now_ms > self.last[0]:
            return now_ms, 0
        return next_id(self.last)

    def add(self, id_: Id, fields: list[bytes]) -> None:
        assert id_ > self.last
        if not self.nodes or self.nodes[-1].size >= NODE_ENTRIES:
            self.nodes.append(Node(id_))
        node = self.nodes[-1]
        node.size += 1
        node.alive += 1
        self.ids.append(id_)
        self.entries[id_] = fields
        self.last = id_
        self.added += 1

    def delete(self, id_: Id) -> bool:
        if id_ not in self.entries:
            return False
        del self.entries[id_]
        del self.ids[bisect_left(self.ids, id_)]
        at = bisect_right(self.nodes, id_, key=lambda node: node.first) - 1
        self.nodes[at].alive -= 1
        if not self.nodes[at].alive:
            del self.nodes[at]
        return True

    def between(self, start: Id, end: Id) -> list[Id]:
        """Ids from ``start`` to ``end``, both included."""
        return self.ids[bisect_left(self.ids, start) : bisect_right(self.ids, end)]

    def has_deleted_after(self, start: Id) -> bool:
        """Whether the newest entry that was deleted lies at ``start`` or later, among those that are there."""
        return (
            bool(self.ids)
            and self.deleted_max != (0, 0)
            and self.first <= self.deleted_max
            and start <= self.deleted_max
        )

    def read_at(self, id_: Id) -> int:
        """How many entries were added up to an id, or UNKNOWN_READ (streamEstimateDistanceFromFirstEverEntry)."""
        if not self.added:
            return 0
        if not self.ids and id_ <= self.last:
            return self.added
        if id_ == self.last:
            return self.added
        if id_ > self.last:
            return UNKNOWN_READ
        if self.deleted_max == (0, 0) or self.deleted_max < self.first:
            if id_ < self.first:
                return self.added - len(self.ids)
            if id_ == self.first:
                return self.added - len(self.ids) + 1
        return UNKNOWN_READ

    def lag_of(self, group: Group) -> int | None:
        if not self.added:
            return 0
        if group.read != UNKNOWN_READ and not self.has_deleted_after(group.last):
            return self.added - group.read
        read = self.read_at(group.last)
        return None if read == UNKNOWN_READ else self.added - read


def next_id(id_: Id) -> Id:
    """The id after this one; (0, 0) after the last there is."""
    milliseconds, sequence = id_
    if sequence < ID_MAX:
        return milliseconds, sequence + 1
    return (milliseconds + 1, 0) if milliseconds < ID_MAX else (0, 0)


def id_before(id_: Id) -> Id | None:
    """The id before this one; None before the first there is."""
    milliseconds, sequence = id_
    if sequence > 0:
        return milliseconds, sequence - 1
    return (milliseconds - 1, ID_MAX) if milliseconds > 0 else None


@dataclass(slots=True)
class List:
    """The project has no lists: a key that is one is of the wrong type for everything."""

    items: list[bytes] = field(default_factory=list)

    def copy(self) -> List:
        return List(list(self.items))


Value: TypeAlias = bytes | Hash | SortedSet | Stream | List

TYPE_NAMES: Final[dict[type, bytes]] = {
    bytes: b"string",
    Hash: b"hash",
    SortedSet: b"zset",
    Stream: b"stream",
    List: b"list",
}
