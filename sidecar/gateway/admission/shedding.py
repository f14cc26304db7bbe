"""Which connections give way when there are too many, or when what they have sent so far takes too much memory. No I/O.

A connection that never had a request of an identified caller gives way before one that had. Among both, what costs
least goes first: what is idle, then what has begun to send a request, then a request that the API has not heard of.
What the API has heard of never gives way.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from enum import IntEnum
from typing import Final, Generic, NamedTuple, TypeVar

from sidecar.gateway.counters import SHED_HEADS, SHED_IDLE, SHED_SHARE, SHED_UNIDENTIFIED

Connection = TypeVar("Connection")


class Standing(IntEnum):
    """What a connection is doing, in the order in which they give way. ``KNOWN``: it had a request of an identified
    caller."""

    IDLE = 0
    PARTIAL_HEAD = 1
    UNIDENTIFIED = 2
    """A request under way that has no identified caller, and has not gone to the API."""
    KNOWN_IDLE = 3
    KNOWN_PARTIAL_HEAD = 4
    UNSENT = 5
    """A request of an identified caller that has not gone to the API. Gives way only if its peer is above its share."""
    STAYS = 6


REASONS: Final = {
    Standing.IDLE: SHED_IDLE,
    Standing.PARTIAL_HEAD: SHED_HEADS,
    Standing.UNIDENTIFIED: SHED_UNIDENTIFIED,
    Standing.KNOWN_IDLE: SHED_IDLE,
    Standing.KNOWN_PARTIAL_HEAD: SHED_HEADS,
    Standing.UNSENT: SHED_SHARE,
}


class Candidate(NamedTuple, Generic[Connection]):
    """``since``: when it began to be what it is. ``peer``: whose share it takes, None for nobody's. ``size``: what it
    would free; 1 where connections are counted."""

    connection: Connection
    standing: Standing
    since: float
    peer: str | None
    size: int = 1


def choose(
    candidates: Sequence[Candidate[Connection]], needed: int, peers: Iterable[str | None] | None = None
) -> list[Candidate[Connection]]:
    """Those that give way, in order, until ``needed`` is freed; less if there are not so many.

    Within a standing, connections of peers above their share come first, then the oldest. A share is the number of
    connections by the number of peers, and there is one only if there are several peers. ``peers``: of all connections,
    if the candidates are not all of them.
    """
    counts = Counter(peer for peer in (peers or (each.peer for each in candidates)) if peer is not None)
    share = sum(counts.values()) / len(counts) if len(counts) > 1 else 0.0
    greedy = {peer for peer, count in counts.items() if share and count > share}
    ranked = sorted(
        (each for each in candidates if each.standing < Standing.UNSENT or _is_over(each, greedy)),
        key=lambda each: (each.standing, each.peer not in greedy, each.since),
    )
    chosen: list[Candidate[Connection]] = []
    left = dict(counts)
    for each in ranked:
        if needed <= 0:
            break
        if each.peer is not None:
            if each.standing is Standing.UNSENT and left[each.peer] <= share:
                continue  # the others of this peer are its share
            left[each.peer] -= 1
        chosen.append(each)
        needed -= each.size
    return chosen


def _is_over(candidate: Candidate[Connection], greedy: set[str]) -> bool:
    return candidate.standing is Standing.UNSENT and candidate.peer in greedy


class Handshakes(Generic[Connection]):
    """Connections on which no request can come yet: their TLS handshake or their PROXY header is awaited."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.dropped: set[Connection] = set()
        """Those that had to go and are not gone yet."""
        self._waiting: dict[Connection, str | None] = {}
        self._by_peer: Counter[str | None] = Counter()

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Connection]:
        return iter([*self._waiting])

    def add(self, connection: Connection, peer: str | None) -> Connection | None:
        """Counts one in. Answers the one that has to go if there are too many: the oldest of the peer that has most of
        them, so that a newcomer gets through while others wait for nothing."""
        gone = None
        if len(self._waiting) >= self.most:
            most = max(self._by_peer.values())
            gone = next(each for each, its_peer in self._waiting.items() if self._by_peer[its_peer] == most)
            self.remove(gone)
            self.dropped.add(gone)
        self._waiting[connection] = peer
        self._by_peer[peer] += 1
        return gone

    def remove(self, connection: Connection) -> None:
        """Its handshake is over, or it is gone."""
        self.dropped.discard(connection)
        if connection in self._waiting:
            peer = self._waiting.pop(connection)
            self._by_peer[peer] -= 1
            if not self._by_peer[peer]:
                del self._by_peer[peer]
