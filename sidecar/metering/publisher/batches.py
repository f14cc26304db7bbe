"""Outbox entries that are being delivered, and the batches made of their events. Without I/O."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(slots=True, eq=False)
class Entry:
    """An outbox entry on its way: ``events`` to deliver, ``open_events`` neither accepted nor dead letters yet."""

    partition: int
    id: bytes
    fields: Mapping[bytes, bytes]
    size_bytes: int
    events: int = 0
    open_events: int = 0
    dead_letters: list[dict[bytes, bytes]] = field(default_factory=list)
    is_archived: bool = False

    @property
    def name(self) -> bytes:
        """What was written, by whom: another entry may have the same id once a server's data and clock went back."""
        return b".".join(self.fields.get(field, b"") for field in (b"o", b"q", b"i"))

    def __repr__(self) -> str:
        return f"Entry({self.id.decode()} of partition {self.partition}, {self.open_events} of {self.events} open)"


@dataclass(frozen=True, slots=True)
class Batch:
    """Events for one request: ``bodies[n]`` is the JSON of an event of ``owners[n]``."""

    bodies: list[bytes]
    owners: list[Entry]

    def __len__(self) -> int:
        return len(self.bodies)

    def body(self, part: range) -> bytes:
        """The JSON array of the events at these positions."""
        return b"[" + b",".join(self.bodies[part.start : part.stop]) + b"]"

    def part(self, part: range) -> Batch:
        """A batch of the events at these positions."""
        return Batch(self.bodies[part.start : part.stop], self.owners[part.start : part.stop])

    def without(self, owners: Collection[Entry]) -> Batch:
        """The batch but for the events of these entries."""
        kept = [(body, owner) for body, owner in zip(self.bodies, self.owners, strict=True) if owner not in owners]
        return Batch([body for body, _ in kept], [owner for _, owner in kept])

    def close(self, part: range) -> list[Entry]:
        """These events need no more delivery. Answers the entries that have none left open."""
        done: list[Entry] = []
        for owner in self.owners[part.start : part.stop]:
            owner.open_events -= 1
            if not owner.open_events:
                done.append(owner)
        return done


class Batcher:
    """Queues events, in the order in which they came, and cuts batches of them.

    A batch has at most ``events_max`` events and ``bytes_max`` bytes of body; an event that is larger than that
    is a batch of its own.
    """

    def __init__(self, events_max: int, bytes_max: int) -> None:
        self._events_max = events_max
        self._bytes_max = bytes_max
        self._bodies: list[bytes] = []
        self._owners: list[Entry] = []
        self._bytes = 0

    def add(self, entry: Entry, bodies: Sequence[bytes]) -> None:
        """Queue an entry's events."""
        entry.events = entry.open_events = len(bodies)
        self._bodies.extend(bodies)
        self._owners.extend([entry] * len(bodies))
        self._bytes += sum(map(len, bodies))

    def cut(self, *, partial: bool) -> Batch | None:
        """The next batch; one that could still grow only if ``partial``. None when there is none."""
        waiting = len(self._bodies)
        full = waiting >= self._events_max or self._body_bytes(waiting, self._bytes) >= self._bytes_max
        if not waiting or not (full or partial):
            return None
        count = min(waiting, self._events_max)
        size = sum(map(len, self._bodies[:count]))
        while count > 1 and self._body_bytes(count, size) > self._bytes_max:
            count -= 1
            size -= len(self._bodies[count])
        batch = Batch(self._bodies[:count], self._owners[:count])
        del self._bodies[:count], self._owners[:count]
        self._bytes -= size
        return batch

    def shrink(self, bytes_max: int) -> None:
        """Somewhere on the way bodies of more than ``bytes_max`` are refused: make smaller ones from now on."""
        self._bytes_max = min(self._bytes_max, bytes_max)

    def __len__(self) -> int:
        return len(self._bodies)

    def __repr__(self) -> str:
        return f"Batcher({len(self._bodies)} events, {self._bytes} bytes)"

    @staticmethod
    def _body_bytes(count: int, size: int) -> int:
        return size + count + 1 if count else 2  # the brackets, and commas between
