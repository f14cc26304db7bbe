"""Which primaries a Cluster has, as the newest of its nodes' answers tell."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from sidecar.valkey.client_options import TopologyError
from sidecar.valkey.inquiries import Inquiries
from sidecar.valkey.resp import LedgerConnectionError, ReplyError
from sidecar.valkey.server_addresses import ServerAddresses
from sidecar.valkey.slot_map import SlotMap, read_slots
from sidecar.valkey.url import Address, Cluster

NODES_MAX: Final = 256
"""Nodes that are asked: those of the configuration, and the primaries that they have told."""

FAILED_S: Final = 10.0
"""A node that did not answer is asked last for so long."""

OLDER_MAX: Final = 5
"""After so many readings in a row that are older in part, they are believed: the Cluster was set up anew, or those who
know better cannot be reached."""


class ClusterPrimaries:
    """What is known of the slots. ``on_change`` is called when a slot has another primary than before.

    ``reading``: grows with each reading that somebody asked for, and with each that changed something.

    Raises:
        TopologyError: TLS files cannot be used.
    """

    def __init__(self, topology: Cluster) -> None:
        self.topology = topology
        self.slots: SlotMap | None = None
        self.reading = 0
        self.on_change: Callable[[], None] | None = None
        self._addresses = ServerAddresses(topology.tls, topology.credentials)
        self._last: SlotMap | None = None
        self._last_epochs: tuple[int, ...] = ()
        self._older = 0
        self._turn = -1
        self._failed: dict[Address, float] = {}

    def __repr__(self) -> str:
        return f"ClusterPrimaries({len(self.slots.primaries) if self.slots else 'no'} primaries known)"

    def inquiries(self, timeout_s: float) -> Inquiries:
        """Connections to the nodes."""
        return Inquiries(self._addresses, timeout_s)

    def is_current(self, key: str, host: str, port: int) -> bool:
        """Whether this is the primary of a key, as far as is known. True while nothing is."""
        try:
            return self.slots is None or self.slots.primary_of_key(key) == Address(host, port)
        except TopologyError:
            return True

    async def look(self, inquiries: Inquiries) -> None:
        """Reads the slots from a node that answers, each time another one if possible.

        Raises:
            TopologyError: no node answers, or none is in a Cluster; says what each of them said.
        """
        failures: list[str] = []
        nodes = self._in_turn()
        inquiries.keep_only(set(nodes))
        for node in nodes:
            try:
                slots, details = await inquiries.ask(node, (b"CLUSTER", b"SLOTS"), (b"CLUSTER", b"NODES"))
            except LedgerConnectionError as error:
                failures.append(f"{node}: {str(error).removeprefix(f'Valkey at {node}: ')}")
            else:
                if isinstance(slots, list) and slots:
                    self._failed.pop(node, None)
                    self.note(read_slots(slots, details, node))
                    return
                failures.append(f"{node}: {slots if isinstance(slots, ReplyError) else 'has no slots'}")
            self._failed[node] = time.monotonic()
        raise TopologyError("no node reports the slots of the Cluster: " + "; ".join(failures))

    def _in_turn(self) -> list[Address]:
        known = self.slots.primaries if self.slots is not None else ()
        nodes = list(dict.fromkeys((*self.topology.nodes, *known)))[:NODES_MAX]
        self._turn += 1
        at = self._turn % len(nodes)
        long_ago = time.monotonic() - FAILED_S
        self._failed = {node: when for node, when in self._failed.items() if when > long_ago and node in nodes}
        return sorted(nodes[at:] + nodes[:at], key=self._failed.__contains__)

    def note(self, read: SlotMap) -> None:
        """Takes a reading over, but for what is older in it than what is known."""
        epochs = tuple(each.epoch for each in read.ranges)
        if self.slots is not None and read == self._last and epochs == self._last_epochs and not self._older:
            return
        self._last, self._last_epochs = read, epochs
        merged = self.slots.updated_by(read) if self.slots is not None else read
        differs = _differs(merged, read)
        self._older = self._older + 1 if differs else 0
        if self._older >= OLDER_MAX:
            merged, self._older = read, 0
        before, self.slots = self.slots, merged
        if before is None or _differs(before, merged) or _differs(merged, before):
            self.reading += 1
            if before is not None and self.on_change is not None:
                self.on_change()


def _differs(one: SlotMap, other: SlotMap) -> bool:
    """Whether a slot that ``other`` knows has another primary in ``one``."""
    firsts = sorted({each.first for each in (*one.ranges, *other.ranges)})
    for first in firsts:
        here, there = one.range_of(first), other.range_of(first)
        if there is not None and (here is None or here.primary != there.primary):
            return True
    return False
