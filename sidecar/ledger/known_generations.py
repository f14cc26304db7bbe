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
from sidecar.ledger.keys import Keys
from sidecar.ledger.ledger_format import FormatError, LedgerFormat, open_ledger
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
    client: Client, keys: Keys, *, must_exist: bool = False, known: KnownGenerations | None = None
) -> LedgerFormat | None:
    """Opens the ledger as ``open_ledger`` does, and compares it with what is remembered of it. ``must_exist``: nothing
    is made. None: Valkey cannot be reached, and nothing is known of the ledger.

    Raises:
        FormatError: the ledger does not fit, is missing, or is not the one that was known.
    """
    remembered = known.read() if known is not None else ()
    try:
        found = await open_ledger(client, keys, create=not must_exist and not remembered)
    except CLIENT_ERRORS as error:
        log.warning("the ledger's format is not known yet: Valkey cannot be reached", error=reason_of(error)[:200])
        return None
    except FormatError as error:
        if remembered and known is not None and not must_exist:
            raise FormatError(f"{error}; it was there before: to begin a new one, remove {known.path}") from None
        raise
    if known is not None:
        others = [p for p, (a, b) in enumerate(zip(remembered, found.generations, strict=False)) if not same(a, b)]
        if others:
            raise FormatError(
                f"the ledger with the prefix {keys.prefix!r} is not the one that it was: its data was lost or replaced "
                f"(partition {others[0]}: generation {found.generations[others[0]]}, known as "
                f"{remembered[others[0]]}). If that is meant, remove {known.path}"
            )
        if tuple(remembered) != found.generations:
            known.write(found.generations)
    return found


def same(one: str, other: str) -> bool:
    """Whether two generations are of one ledger: the count grows when its data is replaced on purpose."""
    return one.partition(":")[0] == other.partition(":")[0]
