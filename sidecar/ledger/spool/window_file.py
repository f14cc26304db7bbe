"""Confirmed batches that went out of the window in memory, on disk: a server that lost much is offered these too.

Two files without names in the spool's directory, used in turn, so that the newest half at least is always there. They
end with the process, and nobody else reads them. Nothing is synced: what a crash of the machine takes, the process's
memory goes with.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final

from sidecar.ledger.client.sealed import SealedBatch, SealedError

BUFFER_BYTES_MAX: Final = 8_388_608
"""What waits to be written. Beyond it, as on a disk that hangs, the oldest of it is dropped."""
_LENGTH_BYTES: Final = 4


class WindowFile:
    """``bytes_max``: of both files together.

    Raises:
        OSError: the directory cannot be written.
    """

    def __init__(self, directory: Path, bytes_max: int) -> None:
        self._half = bytes_max // 2
        self._files: list[IO[bytes]] = [tempfile.TemporaryFile(dir=directory) for _ in range(2)]  # noqa: SIM115
        self._sizes = [0, 0]
        self._now = 0
        self._buffer: list[bytes] = []
        self._buffered = 0

    def __repr__(self) -> str:
        return f"<WindowFile bytes={self.bytes_used}>"

    @property
    def bytes_used(self) -> int:
        return sum(self._sizes) + self._buffered

    @property
    def waits(self) -> bool:
        """Whether something is to be written."""
        return bool(self._buffer)

    def add(self, sealed: SealedBatch) -> None:
        """Keeps a batch. It is written by :meth:`flush`."""
        packed = sealed.to_bytes()
        self._buffer.append(packed)
        self._buffered += len(packed) + _LENGTH_BYTES
        while self._buffered > BUFFER_BYTES_MAX:
            self._buffered -= len(self._buffer.pop(0)) + _LENGTH_BYTES

    def flush(self) -> None:
        """Writes what waits. Not while another thread does. Raises OSError; then that is lost."""
        some, self._buffer, self._buffered = self._buffer, [], 0
        for packed in some:
            if self._sizes[self._now] + len(packed) > self._half:
                self._now = 1 - self._now
                self._sizes[self._now] = 0
                self._files[self._now].seek(0)
                self._files[self._now].truncate()
            self._files[self._now].write(len(packed).to_bytes(_LENGTH_BYTES, "big") + packed)
            self._sizes[self._now] += _LENGTH_BYTES + len(packed)
        self._files[self._now].flush()

    def after(self, home_partition: int, number: int) -> list[SealedBatch]:
        """What is kept of a home partition's batches after this number, by number. Raises OSError."""
        self.flush()
        found: dict[int, SealedBatch] = {}
        for which in (1 - self._now, self._now):
            for sealed in self._read(which):
                if sealed.home_partition == home_partition and sealed.number > number:
                    found[sealed.number] = sealed
        return [found[each] for each in sorted(found)]

    def _read(self, which: int) -> Iterator[SealedBatch]:
        file = self._files[which]
        file.seek(0)
        try:
            while head := file.read(_LENGTH_BYTES):
                packed = file.read(int.from_bytes(head, "big"))
                try:
                    yield SealedBatch.from_bytes(packed)
                except SealedError:
                    return  # torn by a disk that was full
        finally:
            file.seek(self._sizes[which])

    def close(self) -> None:
        for file in self._files:
            file.close()
