"""A primary and its replica in a simulated network: what the replica has is what the primary had a while ago.

Valkey replicates without waiting. So what a primary has answered may be missing from the replica that takes over, and
then it is lost, unless the primary stops to take writes when its replicas are silent (``min-replicas-to-write``).
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from tests.simulation.network import Node
from tests.simulation.valkey.server import SimulatedValkey, Snapshot


@dataclass
class Replication:
    """From ``primary`` to ``replica``, both of which are nodes with simulated Valkey servers.

    ``lag_s``: how long a write takes to the replica. ``guard_s``: with ``min-replicas-to-write 1``, how long a primary
    without its replica goes on to take writes (``min-replicas-max-lag`` and a second); None: for ever.
    """

    primary: Node
    replica: Node
    lag_s: float = 0.005
    guard_s: float | None = None
    lost_writes: int = 0
    """Of failovers: calls that had written and were not replicated."""
    _broken: bool = field(default=False, init=False)
    _guard: asyncio.TimerHandle | None = field(default=None, init=False)
    _copies: int = field(default=0, init=False)
    """Full copies so far: what was on its way before the last one arrives nowhere."""

    def __post_init__(self) -> None:
        self._begin()

    @staticmethod
    def server_of(node: Node) -> SimulatedValkey:
        assert isinstance(node.server, SimulatedValkey)
        return node.server

    def break_link(self) -> None:
        """Nothing is replicated from now on."""
        self._broken = True
        server = self.server_of(self.primary)
        if self.guard_s is not None and self._guard is None:
            loop = self.primary.network.loop
            self._guard = loop.call_later(self.guard_s, setattr, server.trouble, "lacks_replicas", True)

    def mend_link(self) -> None:
        """The replica gets all that the primary has."""
        self._broken = False
        if self._guard is not None:
            self._guard.cancel()
            self._guard = None
        server = self.server_of(self.primary)
        server.trouble.lacks_replicas = False
        self._replicate(server.snapshot())

    def fail_over(self) -> None:
        """The replica becomes the primary with what it has, and the primary its replica. Where the link is broken, the
        old primary goes on to take writes until :meth:`demote`; these are lost then."""
        old, new = self.primary, self.replica
        self.lost_writes += self.server_of(old).writes - self.server_of(new).writes
        self.server_of(old).on_write = None
        trouble = self.server_of(new).trouble
        trouble.is_replica, trouble.primary = False, ""
        was_broken = self._broken
        self.primary, self.replica = new, old
        if not was_broken:
            self.demote()

    def demote(self) -> None:
        """The old primary learns that it is one no longer, and takes the new one's data. Its clients' connections stay
        open, and its answers are READONLY."""
        self._begin()
        self.mend_link()

    def resume(self) -> None:
        """The replica takes a full copy again, as after a restart of either."""
        if not self._broken:
            self._begin()

    def _begin(self) -> None:
        server, replica = self.server_of(self.primary), self.server_of(self.replica)
        replica.trouble.is_replica, replica.trouble.primary = True, self.primary.address
        replica.trouble.lacks_replicas = False
        self._copies += 1
        server.on_write = self._written
        replica.restore(server.snapshot())

    def _written(self) -> None:
        if self._broken or self.replica.is_down:
            return
        snapshot = self.server_of(self.primary).snapshot()
        self.primary.network.loop.call_later(self.lag_s, self._arrive, snapshot, self.primary, self._copies)

    def _arrive(self, snapshot: Snapshot, sender: Node, copies: int) -> None:
        if sender is self.primary and copies == self._copies and not self._broken and not self.replica.is_down:
            self._replicate(snapshot)

    def _replicate(self, snapshot: Snapshot) -> None:
        self.server_of(self.replica).replicate(snapshot)
