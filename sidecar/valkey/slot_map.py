"""Which primary of a Cluster has which slots, as its nodes tell and as the newest of them knows."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final

from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot

from sidecar.valkey.client_options import TopologyError
from sidecar.valkey.url import Address

SLOTS: Final = REDIS_CLUSTER_HASH_SLOTS


@dataclass(frozen=True, slots=True)
class SlotRange:
    """Slots ``first`` to ``last``, both included, and their primary. ``epoch``: the configuration epoch of that
    primary, by which a newer owner of a slot is told from an older one; 0 where it is not known."""

    first: int
    last: int
    primary: Address
    epoch: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class SlotMap:
    """Which primary has which slots of a Cluster, in rising order."""

    ranges: tuple[SlotRange, ...]

    def range_of(self, slot: int) -> SlotRange | None:
        at = bisect_right(self.ranges, slot, key=lambda each: each.first)
        return self.ranges[at - 1] if at and slot <= self.ranges[at - 1].last else None

    def primary_of(self, slot: int) -> Address:
        """The primary of a slot.

        Raises:
            TopologyError: the Cluster has given it to nobody.
        """
        found = self.range_of(slot)
        if found is None:
            raise TopologyError(f"slot {slot} of the Cluster has no primary")
        return found.primary

    def primary_of_key(self, key: str) -> Address:
        """The primary of a key's slot. Raises as ``primary_of``."""
        return self.primary_of(keyslot(key))

    @property
    def primaries(self) -> tuple[Address, ...]:
        return tuple(dict.fromkeys(each.primary for each in self.ranges))

    def updated_by(self, read: SlotMap) -> SlotMap:
        """This map with what another reading knows better: of each slot the owner with the higher epoch counts, the
        one read if both have the same. A node that is cut off tells of owners that were."""
        bounds = sorted({bound for each in (*self.ranges, *read.ranges) for bound in (each.first, each.last + 1)})
        merged: list[SlotRange] = []
        for first, end in pairwise(bounds):
            known, new = self.range_of(first), read.range_of(first)
            better = new if known is None or (new is not None and new.epoch >= known.epoch) else known
            if better is None:
                continue
            last = merged[-1] if merged else None
            if last is not None and (last.last + 1, last.primary, last.epoch) == (first, better.primary, better.epoch):
                merged[-1] = SlotRange(last.first, end - 1, better.primary, better.epoch)
            else:
                merged.append(SlotRange(first, end - 1, better.primary, better.epoch))
        return SlotMap(tuple(merged))


def keyslot(key: str | bytes) -> int:
    """The Cluster slot of a key: CRC16 of its hash tag, or of all of it (Valkey Cluster specification)."""
    return key_slot(key.encode() if isinstance(key, str) else key)


def read_slots(entries: Iterable[Sequence[Any]], nodes: object, asked: Address) -> SlotMap:
    """The map in the replies to CLUSTER SLOTS and CLUSTER NODES; ``nodes`` may be an error."""
    epochs = _epochs(nodes)
    ranges = [_slot_range(entry, epochs, asked) for entry in entries]
    return SlotMap(tuple(sorted(ranges, key=lambda each: each.first)))


def _slot_range(entry: Sequence[Any], epochs: dict[bytes, int], asked: Address) -> SlotRange:
    first, last, primary, *_ = entry
    host = primary[0].decode() if primary[0] else ""
    # A node that does not know its own name leaves it empty or "?": it is the one that was asked.
    address = Address(host if host not in ("", "?") else asked.host, int(primary[1]))
    return SlotRange(int(first), int(last), address, epochs.get(primary[2], 0) if len(primary) > 2 else 0)


def _epochs(nodes: object) -> dict[bytes, int]:
    """The configuration epochs by node id: the seventh word of each line of CLUSTER NODES."""
    if not isinstance(nodes, bytes):
        return {}
    lines = (line.split() for line in nodes.splitlines())
    return {words[0]: int(words[6]) for words in lines if len(words) > 6 and words[6].isdigit()}
