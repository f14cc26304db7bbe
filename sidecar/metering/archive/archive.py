"""Writes what leaves the outbox to the archive, before it leaves.

So nothing that OpenMeter has accepted can be missing. A publisher that dies in between leaves entries that are written
again by the next one: a repetition counts once, since origin, number and position name an event. An archive that cannot
be written keeps its entries in the outbox, since an archive with holes proves nothing; the outbox grows, which is
logged and counted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Final

from sidecar.basics.backoff import Backoff
from sidecar.basics.clock import Clock
from sidecar.basics.logger import get_logger
from sidecar.metering.archive.archive_place import ArchiveError, ArchivePlace, archive_place
from sidecar.metering.archive.archived_entries import archived
from sidecar.metering.metrics import PublisherMetrics
from sidecar.metering.publisher.batches import Entry
from sidecar.metering.settings import ArchiveSettings

log = get_logger("sidecar.metering")

RETRY_S_MIN, RETRY_S_MAX = 0.2, 30.0
HOUR_S: Final = 3600


class Archive:
    """``writer`` names the files of this process: no other has it. ``now_s``: Unix time."""

    def __init__(
        self, settings: ArchiveSettings, writer: str, backoff: Backoff, clock: Clock, now_s: Callable[[], float],
        metrics: PublisherMetrics,
    ) -> None:  # fmt: skip
        assert settings.directory is not None
        self._settings = settings
        self._writer = writer
        self._backoff = backoff
        self._clock = clock
        self._now_s = now_s
        self._metrics = metrics
        self._place: ArchivePlace | None = None
        self._name = ""
        self._began_s = 0.0
        self._bytes = 0
        self._count = 0
        self._retry_s = 0.0
        self._failing = False
        self._writing = asyncio.Lock()

    def __repr__(self) -> str:
        return f"Archive({self._settings.directory})"

    async def write(self, entries: Sequence[Entry]) -> bool:
        """Whether all are in the archive now. After a failure it waits before it tries again."""
        async with self._writing:
            new = [entry for entry in entries if not entry.is_archived]
            if not new:
                return True
            if self._clock.monotonic_s() < self._retry_s:
                return False
            now_s = self._now_s()
            lines = [archived(entry, int(now_s * 1000)).to_line() for entry in new]
            try:
                await asyncio.to_thread(self._append, lines, now_s)
            except ArchiveError as error:
                self._note_failure(error)
                return False
            if self._failing:
                log.info("the archive can be written again")
            self._failing = False
            self._backoff.reset()
            for entry in new:
                entry.is_archived = True
            self._metrics.entries_archived += len(new)
            return True

    def _append(self, lines: Sequence[bytes], now_s: float) -> None:
        """A file is larger than `bytes_max` only if a line is."""
        if self._place is None:
            assert self._settings.directory is not None
            self._place = archive_place(self._settings.directory)
        part: list[bytes] = []
        size = 0
        for line in lines:
            if part and size + len(line) > self._settings.bytes_max:
                self._append_part(self._place, b"".join(part), now_s)
                part, size = [], 0
            part.append(line)
            size += len(line)
        self._append_part(self._place, b"".join(part), now_s)

    def _append_part(self, place: ArchivePlace, data: bytes, now_s: float) -> None:
        old = (
            now_s - self._began_s >= self._settings.seconds_max
            or now_s // HOUR_S != self._began_s // HOUR_S
            or self._bytes + len(data) > self._settings.bytes_max
        )
        if not self._name or old or not place.grows:
            self._count += 1
            self._began_s, self._bytes = now_s, 0
            self._name = f"{datetime.fromtimestamp(now_s, UTC):%Y-%m-%dT%H}-{self._writer}-{self._count:06d}.jsonl"
        try:
            place.append(self._name, data)
        except ArchiveError:
            self._name = ""  # what came after a part of a line could not be read
            raise
        self._bytes += len(data)

    def _note_failure(self, error: ArchiveError) -> None:
        self._retry_s = self._clock.monotonic_s() + self._backoff.next_s()
        self._metrics.archive_failures += 1
        if not self._failing:
            log.error("the archive cannot be written; accepted entries stay in the outbox until it can",
                      reason=str(error))  # fmt: skip
        self._failing = True

    def close(self) -> None:
        if self._place is not None:
            self._place.close()
