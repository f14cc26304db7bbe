"""Verifies the entries of one origin against its chain. No I/O.

Every entry names the value of the one before it, so the entries form a tree. In an honest history it is a line. Where a
server's data went back, what it lost was offered again: the line forks, and each entry of the branch that was left has
a twin in the other, with the same number and events. What was dropped after its time leaves a first entry whose
predecessor is gone. Anything else was changed, cut, inserted or put into another order.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Set
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Final

import orjson

from sidecar.ledger.proof.chain import (
    VALUE_BYTES,
    adoption_holds,
    beginning,
    entry_value,
    is_adopted,
    link_of,
)
from sidecar.ledger.proof.entries import Entry

_BEGINNING: Final = b"begin"
_NOTHING: Final = bytes(VALUE_BYTES)


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with an entry, or just before it. ``at_ms``: the entry's time."""

    place: str
    entry: str
    at_ms: int
    what: str


@dataclass(frozen=True, slots=True)
class End:
    """A chain value of an origin that somebody said at an instant. ``said_by``: the ledger, a checkpoint. ``number``:
    of the origin's last batch then."""

    value: bytes
    said_by: str
    number: int = 2**53


@dataclass(slots=True)
class OriginReport:
    """``entries``: in all, without repetitions. ``unproven``: last entries that nothing confirms yet. ``begins``:
    whether its first entry is there. ``main``: the entries that count where two have one number."""

    origin: str
    entries: int = 0
    unchained: int = 0
    adopted: int = 0
    offered_again: int = 0
    parts: int = 0
    unproven: int = 0
    begins: bool = True
    faults: list[Fault] = field(default_factory=list)
    left: set[int] = field(default_factory=set)
    """Positions, in what was given, of entries that count for nothing: repetitions, and the branch that was left."""


@dataclass(slots=True, eq=False)
class _Node:
    at: int
    entry: Entry
    value: bytes
    before: bytes
    parent: _Node | None = None
    is_vouched: bool = False
    last_number: int = 0


