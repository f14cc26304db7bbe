"""What a ledger takes of its servers' memory, by kind of key, at the cost of some thousand commands.

What there are many of is estimated from a sample: accounts, gateway processes, API keys. No key is looked for by
scanning, so what belongs to nobody is in the rest.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

from redis.asyncio import RedisCluster

from sidecar.ledger.hours import KEPT_DAYS
from sidecar.ledger.keys import Keys
from sidecar.ledger.verification.account_reading import StoredAccount, read_accounts
from sidecar.ledger.verification.pace import Pace
from sidecar.valkey.calls import Argument, Call, call_each, raise_first
from sidecar.valkey.memory import MemoryUse, memory_uses
from sidecar.valkey.scripts import function
from sidecar.valkey.topology import Client

SAMPLE: Final = 200
"""Keys of one kind whose size is asked for."""

AT_ONCE: Final = 200
API_KEY_HASHES: Final = 256
"""In each partition."""
API_KEY_LOOKS: Final = 5
"""Hashes of API keys for each one of the sample: most have few keys, or none."""

FULL_SHARE: Final = 0.9
"""As from where on the publisher keeps less for the audit (``sidecar.metering.publisher.memory_relief``)."""
NEARLY_FULL_SHARE: Final = 0.75

_FUNCTION: Final = re.compile(r"quota_[a-z_]+_[0-9a-f]{16}")


@dataclass(frozen=True, slots=True)
class KindUse:
    """``count`` things of a kind, in ``size_bytes``. ``estimated``: from ``sampled`` of them."""

    kind: str
    count: int
    size_bytes: int
    estimated: bool = False
    sampled: int = 0


@dataclass(frozen=True, slots=True)
class ServerUse:
    """One server. ``functions_bytes``: of all function libraries, with the interpreter. ``policy``: what it does when
    it is full."""

    name: str
    used_bytes: int
    max_bytes: int
    functions_bytes: int
    policy: str
    current_functions: tuple[str, ...]
    old_functions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class MemoryReport:
    """``warnings``: sentences for people."""

    kinds: tuple[KindUse, ...]
    servers: tuple[ServerUse, ...]
    warnings: tuple[str, ...]

    @property
    def ledger_bytes(self) -> int:
        return sum(kind.size_bytes for kind in self.kinds)

    @property
    def used_bytes(self) -> int:
        return sum(server.used_bytes for server in self.servers)

    @property
    def max_bytes(self) -> int:
        """0 where a server has no limit."""
        return sum(s.max_bytes for s in self.servers) if all(s.max_bytes for s in self.servers) else 0


async def memory_report(
    client: Client, keys: Keys, *, sample: int = SAMPLE, pace: Pace | None = None, chance: random.Random | None = None
) -> MemoryReport:
    """Measures. Raises what redis-py raises."""
    look = _Look(client, keys, sample, pace or Pace(), chance or random.Random())  # noqa: S311 - keeps no secret
    kinds = [*await look.accounts(), *await look.api_keys(), *await look.streams(), *await look.small()]
    servers = await server_uses(client)
    return MemoryReport(tuple(kinds), servers, tuple(_warnings(kinds, servers)))


class _Look:
    def __init__(self, client: Client, keys: Keys, sample: int, pace: Pace, chance: random.Random) -> None:
        self._client = client
        self._keys = keys
        self._sample = sample
        self._pace = pace
        self._chance = chance

    async def _replies(self, commands: Iterable[tuple[str, tuple[Argument, ...]]]) -> list[Any]:
        calls = [Call(key, args) for key, args in commands]
        replies: list[Any] = []
        for start in range(0, len(calls), AT_ONCE):
            await self._pace.wait()
            replies += await call_each(self._client, calls[start : start + AT_ONCE])
        raise_first(replies)
        return replies

    async def _sizes(self, names: Sequence[str]) -> list[int]:
        return [size or 0 for size in await self._replies((name, ("MEMORY USAGE", name)) for name in names)]

    async def accounts(self) -> list[KindUse]:
        keys = self._keys
        indexes = [keys.accounts(p) for p in range(keys.partitions)]
        counts = await self._replies((index, ("ZCARD", index)) for index in indexes)
        total = sum(counts)
        index = KindUse("index of accounts", total, sum(await self._sizes(indexes)))
        some = await self._some_accounts(indexes, counts)
        stored: list[StoredAccount] = []
        for partition in sorted({keys.partition(account) for account in some}):
            mine = [account for account in some if keys.partition(account) == partition]
            async for page in read_accounts(self._client, keys, mine, self._pace):
                stored += page
        states = sum(await self._sizes([keys.state(account) for account in some]))
        hashes = await self._sizes([keys.account(account) for account in some])
        parts = [_parts(each, size) for each, size in zip(stored, hashes, strict=True)]
        hours, marks, rest = (sum(part[n] for part in parts) for n in range(3))
        days = sum(sum(map(_is_day, each.fields)) for each in stored)
        others = [
            name for account in some for name in (keys.billing(account), keys.sync(account), keys.absent(account))
        ]
        billing = sum(await self._sizes(others))

        def estimate(kind: str, count: int, size_bytes: int) -> KindUse:
            factor = total / len(some) if some else 0
            return KindUse(kind, round(count * factor), round(size_bytes * factor), True, len(some))

        return [
            estimate("states of accounts", len(some), states),
            estimate("terms and prices of accounts", len(some), rest),
            estimate("hours, by day", days, hours),
            estimate("idempotency keys", sum(each.marks for each in stored), marks),
            estimate("reconcile and sync states", len(some), billing),
            index,
        ]

    async def _some_accounts(self, indexes: Sequence[str], counts: Sequence[int]) -> list[str]:
        """Each partition has as many of the sample as it has of the accounts, about."""
        total = sum(counts)
        wanted = [(i, -(-self._sample * n // total)) for i, n in zip(indexes, counts, strict=True) if n]
        pages = await self._replies((index, ("ZRANDMEMBER", index, number)) for index, number in wanted)
        found = [member.decode("utf-8", "replace") for page in pages for member in page]
        return self._chance.sample(found, min(self._sample, len(found)))

    async def api_keys(self) -> list[KindUse]:
        # A digest at random is in a hash at random.
        total = API_KEY_HASHES * self._keys.partitions
        wanted = min(total, API_KEY_LOOKS * self._sample)
        digests = (self._chance.randbytes(32) for _ in range(2 * wanted))
        some = list(islice(dict.fromkeys(map(self._keys.api_keys, digests)), wanted))
        sizes = await self._sizes(some)
        counts = await self._replies((name, ("HLEN", name)) for name in some)
        factor = total / len(some)
        return [KindUse("API keys", round(sum(counts) * factor), round(sum(sizes) * factor), True, sum(counts))]

    async def streams(self) -> list[KindUse]:
        keys = self._keys
        found = []
        for kind, key_of in (
            ("outbox", keys.outbox), ("sent events", keys.sent), ("dead letters", keys.dead_letters),
            ("refused settles", keys.refused), ("audit log", keys.audit_log),
        ):  # fmt: skip
            names = [key_of(partition) for partition in range(keys.partitions)]
            lengths = await self._replies((name, ("XLEN", name)) for name in names)
            found.append(KindUse(kind, sum(lengths), sum(await self._sizes(names)), True, sum(lengths)))
        return found

    async def small(self) -> list[KindUse]:
        keys, partitions = self._keys, range(self._keys.partitions)
        alive = await self._replies((keys.alive(p), ("ZRANGE", keys.alive(p), "0", "-1")) for p in partitions)
        living = [(p, member.decode("utf-8", "replace")) for p in partitions for member in alive[p]]
        some = self._chance.sample(living, min(self._sample, len(living)))
        records = sum(await self._sizes([keys.instance(p, name) for p, name in some]))
        factor = len(living) / len(some) if some else 0
        seconds = await self._now_s()
        hours = [keys.audited_hour(seconds // 3600 - back) for back in range(KEPT_DAYS * 24 + 1)]
        names = [keys.reload_requests(), keys.scheduled_reloads(), keys.webhooks_seen(), *hours]
        names += [key_of(p) for p in partitions for key_of in (keys.meta, keys.clock, keys.alive)]
        sizes = await self._sizes(names)
        return [
            KindUse("gateway processes", len(living), round(records * factor), len(some) < len(living), len(some)),
            KindUse("control plane and partitions", sum(map(bool, sizes)), sum(sizes)),
        ]

    async def _now_s(self) -> int:
        [reply] = await self._replies(
            [(self._keys.clock(0), ("EVAL", "return redis.call('TIME')", 1, self._keys.clock(0)))]
        )
        return int(reply[0])


MARK_BYTES: Final = 17 + 30
"""Of a field and its value, about."""


def _parts(account: StoredAccount, size_bytes: int) -> tuple[int, int, int]:
    """A hash's bytes, shared out among hours, idempotency keys and the rest by the lengths of their fields."""
    hours = sum(len(name) + len(value) for name, value in account.fields.items() if _is_day(name))
    rest = sum(len(name) + len(value) for name, value in account.fields.items() if not _is_day(name))
    marks = account.marks * MARK_BYTES
    whole = max(1, hours + rest + marks)
    of_hours, of_marks = size_bytes * hours // whole, size_bytes * marks // whole
    return of_hours, of_marks, size_bytes - of_hours - of_marks


