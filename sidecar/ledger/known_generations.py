"""Remembers the generations of a ledger in a file, so that one that lost its data is told from one that is new."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sidecar.basics.fault_reasons import reason_of
from sidecar.basics.logger import get_logger
from sidecar.ledger.keys import Keys, partitions_text
from sidecar.ledger.ledger_format import FormatError, LedgerFormat, open_partitions
from sidecar.valkey.topology import CLIENT_ERRORS, Client

log = get_logger("sidecar.ledger")

FILE_BYTES_MAX = 1_000_000


class KnownGenerations:
    """The file ``ledger-<prefix>.json`` of a directory."""

    def __init__(self, directory: Path, prefix: str) -> None:
        self.path = directory / f"ledger-{prefix}.json"

    def __repr__(self) -> str:
        return f"KnownGenerations({self.path})"

    def read(self) -> tuple[str, ...]:
        """The generation of each partition; empty if nothing is remembered.

        Raises:
            FormatError: the file cannot be read.
        """
        try:
            with self.path.open("rb") as file:
                text = file.read(FILE_BYTES_MAX)
            found: Any = json.loads(text)["generations"]
            if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
                raise ValueError("generations should be a list of texts")
        except FileNotFoundError:
            return ()
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise FormatError(f"{self.path}: {reason_of(error)}") from None
        return tuple(found)

    def write(self, generations: Sequence[str]) -> None:
        """Replaces the file in one step.

        Raises:
            FormatError: it cannot be written.
        """
        try:
            with tempfile.NamedTemporaryFile("w", dir=self.path.parent, prefix=".ledger-", delete=False) as file:
                json.dump({"generations": list(generations)}, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(file.name, self.path)
        except OSError as error:
            raise FormatError(f"{self.path}: {reason_of(error)}") from None


async def open_known_ledger(
    client: Client, keys: Keys, *, must_exist: bool = False, known: KnownGenerations | None = None, again: bool = False
) -> LedgerFormat | None:
    """Opens the ledger as ``open_partitions`` does, and compares it with what is remembered of it. ``must_exist``:
    nothing is made. ``again``: what cannot be reached was told of. None: Valkey cannot be reached, and nothing is known
    of the ledger.

    Raises:
        FormatError: the ledger does not fit, is missing, or is not the one that was known.
    """
    remembered = known.read() if known is not None else ()
    # A partition that was never reached may be a new one; one that was there may not.
    may_create = [] if must_exist else [p for p in range(keys.partitions) if not _of(remembered, p)]
    try:
        found, errors = await open_partitions(client, keys, may_create)
    except CLIENT_ERRORS as error:
        if not again:
            log.warning("the ledger's format is not known yet: Valkey cannot be reached", error=reason_of(error)[:200])
        return None
    except FormatError as error:
        if remembered and known is not None and not must_exist:
            raise FormatError(f"{error}; it was there before: to begin a new one, remove {known.path}") from None
        raise
    if errors and not again:
        log.warning("some partitions of the ledger cannot be reached; what is on the others works",
                    partitions=partitions_text(found.unreached), of=keys.partitions,
                    error=reason_of(errors[found.unreached[0]])[:200])  # fmt: skip
    if known is not None:
        others = [
            p
            for p, now in enumerate(found.generations)
            if now and _of(remembered, p) and not same(_of(remembered, p), now)
        ]
        if others:
            raise FormatError(
                f"the ledger with the prefix {keys.prefix!r} is not the one that it was: its data was lost or replaced "
                f"(partition {others[0]}: generation {found.generations[others[0]]}, known as "
                f"{remembered[others[0]]}). If that is meant, remove {known.path}"
            )
        merged = tuple(now or _of(remembered, p) for p, now in enumerate(found.generations))
        if tuple(remembered) != merged:
            known.write(merged)
    return found


def _of(generations: Sequence[str], partition: int) -> str:
    return generations[partition] if partition < len(generations) else ""


def same(one: str, other: str) -> bool:
    """Whether two generations are of one ledger: the count grows when its data is replaced on purpose."""
    return one.partition(":")[0] == other.partition(":")[0]