class OriginHistory:
    """Takes the entries of one origin in any order, and keeps a few hundred bytes of each. ``may_fork`` False: the
    place cannot have what a server lost."""

    def __init__(self, key: bytes, origin: str, *, may_fork: bool = True) -> None:
        self._key = key
        self._may_fork = may_fork
        self._report = OriginReport(origin)
        self._given = 0
        self._bare: set[tuple[int, int, bytes]] = set()
        self._wholes: dict[tuple[int, bytes], tuple[Entry, list[bytes]]] = {}
        self._nodes: list[_Node] = []
        self._by_value: dict[bytes, _Node] = {}
        self._unchained: list[Entry] = []
        self._parts: list[Entry] = []
        self._open: set[bytes] = set()
        self._children: defaultdict[bytes, list[_Node]] = defaultdict(list)

    def __repr__(self) -> str:
        return f"OriginHistory({self._report.origin}, {self._given} entries)"

    @property
    def values(self) -> Set[bytes]:
        """Of all entries."""
        return self._by_value.keys()

    def verify(self, ends: Iterable[End] = ()) -> OriginReport:
        """Once, when all entries were added. ``ends``: what is known of the chain from elsewhere."""
        self._report.entries = len(self._nodes) + self._report.unchained
        self._nodes.sort(key=lambda node: (node.entry.number, node.entry.order or (), node.entry.at_ms))
        self._link()
        self._vouch(ends)
        self._judge_forks()
        self._check_parts()
        report = self._report
        report.unproven = sum(
            not (node.is_vouched or self._children.get(node.value) or is_adopted(node.entry.chain))
            for node in self._nodes
            if node.at not in report.left
        )
        report.faults.sort(key=lambda fault: fault.at_ms)
        return report

    def _fault(self, entry: Entry, what: str) -> None:
        self._report.faults.append(Fault(entry.place, entry.name, entry.at_ms, what))

    def value_of(self, entry: Entry) -> bytes:
        """What the entry after it has to carry; b"" of one that is not in the chain."""
        if not entry.chain or entry.is_part:
            return b""
        if is_adopted(entry.chain):
            return link_of(entry.chain)
        return entry_value(self._key, entry.chain, entry.origin, entry.number, entry.at_ms, entry.events)

    def add(self, entry: Entry) -> None:
        at, self._given = self._given, self._given + 1
        report = self._report
        if entry.is_part:
            report.parts += 1
            self._parts.append(entry)
            return
        if entry.chain:
            self._add(at, entry)
            return
        same = (entry.number, entry.at_ms, _digest(entry.events))
        if same in self._bare:
            report.left.add(at)
        else:
            self._bare.add(same)
            report.unchained += 1
            self._unchained.append(_without_events(entry))

    def _add(self, at: int, entry: Entry) -> None:
        chain = entry.chain
        before, value = chain[:VALUE_BYTES], self.value_of(entry)
        if is_adopted(chain):
            if not adoption_holds(self._key, chain, entry.origin, entry.number, entry.events, _split(entry.events)):
                self._fault(entry, "was changed: it is not what was offered out of a spool")
            self._report.adopted += 1
        same = self._by_value.get(value)
        if same is None:
            kept = _without_events(entry)
            if entry.has_parts:
                self._wholes[entry.number, chain] = kept, _split(entry.events)
            node = self._by_value[value] = _Node(at, kept, value, before, last_number=entry.number)
            self._nodes.append(node)
            return
        self._report.left.add(at)
        if is_adopted(chain):
            self._report.adopted -= 1
        if not _may_repeat(same.entry, entry):
            self._fault(entry, f"stands twice: it is in {same.entry.place} too")

    def _link(self) -> None:
        """Finds the predecessor of each."""
        carried = {node.before for node in self._nodes}
        former: _Node | None = None
        for node in self._nodes:
            entry, before = node.entry, node.before
            parent = self._by_value.get(before)
            if parent is not None:
                self._link_to(node, parent)
            elif before == beginning(self._key, entry.origin, entry.number):
                self._children[_BEGINNING].append(node)
            elif is_adopted(entry.chain) and (
                before == _NOTHING or before in carried - {before} or self._is_stored(node)
            ):
                self._children[before].append(node)
            elif former is None or entry.is_edge or before in self._open:
                self._report.begins = False
                self._open.add(before)
                self._children[before].append(node)
            else:
                self._fault(entry, self._gap(former.entry, entry))
                self._open.add(before)
                self._children[before].append(node)
            former = node
        beginnings = self._children.get(_BEGINNING)
        if beginnings and self._nodes[0] is not beginnings[0]:
            self._fault(beginnings[0].entry, "begins the chain of its origin, but there is an entry before it")

    def _is_stored(self, node: _Node) -> bool:
        """Whether an adopted entry goes on from what another carries, as the ledger knew no more."""
        return any(other is not node and other.before == node.before for other in self._nodes)

    def _link_to(self, node: _Node, parent: _Node) -> None:
        entry, before = node.entry, parent.entry
        node.parent = parent
        self._children[node.before].append(node)
        if before.number >= entry.number:
            self._fault(entry, f"comes after entry {before.number}, which has no smaller number")
        elif before.order is not None and entry.order is not None and before.order >= entry.order:
            self._fault(entry, f"stands before entry {before.number} ({before.place}), which it goes on from")

    def _gap(self, former: Entry, entry: Entry) -> str:
        bare = [each for each in self._unchained if former.number <= each.number < entry.number]
        if bare:
            return f"does not go on from what is there: entry {bare[0].number} ({bare[0].place}) has no chain value"
        if former.number + 1 == entry.number:
            return f"does not go on from entry {former.number} ({former.place}): that one was changed"
        return (
            f"does not go on from entry {former.number} ({former.place}): that one was changed, or entries between "
            "them are missing"
        )

    def _vouch(self, ends: Iterable[End]) -> None:
        carried = {node.before for node in self._nodes}
        for end in ends:
            value = link_of(end.value)
            node = self._by_value.get(value)
            while node is not None and not node.is_vouched:
                node.is_vouched = True
                node = node.parent
            if self._nodes and value not in self._by_value and value not in carried:
                last = max((n for n in self._nodes if n.entry.number <= end.number), default=self._nodes[0],
                           key=lambda n: n.entry.number)  # fmt: skip
                self._fault(
                    last.entry,
                    f"is the last one that {end.said_by} can know, but it knows another end: this entry was changed, "
                    "or entries after it are missing",
                )

    def _judge_forks(self) -> None:
        for node in reversed(self._nodes):
            if node.parent is not None:
                node.parent.last_number = max(node.parent.last_number, node.last_number)
        for children in list(self._children.values()):
            some = [child for child in children if not is_adopted(child.entry.chain)]
            if len(some) < 2:
                continue
            main = max(some, key=lambda child: (child.is_vouched, child.last_number, child.entry.order or (),
                                                child.entry.at_ms))  # fmt: skip
            for child in some:
                if child is not main:
                    self._judge_branch(child)

    def _judge_branch(self, first: _Node) -> None:
        """Each entry of a branch that was left must have been offered again."""
        branch = [first]
        for node in branch:
            branch += [child for child in self._children.get(node.value, ()) if not is_adopted(child.entry.chain)]
        left = {node.at for node in branch} | self._report.left
        by_number: defaultdict[int, list[_Node]] = defaultdict(list)
        for node in self._nodes:
            by_number[node.entry.number].append(node)
        for node in branch:
            entry = node.entry
            twins = [
                other for other in by_number[entry.number]
                if other.at not in left and other.entry.events == entry.events
            ]  # fmt: skip
            if self._may_fork and twins:
                self._report.offered_again += 1
                self._report.left.add(node.at)
            else:
                self._fault(entry, "was inserted: no entry goes on from it, and the charges were not offered again")
                return

    def _check_parts(self) -> None:
        for part in self._parts:
            whole = self._wholes.get((part.number, part.chain))
            if whole is not None and not all(event in whole[1] for event in _split(part.events)):
                self._fault(part, f"has an event that entry {part.number} ({whole[0].place}) has not")


def _may_repeat(one: Entry, other: Entry) -> bool:
    """An entry that moves from one stream to another while both are read, or that was archived twice."""
    return (one.order is None) != (other.order is None) or (one.order is not None and one.order == other.order)


def _digest(events: bytes) -> bytes:
    return blake2b(events, digest_size=16).digest()


def _without_events(entry: Entry) -> Entry:
    return replace(entry, events=_digest(entry.events))


def _split(events: bytes) -> list[bytes]:
    """The JSON of each event; empty if it is none."""
    try:
        return [orjson.dumps(event) for event in orjson.loads(events)]
    except (orjson.JSONDecodeError, TypeError):
        return []