def _is_day(field: str) -> bool:
    return field[:1] == "h" and field[1:].isdigit()


async def server_uses(client: Client) -> tuple[ServerUse, ...]:
    """Every server that answers. Raises what redis-py raises, of a single server."""
    memory = await memory_uses(client)
    found = []
    for name, options in await _servers(client):
        use = memory.get(name, MemoryUse(0, 0))
        info: Any = await _on(client, options, "INFO", "memory")
        libraries = await function_libraries(client, options)
        current = {function("batch").name.decode()}
        found.append(
            ServerUse(
                name, use.used_bytes, use.max_bytes, int(info.get("used_memory_vm_functions", 0))
                + int(info.get("used_memory_functions", 0)), str(info.get("maxmemory_policy", "")),
                tuple(each for each in libraries if each in current),
                tuple(each for each in libraries if each not in current),
            )
        )  # fmt: skip
    return tuple(found)


async def drop_old_functions(client: Client) -> dict[str, list[str]]:
    """Removes the function libraries of other releases from every server. A gateway that still uses one loads it again
    with its next batch, which changes nothing of that batch. Answers by server which went. Raises what redis-py raises.
    """
    gone: dict[str, list[str]] = {}
    current = function("batch").name.decode()
    for name, options in await _servers(client):
        for library in await function_libraries(client, options):
            if library != current:
                await _on(client, options, "FUNCTION DELETE", library)
                gone.setdefault(name, []).append(library)
    return gone


