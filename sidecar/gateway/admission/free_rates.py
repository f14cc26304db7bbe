"""How many requests to free routes one peer may make. No I/O."""

from __future__ import annotations

from typing import Final

PEERS_MAX: Final = 10_000
"""Peers that are remembered; the one that was seen least recently is forgotten first."""


class FreeRates:
    """``per_second`` on average for each peer, ``burst`` after a rest."""

    __slots__ = ("_burst", "_interval_s", "_peers", "peers_max")

    def __init__(self, per_second: float, burst: int, peers_max: int = PEERS_MAX) -> None:
        self.peers_max = peers_max
        self._interval_s = 1.0 / per_second
        self._burst = burst
        self._peers: dict[str, float] = {}
        """When each will have all of its burst again; in the order in which they were seen."""

    def __len__(self) -> int:
        return len(self._peers)

    def take(self, peer: str, now: float) -> float:
        """Counts a request at the time ``now``. Answers 0, or the seconds until there may be one, and counts none."""
        full_at = max(self._peers.pop(peer, now), now)
        wait = full_at - now - (self._burst - 1) * self._interval_s
        if wait > 1e-9:
            self._peers[peer] = full_at
            return wait
        if len(self._peers) >= self.peers_max:
            del self._peers[next(iter(self._peers))]
        self._peers[peer] = full_at + self._interval_s
        return 0.0
