"""What a ledger adds up to, read raw over all partitions of a server or a cluster: units settled, held, in events."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import msgpack

from sidecar.ledger.keys import Keys


@dataclass(frozen=True)
class LedgerTotals:
    """Units by account. ``events`` sums the outbox; ``ids`` counts how often each event's id occurs."""

    settled: dict[str, int] = field(default_factory=dict)
    held: dict[str, int] = field(default_factory=dict)
    events: dict[str, int] = field(default_factory=dict)
    ids: Counter[str] = field(default_factory=Counter)
    alive: frozenset[str] = frozenset()

    def check(self) -> None:
        """Every charge has its event and every event its charge; no event is there twice; nothing is held."""
        assert self.settled == self.events, "the settled units are not the sum of the events"
        assert set(self.ids.values()) <= {1}, "an event's id occurs twice"
        assert not any(self.held.values()), f"units are still held: {self.held}"


def counted_numbers(state: bytes) -> list[int]:
    """N, H and the units of the hour of each counter, in one row (lua/lib/account.lua)."""
    length = int.from_bytes(state[:3], "big")
    front, hot = msgpack.Unpacker(), msgpack.Unpacker()
    front.feed(state[3 : 3 + length])
    hot.feed(state[3 + length :])
    counters: int = list(front)[9]
    return list(hot)[4 : 4 + 3 * counters]


async def read_totals(client: Any, keys: Keys, accounts: list[str]) -> LedgerTotals:
    """``client``: redis.asyncio's Redis or RedisCluster."""
    settled: dict[str, int] = {}
    held: dict[str, int] = {}
    for account in accounts:
        raw = await client.get(keys.state(account))
        numbers = counted_numbers(raw) if raw else []
        if n := sum(numbers[::3]):
            settled[account] = n
        held[account] = sum(numbers[1::3])
    events: Counter[str] = Counter()
    ids: Counter[str] = Counter()
    alive: set[str] = set()
    for partition in range(keys.partitions):
        for _, entry in await client.xrange(keys.outbox(partition)):
            origin, number = entry[b"o"].decode(), int(entry[b"q"])
            for position, event in enumerate(json.loads(entry[b"e"])):
                events[event[0]] += event[2]
                ids[f"{origin}.{number}.{position}"] += 1
        alive |= {member.decode() for member in await client.zrange(keys.alive(partition), 0, -1)}
    return LedgerTotals(settled, held, dict(events), ids, frozenset(alive))
