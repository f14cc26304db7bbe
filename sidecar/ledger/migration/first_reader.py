"""Goes through what format 1 has stored, in pages."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from sidecar.ledger.migration.first_format import FirstKey, FirstKeys
from sidecar.ledger.transfer.access import Access
from sidecar.valkey.calls import Call

PAGE_ACCOUNTS: Final = 500
PAGE_COUNTS: Final = 1_000
"""Counts of an hour that are looked at at once."""


@dataclass(slots=True)
class FirstCensus:
    """What a look at all keys has found. ``hours``: to each hour, the partitions that counted it. ``marks``:
    idempotency keys; ``marks_ms``: how long the last of them would be known."""

    hours: dict[int, set[int]] = field(default_factory=lambda: defaultdict(set))
    marks: int = 0
    marks_ms: int = 0
    unknown: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class HourPage:
    """Units by account and metric, summed over all partitions; and those that the page's own partition counted."""

    units: dict[tuple[str, str], int]
    own: Counter[str]


async def parsed_pages(access: Access, first: FirstKeys) -> AsyncIterator[list[tuple[FirstKey, str, bytes]]]:
    """All keys of format 1: parsed, as text, as stored."""
    async for page in access.key_pages(first.pattern):
        parsed = ((first.parsed(key), key) for key in page)
        yield [(what, key.decode("utf-8", "surrogateescape"), key) for what, key in parsed if what is not None]


async def id_pages(access: Access, index: str, after: bytes | None = None) -> AsyncIterator[list[bytes]]:
    """Account ids of an index in order, those that follow ``after``. None where the index is a text: a partition that a
    gateway of the new release has made, since the old ledger had nothing there."""
    if await access.one(index, "TYPE", index) != b"zset":
        return
    low = b"-" if after is None else b"(" + after
    while True:
        page: Any = await access.one(index, "ZRANGEBYLEX", index, low, "+", "LIMIT", 0, PAGE_ACCOUNTS)
        if page:
            yield page
            low = b"(" + page[-1]
        if len(page) < PAGE_ACCOUNTS:
            return


async def hour_pages(
    access: Access, first: FirstKeys, hour: int, homes: Sequence[int]
) -> AsyncIterator[tuple[HourPage, dict[bytes, bytes]]]:
    """The counts of an hour in pages, and the notes among them. A count comes once for each partition that has it,
    every time with the units of all."""
    for home in homes:
        key = first.name(home, f"hour:{hour}")
        cursor: Any = 0
        while True:
            cursor, found = await access.one(key, "HSCAN", key, cursor, "COUNT", PAGE_COUNTS)
            counts = {name: value for name, value in found.items() if b"\0" in name}
            notes = {name: value for name, value in found.items() if b"\0" not in name and name != b"table"}
            yield await _summed(access, first, hour, [each for each in homes if each != home], counts), notes
            if int(cursor) == 0:
                break


async def _summed(
    access: Access, first: FirstKeys, hour: int, others: Sequence[int], counts: dict[bytes, bytes]
) -> HourPage:
    names = list(counts)
    sums = [int(value) for value in counts.values()]
    own = Counter[str]()
    parsed = [first.counted(name) for name in names]
    for what, units in zip(parsed, sums, strict=True):
        if what is not None:
            own[what[1]] += units
    if names:
        keys = [first.name(home, f"hour:{hour}") for home in others]
        for reply in await access.each([Call(key, ("HMGET", key, *names)) for key in keys]):
            sums = [units + int(value or 0) for units, value in zip(sums, reply, strict=True)]
    units_of = {what: units for what, units in zip(parsed, sums, strict=True) if what is not None}
    return HourPage(units_of, own)