async def function_libraries(client: Client, options: dict[str, Any]) -> list[str]:
    """The ledger's libraries on a server, of whatever release."""
    reply: Any = await _on(client, options, "FUNCTION LIST", "LIBRARYNAME", "quota_*")
    names = []
    for library in reply:
        pairs = library if isinstance(library, dict) else dict(zip(library[::2], library[1::2], strict=True))
        named = {(k.decode() if isinstance(k, bytes) else k): v for k, v in pairs.items()}["library_name"]
        names.append(named.decode() if isinstance(named, bytes) else str(named))
    return sorted(name for name in names if _FUNCTION.fullmatch(name))


async def _servers(client: Client) -> list[tuple[str, dict[str, Any]]]:
    """Names as of :func:`memory_uses`, and how a command goes to each."""
    if not isinstance(client, RedisCluster):
        return [("", {})]
    await client.initialize()
    return [(node.name, {"target_nodes": node}) for node in client.get_primaries()]


async def _on(client: Client, options: dict[str, Any], *command: str) -> Any:
    execute: Any = client.execute_command
    return await execute(*command, **options)


def _warnings(kinds: Sequence[KindUse], servers: Sequence[ServerUse]) -> Iterable[str]:
    for server in servers:
        place = f"server {server.name}" if server.name else "Valkey"
        share = server.used_bytes / server.max_bytes if server.max_bytes else 0.0
        if not server.max_bytes:
            yield f"{place} has no maxmemory: it grows until the system ends it"
        elif share >= FULL_SHARE:
            yield f"{place} uses {share:.0%} of maxmemory: soon it refuses every hold"
        elif share >= NEARLY_FULL_SHARE:
            yield f"{place} uses {share:.0%} of maxmemory"
        if server.policy not in ("", "noeviction"):
            yield f"{place} has maxmemory-policy {server.policy}: it may evict accounts; set noeviction"
        if server.old_functions:
            yield f"{place} has {len(server.old_functions)} functions of other releases: --drop-old-functions"
    by_kind = {kind.kind: kind for kind in kinds}
    limit = sum(server.max_bytes for server in servers)
    if limit and by_kind["outbox"].size_bytes > limit // 4:
        yield "the outbox takes more than a quarter of maxmemory: OpenMeter does not take events as fast as they come"
    if limit and by_kind["sent events"].size_bytes > limit // 2:
        yield "events kept for the audit take more than half of maxmemory: lower metering.retain_s"
    for kind, command in (
        ("dead letters", "sidecar outbox dead-letters"),
        ("refused settles", "sidecar ledger refused list"),
    ):
        if by_kind[kind].count:
            yield f"there are {by_kind[kind].count:,} {kind}: {command}"
