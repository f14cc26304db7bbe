"""The entries that a publisher has read and not finished."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sidecar.basics.logger import get_logger
from sidecar.metering.archive.archive import Archive
from sidecar.metering.dead_letters import dead_letter_of_entry, dead_letter_of_position
from sidecar.metering.metrics import PublisherMetrics
from sidecar.metering.outbox.events import EventAttributes, MalformedEntry, decode_entry
from sidecar.metering.outbox.outbox import Outbox
from sidecar.metering.publisher.batches import Batcher, Entry

log = get_logger("sidecar.metering")


class PendingEntries:
    """Takes entries in, queues their events in ``batcher``, and removes the entries when all is done.

    ``bytes`` is the size of the entries in progress, the measure of how much more may be read.
    """

    def __init__(
        self, outbox: Outbox, batcher: Batcher, attributes: EventAttributes, metrics: PublisherMetrics,
        archive: Archive | None = None,
    ) -> None:  # fmt: skip
        self.bytes = 0
        self._outbox = outbox
        self._batcher = batcher
        self._attributes = attributes
        self._metrics = metrics
        self._archive = archive
        self._entries: dict[tuple[int, bytes, bytes], Entry] = {}
        self._unfinished: list[Entry] = []

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        return f"PendingEntries({len(self._entries)} entries, {len(self._unfinished)} to be removed, {self._batcher!r})"

    async def take(self, entries: Iterable[Entry]) -> None:
        """Decodes entries and queues their events. One that is in progress already is left as it is."""
        finished: list[Entry] = []
        events_before, entries_before = len(self._batcher), len(self._entries)
        for entry in entries:
            key = entry.partition, entry.id, entry.name
            if key in self._entries:
                continue
            self._entries[key] = entry
            self.bytes += entry.size_bytes
            bodies = self._decode(entry)
            self._batcher.add(entry, bodies)
            if not bodies:
                finished.append(entry)
        events = len(self._batcher) - events_before
        self._metrics.entries_read += len(self._entries) - entries_before
        self._metrics.events_read += events
        self._metrics.events_in_progress += events
        if finished:
            await self.finish(finished)

    def _decode(self, entry: Entry) -> list[bytes]:
        try:
            decoded = decode_entry(entry.fields, self._attributes)
        except MalformedEntry as error:
            log.error("cannot read an outbox entry, it is kept as a dead letter", reason=str(error), entry=repr(entry))
            entry.dead_letters.append(dead_letter_of_entry(entry.fields, str(error)))
            return []
        for invalid in decoded.invalid_events:
            log.error(
                "cannot send a usage event, it is kept as a dead letter", reason=invalid.reason, entry=repr(entry)
            )
            entry.dead_letters.append(dead_letter_of_position(entry.fields, invalid.position, invalid.reason))
        return decoded.bodies

    async def finish(self, entries: Sequence[Entry]) -> None:
        """Removes entries from the outbox, once they are in the archive. Those that cannot be written or removed now
        wait for :meth:`finish_rest`."""
        if self._archive is not None and entries and not await self._archive.write(entries):
            self._unfinished += entries
            return
        left = await self._outbox.finish(entries) if entries else []
        self._unfinished += left
        waiting = frozenset(left)
        for entry in entries:
            if entry in waiting:
                continue
            del self._entries[entry.partition, entry.id, entry.name]
            self.bytes -= entry.size_bytes
            self._metrics.events_in_progress -= entry.events
            self._metrics.entries_finished += 1
            self._metrics.dead_letters += len(entry.dead_letters)

    async def finish_rest(self) -> None:
        """Tries again to remove what could not be removed."""
        entries, self._unfinished = self._unfinished, []
        await self.finish(entries)

    def give_up(self, entries: Iterable[Entry]) -> None:
        """Forgets entries of which nothing was delivered. They stay in the outbox, and once they are idle any publisher
        takes them again."""
        for entry in entries:
            del self._entries[entry.partition, entry.id, entry.name]
            self.bytes -= entry.size_bytes
            self._metrics.events_in_progress -= entry.events

    async def keep(self) -> None:
        """Tells other publishers that all these entries are in progress."""
        await self._outbox.keep(self._entries.values())
