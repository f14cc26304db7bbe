"""What a ledger says of itself: format, number of partitions, and the generation of each (docs/ledger.md, "Format").

Every partition carries it in its meta hash. Who starts on a ledger reads all of them first, so that a release that
knows another format, or a configuration with another number of partitions, ends with a clear word and not with an empty
ledger.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sidecar.basics.errors import SetupError
from sidecar.basics.logger import get_logger
from sidecar.ledger.keys import FORMAT, Keys
from sidecar.valkey.calls import call_each, raise_first, script_call
from sidecar.valkey.scripts import script
from sidecar.valkey.topology import Client

log = get_logger("sidecar.ledger")


IMPORTING: Final = "importing"
"""What a partition has for its format while a ledger is imported."""


class FormatError(SetupError):
    """The ledger cannot be used by this release, or with this configuration. The message says what it has and why."""


@dataclass(frozen=True, slots=True)
class PartitionFormat:
    """``generation``: ``<random>:<count>``. The random part is another one whenever a ledger begins; the count grows
    when its data is replaced on purpose (a migration, an import)."""

    format: int
    partitions: int
    generation: str
    is_new: bool

    def check(self, keys: Keys) -> None:
        """Raises :class:`FormatError` unless this release and these keys fit."""
        if self.format == 1:
            raise FormatError(
                f"the ledger with the prefix {keys.prefix!r} has format 1 (release 0.2), this release has format "
                f"{FORMAT}: stop the gateways and control planes of release 0.2, then run: sidecar ledger migrate"
            )
        if self.format != FORMAT:
            raise FormatError(
                f"the ledger with the prefix {keys.prefix!r} has format {self.format}, this release has format "
                f"{FORMAT}: use a release that has it"
            )
        if self.partitions != keys.partitions:
            raise FormatError(
                f"the ledger with the prefix {keys.prefix!r} has {self.partitions} partitions, ledger.partitions says "
                f"{keys.partitions}: set {self.partitions} (sidecar ledger export and import change the number)"
            )


@dataclass(frozen=True, slots=True)
class LedgerFormat:
    """``generations``: of each partition, "" where it is not known. ``new``: partitions that had nothing and were made
    by this call. ``unreached``: partitions whose server did not answer."""

    generations: tuple[str, ...]
    new: tuple[int, ...] = ()
    unreached: tuple[int, ...] = ()


def new_generation() -> str:
    """The generation of a ledger that begins."""
    return f"{secrets.token_hex(8)}:0"


def open_arguments(keys: Keys, partition: int, generation: str) -> tuple[list[str], list[str | int]]:
    """Keys and arguments of ``lua/open.lua``."""
    names = [
        keys.meta(partition), keys.clock(partition), keys.outbox(partition),
        keys.first_format(partition, "accounts"), keys.first_format(partition, "alive"),
    ]  # fmt: skip
    return names, [keys.partitions, generation]


def partition_format(reply: Any) -> PartitionFormat | None:
    """What ``lua/open.lua`` answered. None: the partition has nothing.

    Raises:
        FormatError: it cannot be read.
    """
    try:
        format_, partitions, generation, is_new = reply
        if not format_:
            return None
        if format_ == IMPORTING.encode():
            raise FormatError(
                "the ledger is being imported, or its import was interrupted: run sidecar ledger import again"
            )
        return PartitionFormat(int(format_), int(partitions or 0), generation.decode(), bool(is_new))
    except (TypeError, ValueError):
        raise FormatError(f"the ledger's format cannot be read: {reply!r}"[:300]) from None


async def find_ledger(client: Client, keys: Keys) -> LedgerFormat | None:
    """Reads what all partitions say of themselves, and makes nothing. None: there is no ledger.

    Raises:
        FormatError: the ledger does not fit, or some of its partitions have nothing.
        RedisError, OSError: Valkey cannot be reached.
    """
    found, errors = await _read_some(client, keys, range(keys.partitions), "")
    raise_first(errors.values())
    if not any(found.values()):
        return None
    return await open_ledger(client, keys, create=False)


async def open_ledger(client: Client, keys: Keys, *, create: bool = True) -> LedgerFormat:
    """Reads what all partitions say of themselves. With ``create``, those that have nothing become new ones.

    Raises:
        FormatError: the ledger does not fit; or it has nothing and ``create`` is off.
        RedisError, OSError: Valkey cannot be reached, or a part of it.
    """
    found, errors = await open_partitions(client, keys, range(keys.partitions) if create else ())
    raise_first(errors.values())
    return found


async def open_partitions(
    client: Client, keys: Keys, may_create: Collection[int]
) -> tuple[LedgerFormat, dict[int, Exception]]:
    """As :func:`open_ledger`, for those partitions whose server answers, and why others do not. Of those that have
    nothing, the ones in ``may_create`` become new.

    Raises:
        FormatError: the ledger does not fit; or a partition has nothing that is not to be made.
        RedisError, OSError: no partition can be reached.
    """
    found, errors = await _read_some(client, keys, range(keys.partitions), "")
    if len(errors) == keys.partitions:
        raise_first(errors.values())
    for one in found.values():
        if one is not None:
            one.check(keys)
    missing = [partition for partition, one in found.items() if one is None]
    generations = {partition: one.generation for partition, one in found.items() if one is not None}
    if any(partition not in may_create for partition in missing):
        raise FormatError(nothing_there(keys, missing))
    new = []
    if missing:
        made, not_made = await _read_some(client, keys, missing, new_generation())
        errors |= not_made
        for partition, one in made.items():
            assert one is not None
            one.check(keys)
            generations[partition] = one.generation
            if one.is_new:  # nobody was faster
                new.append(partition)
    if new:
        log.info("partitions of the ledger are new", prefix=keys.prefix, partitions=len(new), of=keys.partitions)
    every = tuple(generations.get(partition, "") for partition in range(keys.partitions))
    return LedgerFormat(every, tuple(new), tuple(sorted(errors))), errors


def nothing_there(keys: Keys, missing: list[int]) -> str:
    """What to say of partitions that must exist."""
    if len(missing) == keys.partitions:
        return (
            f"there is no ledger with the prefix {keys.prefix!r}, and ledger.expect is existing: its data was lost, "
            "or valkey_url or ledger.prefix names another place"
        )
    return f"partitions {', '.join(map(str, missing))} of the ledger have no data: a server lost it"


async def _read_some(
    client: Client, keys: Keys, partitions: Sequence[int], generation: str
) -> tuple[dict[int, PartitionFormat | None], dict[int, Exception]]:
    """What those partitions say whose server answers, and why the others do not."""
    text = script("open").text
    calls = []
    for partition in partitions:
        names, arguments = open_arguments(keys, partition, generation)
        calls.append(script_call(text, names, *arguments))
    found: dict[int, PartitionFormat | None] = {}
    errors: dict[int, Exception] = {}
    for partition, reply in zip(partitions, await call_each(client, calls), strict=True):
        if isinstance(reply, Exception):
            errors[partition] = reply
        else:
            found[partition] = partition_format(reply)
    return found, errors
