"""Which slots a server of a cluster has, and what it answers to a call for others (src/cluster.c, getNodeByQuery)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from sidecar.valkey.topology import SLOTS, keyslot
from tests.simulation.valkey.replies import CommandError, Reply

slot_of = lru_cache(maxsize=10_000)(keyslot)


@dataclass(slots=True)
class SlotTable:
    """As one server of a cluster knows it. ``owners``: of every slot, ``host:port``. ``migrating``: slots of this
    server whose keys go to another; ``importing``: slots of another whose keys come here. ``down``: the cluster has
    lost slots."""

    address: str
    owners: list[str]
    migrating: dict[int, str] = field(default_factory=dict)
    importing: dict[int, str] = field(default_factory=dict)
    down: bool = False
    epochs: dict[str, int] = field(default_factory=dict)
    """The configuration epochs of the primaries; 0 where it is not here."""
    _ranges: tuple[list[str], list[Reply]] | None = field(default=None, init=False, repr=False)

    @classmethod
    def whole(cls, address: str) -> SlotTable:
        """Of a server that has every slot."""
        return cls(address, [address] * SLOTS)

    def check(self, keys: Sequence[bytes], exists: Callable[[bytes], bool], *, asking: bool) -> None:
        """Whether a call is for this server.

        Raises:
            CommandError: CROSSSLOT, CLUSTERDOWN, MOVED, ASK or TRYAGAIN.
        """
        if not keys:
            return
        slot = slot_of(keys[0])
        if any(slot_of(key) != slot for key in keys[1:]):
            raise CommandError("CROSSSLOT Keys in request don't hash to the same slot")
        if self.down:
            raise CommandError("CLUSTERDOWN The cluster is down")
        missing = 0
        if slot in self.migrating or slot in self.importing:
            missing = sum(not exists(key) for key in keys)
        if self.owners[slot] == self.address:
            if slot in self.migrating and missing:
                if missing < len(keys):
                    raise CommandError("TRYAGAIN Multiple keys request during rehashing of slot")
                raise CommandError(f"ASK {slot} {self.migrating[slot]}")
        elif slot in self.importing and asking:
            if len(keys) > 1 and missing:
                raise CommandError("TRYAGAIN Multiple keys request during rehashing of slot")
        else:
            raise CommandError(f"MOVED {slot} {self.owners[slot]}")

    def is_served(self, key: bytes) -> bool:
        """Whether a running script finds a key's slot here."""
        slot = slot_of(key)
        return self.owners[slot] == self.address or slot in self.importing

    def ranges(self) -> Reply:
        """The answer to CLUSTER SLOTS."""
        if self._ranges is None or self._ranges[0] != self.owners:
            self._ranges = list(self.owners), self._read_ranges()
        return self._ranges[1]

    def nodes(self) -> bytes:
        """The answer to CLUSTER NODES, without the slots. Ids of nodes are their addresses, as in ``ranges``."""
        lines = [
            f"{each} {each}@1 {'myself,' * (each == self.address)}master - 0 0 {self.epochs.get(each, 0)} connected"
            for each in sorted({*self.owners, self.address} - {""})
        ]
        return "".join(f"{line}\n" for line in lines).encode()

    def _read_ranges(self) -> list[Reply]:
        found: list[Reply] = []
        first = 0
        for slot in range(1, SLOTS + 1):
            if slot == SLOTS or self.owners[slot] != self.owners[first]:
                host, _, port = self.owners[first].rpartition(":")
                if self.owners[first]:
                    found.append([first, slot - 1, [host.encode(), int(port), self.owners[first].encode(), []]])
                first = slot
        return found
