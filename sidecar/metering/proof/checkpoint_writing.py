"""Makes checkpoints and puts them into the archive."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sidecar.basics.logger import get_logger
from sidecar.ledger.proof.checkpoint import Checkpoint, CheckpointError, opened, sign
from sidecar.metering.archive.archive_place import ArchiveError, ArchivePlace, archive_place
from sidecar.metering.proof.book_verification import CHECKPOINT
from sidecar.metering.proof.ledger_books import LedgerBooks

log = get_logger("sidecar.audit")


class CheckpointWriter:
    """``where``: directory or URL of the archive."""

    def __init__(self, books: LedgerBooks, where: str, key: Ed25519PrivateKey) -> None:
        self._books = books
        self._where = where
        self._key = key
        self._before = ""

    def __repr__(self) -> str:
        return f"CheckpointWriter({self._where})"

    async def write(self) -> str:
        """Signs what the ledger knows now, and answers the SHA-256, which is logged too: so it leaves the system.

        Raises:
            ArchiveError: it cannot be written.
            RedisError, OSError: Valkey cannot be reached.
        """
        origins = await self._books.origins()
        partitions = await self._books.partitions()
        at_s = time.time()
        place = await asyncio.to_thread(archive_place, self._where)
        before = self._before or await asyncio.to_thread(_last, place)
        signed, sha256 = sign(Checkpoint(int(at_s * 1000), before, partitions, origins), self._key)
        when = datetime.fromtimestamp(at_s, UTC)
        name = f"{when:%Y-%m-%dT%H%M%S}.{when.microsecond // 1000:03d}-{sha256[:12]}{CHECKPOINT}"
        try:
            await asyncio.to_thread(place.append, name, signed)
        finally:
            place.close()
        self._before = sha256
        log.info("checkpoint of the books", sha256=sha256, file=name, origins=len(origins))
        return sha256


def _last(place: ArchivePlace) -> str:
    """SHA-256 of the newest checkpoint, whoever wrote it; "" if there is none."""
    try:
        names = [name for name in place.names() if name.endswith(CHECKPOINT)]
        return opened(b"".join(place.lines(names[-1])), None)[1] if names else ""
    except (ArchiveError, CheckpointError):
        return ""
