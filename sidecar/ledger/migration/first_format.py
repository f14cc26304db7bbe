"""Format 1, as release 0.2 stored it: the names of its keys, and an account's fields decoded."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import msgpack
import orjson

from sidecar.ledger.keys import Keys
from sidecar.ledger.pricing.price_tables import MAX_INT, PackedTable
from sidecar.ledger.transfer.access import TransferError

PARTITIONS_MAX: Final = 1_000

_HEAD: Final = 6
_WIDTH: Final = 7
_POLICY: Final = 7
_CLOSED: Final = re.compile(rb"closed:(\d+):(.*)", re.DOTALL)
_SINGLE: Final = (b"policy", b"state", b"prices", b"periods", b"digits", b"info", b"fence")


class MigrationError(TransferError):
    """The ledger cannot be migrated. The message says why."""


@dataclass(frozen=True, slots=True)
class FirstKey:
    """A key of format 1: its partition, what it is (``account``, ``apikey``, …), and of which account or hour."""

    partition: int
    kind: str
    rest: str


class FirstKeys:
    """Names of format 1 under the prefix of ``keys``."""

    def __init__(self, keys: Keys, partitions: int) -> None:
        self.partitions = partitions
        self._keys = keys
        prefix = re.escape(keys.prefix)
        self._key = re.compile(rf"{prefix}:\{{p(\d{{2,4}})\}}:([a-z-]+)(?::(.*))?".encode(), re.DOTALL)
        self._counted = re.compile(rf"{prefix}:\{{p\d{{2,4}}\}}:account:(.*)".encode(), re.DOTALL)

    def __repr__(self) -> str:
        return f"FirstKeys({self._keys.prefix}, {self.partitions})"

    def name(self, partition: int, name: str) -> str:
        return self._keys.first_format(partition, name)

    @property
    def pattern(self) -> str:
        """Of all names, for SCAN."""
        return f"{self._keys.prefix}:{{p*}}:*"

    def progress(self, partition: int = 0) -> str:
        """What a migration notes of itself. Its stages are in partition 0."""
        return self.name(partition, "migration")

    def unlisted(self, partition: int) -> str:
        """Accounts that the index of a partition lacks: they have counts and were never loaded."""
        return self.name(partition, "migration-unlisted")

    def parsed(self, key: bytes) -> FirstKey | None:
        """None: it is no key of format 1."""
        match = self._key.fullmatch(key)
        if match is None:
            return None
        rest = (match[3] or b"").decode("utf-8", "surrogateescape")
        return FirstKey(int(match[1]), match[2].decode(), rest)

    def counted(self, field_name: bytes) -> tuple[str, str] | None:
        """Account and metric of a field of an hour. None: it is a note, or what makes it a table."""
        key, separator, metric = field_name.partition(b"\0")
        match = self._counted.fullmatch(key)
        if not separator or match is None:
            return None
        return match[1].decode(), metric.decode()


@dataclass(frozen=True, slots=True)
class FirstUsage:
    """One metric in the current period: units settled and units held."""

    metric: str
    settled: int
    held: int


@dataclass(frozen=True, slots=True)
class FirstClosed:
    """One metric of a period that is over. ``cost`` is scaled."""

    start_ms: int
    metric: str
    units: int
    cost: int


@dataclass(frozen=True, slots=True)
class FirstAccount:
    """An account as stored. Money is scaled by ``digits``. ``version`` 0: it was never loaded, or lost its policy."""

    version: int
    status: int
    ceiling: int | None
    counts_unsettled: bool
    rate_interval_us: int
    burst: int
    day_limit: int
    unsettled: int
    start_ms: int
    end_ms: int
    tat_us: int
    day: int
    day_count: int
    usages: tuple[FirstUsage, ...] = ()
    next_ends_ms: tuple[int, ...] = ()
    prices: Mapping[str, PackedTable] = field(default_factory=dict)
    former_prices: Mapping[str, PackedTable] = field(default_factory=dict)
    closed: tuple[FirstClosed, ...] = ()
    digits: int | None = None
    info: Mapping[str, Any] = field(default_factory=dict)
    fence: int | None = None


def decode_first_account(fields: Mapping[bytes, bytes]) -> FirstAccount:
    """Reads the fields of an account's hash.

    Raises:
        ValueError: they cannot be read, or there is one that no release has written.
    """
    try:
        return _decode(fields)
    except (TypeError, LookupError, AttributeError, msgpack.UnpackException) as error:
        raise ValueError(f"it lacks something, or has something else: {error}") from None


def _decode(fields: Mapping[bytes, bytes]) -> FirstAccount:
    policy = _unpacked(fields, b"policy", [0, 0, False, 0, 0, 0, 0])
    state = _unpacked(fields, b"state", [0, 0, MAX_INT, 0, 0, 0])
    live, former = _unpacked(fields, b"prices", [{}, {}])
    if len(policy) != _POLICY or len(state) < _HEAD or (len(state) - _HEAD) % _WIDTH:
        raise ValueError(f"a policy of {len(policy)} and a state of {len(state)} values")
    if policy[0] and not {b"digits", b"info", b"prices"} <= set(fields):
        raise ValueError("it was loaded, and a field of the loader's is missing")
    closed = []
    for name, value in fields.items():
        if match := _CLOSED.fullmatch(name):
            units, spent = value.split()
            closed.append(FirstClosed(int(match[1]), match[2].decode(), int(units), int(spent)))
        elif name not in _SINGLE:
            raise ValueError(f"its field {name[:60]!r} is not known")
    version, status, ceiling, counts_unsettled, interval_us, burst, day_limit = policy
    info = orjson.loads(fields[b"info"]) if b"info" in fields else {}
    if not isinstance(info, dict):
        raise ValueError("its info is no map")
    return FirstAccount(
        version=int(version),
        status=int(status),
        ceiling=None if ceiling is False else int(ceiling),
        counts_unsettled=counts_unsettled == 1,
        rate_interval_us=int(interval_us),
        burst=int(burst),
        day_limit=int(day_limit),
        unsettled=int(state[0]),
        start_ms=int(state[1]),
        end_ms=int(state[2]),
        tat_us=int(state[3]),
        day=int(state[4]),
        day_count=int(state[5]),
        usages=tuple(
            FirstUsage(state[at], int(state[at + 1]), int(state[at + 2])) for at in range(_HEAD, len(state), _WIDTH)
        ),
        next_ends_ms=tuple(int(end) for end in _unpacked(fields, b"periods", ())),
        prices=_tables(live),
        former_prices=_tables(former),
        closed=tuple(sorted(closed, key=lambda each: (each.start_ms, each.metric))),
        digits=int(fields[b"digits"]) if b"digits" in fields else None,
        info=info,
        fence=int(fields[b"fence"]) if b"fence" in fields else None,
    )


def _unpacked(fields: Mapping[bytes, bytes], name: bytes, absent: Any) -> Any:
    packed = fields.get(name)
    return absent if packed is None else msgpack.unpackb(packed, raw=False)


def _tables(tables: Any) -> dict[str, PackedTable]:
    # cmsgpack cannot tell an empty map from an empty list.
    return {name: [table[0], *map(int, table[1:])] for name, table in tables.items()} if tables else {}
