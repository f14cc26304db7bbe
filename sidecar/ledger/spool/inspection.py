"""What lies in a spool's directory, without changing it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from sidecar.basics.fault_reasons import reason_of
from sidecar.ledger.client.sealed import SealedBatch, SealedError, events_of
from sidecar.ledger.spool.former_spools import former_spools
from sidecar.ledger.spool.journal import Damage, Journal, JournalError, dead_journals
from sidecar.ledger.spool.spool_file import Record, read_records

IN_USE: Final = "in use"
WAITING: Final = "waiting"
UNUSABLE: Final = "unusable"
DAMAGED: Final = "damaged parts"


@dataclass(slots=True)
class SpoolFile:
    """``state``: in use by a living process; waiting to be replayed; unusable, ``why`` says for what; or parts that
    were put aside. ``units`` by account, of ``charges``; ``since_ms``: of the oldest, 0 if it is not known.
    ``damages``: damaged parts in the file."""

    name: str
    state: str
    charges: int = 0
    units: Counter[str] = field(default_factory=Counter)
    since_ms: int = 0
    damages: int = 0
    why: str = ""


def inspect(directory: Path) -> list[SpoolFile]:
    """Files of living and dead processes, of release 0.2, and damaged parts.

    Raises:
        JournalError: the directory cannot be trusted.
        OSError: it cannot be read.
    """
    found = [_journal(directory, name) for name in dead_journals(directory)]
    for former in former_spools(directory):
        if former.lock():
            former.close()
            found.append(_former(former.path))
        else:
            found.append(SpoolFile(former.path.name, IN_USE))
    for path in sorted(directory.glob("*.damaged*")):
        found.append(SpoolFile(path.name, DAMAGED, since_ms=int(path.lstat().st_mtime * 1000)))
    return found


def _journal(directory: Path, name: str) -> SpoolFile:
    try:
        journal = Journal.adopt(directory, name)
    except (JournalError, OSError) as error:
        return SpoolFile(name, UNUSABLE, why=reason_of(error))
    if journal is None:
        return SpoolFile(name, IN_USE)
    file = SpoolFile(name, WAITING)
    try:
        for item in journal.entries():
            if isinstance(item, Damage):
                file.damages += 1
                continue
            try:
                sealed = SealedBatch.from_bytes(item.payload)
                events = events_of(sealed)
            except SealedError as error:
                file.why = f"entry {item.sequence}: {error}"
                continue
            file.charges += sealed.settles
            file.since_ms = min(file.since_ms or sealed.at_ms, sealed.at_ms)
            for event in events:
                file.units[event[0]] += event[2]
    finally:
        journal.close(remove=False)
    return file


def _former(path: Path) -> SpoolFile:
    file = SpoolFile(path.name, WAITING, since_ms=int(path.stat().st_mtime * 1000))
    for item in read_records(path):
        if isinstance(item, Record):
            file.charges += 1
            file.units[item.account] += item.units
        else:
            file.damages += 1
    return file
