"""What the ledger has stored of a gateway process (``lua/lib/instance.lua``)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice

import msgpack


@dataclass(frozen=True, slots=True)
class InstanceRecord:
    """``epoch`` 0: it departed. ``number``: of its last batch. ``held``: units in all. ``chain``: the value of its last
    entry as it said with a heartbeat, or what the last entry carries; b"" without a chain."""

    epoch: int
    number: int
    held: int
    chain: bytes

    @classmethod
    def from_bytes(cls, packed: bytes) -> InstanceRecord:
        """Raises ValueError."""
        reader = msgpack.Unpacker(raw=True, max_buffer_size=0)
        reader.feed(packed)
        try:
            epoch, number, held, chain = islice(reader, 4)
            return cls(int(epoch), int(number), int(held), bytes(chain))
        except (ValueError, TypeError, msgpack.UnpackException) as error:
            raise ValueError(f"not the record of an instance: {error}") from None
