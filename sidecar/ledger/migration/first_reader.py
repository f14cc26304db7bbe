"""Goes through what format 1 has stored, in pages."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
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


@dataclass(slots=True)
class DayPage:
    """``cells``: units by account and metric, and by hour, summed over all partitions. ``notes``: by hour, what is no
    count."""

    cells: dict[tuple[str, str], dict[int, int]]
    notes: dict[int, dict[bytes, bytes]] = field(default_factory=dict)


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


async def hour_units(access: Access, first: FirstKeys, hour: int, home: int) -> AsyncIterator[Counter[str]]:
    """Units by metric that a partition counted in an hour, in pages."""
    key = first.name(home, f"hour:{hour}")
    cursor: Any = 0
    while True:
        cursor, found = await access.one(key, "HSCAN", key, cursor, "COUNT", PAGE_COUNTS)
        units = Counter[str]()
        for name, value in found.items():
            if (cell := first.counted(name)) is not None:
                units[cell[1]] += int(value)
        yield units
        if int(cursor) == 0:
            return


async def day_pages(
    access: Access, first: FirstKeys, homes_of: Mapping[int, Collection[int]]
) -> AsyncIterator[DayPage]:
    """The counts of some hours in pages, each account and metric once with all of these hours. ``homes_of``: to each
    hour, the partitions that counted it.

    A count is in the page of the first hash that has it; for it all the others are asked. That is one command for each
    hash and page, where asking for each account would be one for each hash and account.
    """
    places = [(hour, home) for hour in sorted(homes_of) for home in sorted(homes_of[hour])]
    for number, (hour, home) in enumerate(places):
        key = first.name(home, f"hour:{hour}")
        cursor: Any = 0
        while True:
            cursor, found = await access.one(key, "HSCAN", key, cursor, "COUNT", PAGE_COUNTS)
            counts = {name: int(value) for name, value in found.items() if b"\0" in name}
            page = DayPage(await _cells(access, first, places, number, counts))
            page.notes[hour] = {
                name: value for name, value in found.items() if b"\0" not in name and name != b"table"
            }  # fmt: skip
            yield page
            if int(cursor) == 0:
                break


async def _cells(
    access: Access, first: FirstKeys, places: Sequence[tuple[int, int]], number: int, counts: Mapping[bytes, int]
) -> dict[tuple[str, str], dict[int, int]]:
    """Units by account and metric, and by hour, of those counts that no earlier place has."""
    cells = {name: cell for name in counts if (cell := first.counted(name)) is not None}
    if not cells:
        return {}
    names = list(cells)
    keys = [first.name(home, f"hour:{hour}") for hour, home in places]
    replies = await access.each([Call(key, ("HMGET", key, *names)) for key in keys])
    found: dict[tuple[str, str], dict[int, int]] = {}
    for name, values in zip(names, zip(*replies, strict=True), strict=True):
        if any(value is not None for value in values[:number]):
            continue
        units: dict[int, int] = defaultdict(int)
        for (hour, _), value in zip(places, values, strict=True):
            if value is not None:
                units[hour] += int(value)
        found[cells[name]] = units
    return found
