"""The last batches with charges that the ledger has confirmed: what a server whose data went back is offered again.

Shared by an instance's links, and bounded in bytes: the oldest go first. What has gone is counted, so that a loss which
reaches further back can be told in numbers. No I/O.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final, Protocol

from sidecar.basics.fault_reasons import reason_of
from sidecar.basics.logger import get_logger
from sidecar.ledger.client.sealed import SealedBatch

log = get_logger("sidecar.ledger")

BYTES_MAX: Final = 33_554_432
GONE_MAX: Final = 100_000
"""Batches that went out of the window whose number and charges are still known, some 10 MB."""
_ENTRY_BYTES: Final = 300
"""What the objects of an entry take beside the bytes of its arguments, about; 60 more for each account."""
_ACCOUNT_BYTES: Final = 60

_Entry = tuple[int, int, Sequence[bytes], Sequence[bytes], int, int, str]
"""Home partition, number, keys, arguments, charges, bytes, refusal."""


class Overflow(Protocol):
    """Where batches go that the window has no room for."""

    def add(self, sealed: SealedBatch) -> None: ...

    def after(self, home_partition: int, number: int) -> list[SealedBatch]:
        """Those of a home partition after this number, by number. Raises OSError."""
        ...


class SettledWindow:
    """``bytes_max`` 0: nothing is kept in memory. ``overflow``: what takes over what goes."""

    def __init__(self, bytes_max: int = BYTES_MAX) -> None:
        self.bytes_max = bytes_max
        self.bytes_used = 0
        self.overflow: Overflow | None = None
        self._entries: deque[_Entry] = deque()
        self._gone: deque[tuple[int, int, int]] = deque(maxlen=GONE_MAX)
        """Home partition, number, charges."""

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        return f"<SettledWindow batches={len(self._entries)} bytes={self.bytes_used}>"

    def add(
        self, home_partition: int, number: int, keys: Sequence[bytes], arguments: Sequence[bytes], settles: int,
        refusal: str = "",
    ) -> None:  # fmt: skip
        """A batch with charges is confirmed, as a batch or as refused."""
        size = _ENTRY_BYTES + _ACCOUNT_BYTES * len(keys)
        for argument in arguments:
            size += len(argument)
        self._entries.append((home_partition, number, keys, arguments, settles, size, refusal))
        used = self.bytes_used + size
        while used > self.bytes_max:
            gone = self._entries.popleft()
            used -= gone[5]
            self._gone.append((gone[0], gone[1], gone[4]))
            if self.overflow is not None:
                self.overflow.add(_sealed(gone))
        self.bytes_used = used

    def take_after(self, home_partition: int, number: int) -> tuple[list[SealedBatch], int]:
        """What a home partition had confirmed after batch ``number``, oldest first, and how many charges of that time
        nobody has any more. They are taken out: confirmed again, they come again."""
        taken = self._overflowed(home_partition, number)
        kept: deque[_Entry] = deque()
        for entry in self._entries:
            if entry[0] == home_partition and entry[1] > number:
                taken[entry[1]] = _sealed(entry)
                self.bytes_used -= entry[5]
            else:
                kept.append(entry)
        self._entries = kept
        beyond = sum(
            settles for home, n, settles in self._gone if home == home_partition and n > number and n not in taken
        )
        self._gone = deque(
            (each for each in self._gone if each[0] != home_partition or each[1] <= number), maxlen=GONE_MAX
        )
        return [taken[each] for each in sorted(taken)], beyond

    def _overflowed(self, home_partition: int, number: int) -> dict[int, SealedBatch]:
        if self.overflow is None:
            return {}
        try:
            return {sealed.number: sealed for sealed in self.overflow.after(home_partition, number)}
        except OSError as error:
            log.error("confirmed charges on disk cannot be read", error=reason_of(error))
            return {}


def _sealed(entry: _Entry) -> SealedBatch:
    return SealedBatch(entry[0], entry[1], entry[2], entry[3], entry[4], refusal=entry[6])
