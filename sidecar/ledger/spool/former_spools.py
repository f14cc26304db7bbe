"""Spools of release 0.2: ``spool-<instance>.log``, a line a charge (`spool_file`). They are replayed once, and go."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from sidecar.ledger.client.batch import REPLAY, Batch, encode
from sidecar.ledger.client.link_settings import LinkSettings
from sidecar.ledger.client.outcomes import Hold
from sidecar.ledger.client.sealed import SealedBatch
from sidecar.ledger.keys import Keys, idempotency_digest
from sidecar.ledger.spool.spool_file import Damage, Record, keep_damaged, open_locked, read_records
from sidecar.valkey.command import bulk

BATCH_CHARGES: Final = 256


@dataclass(slots=True)
class FormerSpool:
    """One file. :meth:`lock` it first."""

    path: Path
    _descriptor: int = -1
    _damaged: list[bytes] = field(default_factory=list)

    def lock(self) -> bool:
        """Whether it is a dead process's, and ours now. Raises OSError: it cannot be opened."""
        try:
            self._descriptor = open_locked(self.path, create=False)
        except (BlockingIOError, FileNotFoundError):
            return False
        if not os.fstat(self._descriptor).st_nlink:  # another process has replayed it meanwhile
            self.close()
            return False
        return True

    def read(self, keys: Keys, settings: LinkSettings) -> list[SealedBatch]:
        """Its charges as numbered batches. Which charge is in which is the same at every reading. Raises OSError."""
        at_ms = int(os.fstat(self._descriptor).st_mtime * 1000)
        by_partition: dict[int, list[Record]] = {}
        for item in read_records(self.path):
            if isinstance(item, Damage):
                self._damaged.append(item.line)
            else:
                by_partition.setdefault(keys.partition(item.account), []).append(item)
        sealed = []
        for home, records in sorted(by_partition.items()):
            for number, at in enumerate(range(0, len(records), BATCH_CHARGES), 1):
                some = records[at : at + BATCH_CHARGES]
                batch = _batch(some, number)
                names, arguments, _ = encode(
                    batch, f"{self.path.stem}.{home:02d}", settings, {}, lambda account: _two_keys(keys, account)
                )
                sealed.append(SealedBatch(home, number, names, arguments, len(some), at_ms))
        return sealed

    @property
    def damages(self) -> int:
        """Lines that cannot be read, after :meth:`read`."""
        return len(self._damaged)

    def finish(self) -> Path | None:
        """All is in the ledger: removes it. Where damaged lines were put aside, None without any. Raises OSError."""
        kept = keep_damaged(self.path, self._damaged) if self._damaged else None
        os.unlink(self.path)
        return kept

    def close(self) -> None:
        if self._descriptor >= 0:
            with contextlib.suppress(OSError):
                os.close(self._descriptor)
            self._descriptor = -1


def former_spools(directory: Path) -> list[FormerSpool]:
    """Raises OSError."""
    return [FormerSpool(path) for path in sorted(directory.glob("spool-*.log"))]


def _two_keys(keys: Keys, account: str) -> bytes:
    return b"".join(bulk(name.encode()) for name in (keys.state(account), keys.account(account)))


def _batch(records: list[Record], number: int) -> Batch:
    batch = Batch(0)
    batch.number = number
    for record in records:
        hold = Hold(record.account, record.metric, record.units, record.key, None)
        hold.record = idempotency_digest(record.account, record.id.encode())
        batch.add_single(hold, REPLAY, record.event)
    return batch
