"""What a server can lose: everything back to an earlier state, or all of it."""

from __future__ import annotations

from dataclasses import dataclass

from redis.asyncio import Redis


@dataclass(frozen=True)
class Backup:
    """All keys of a server at one moment, with their time to live."""

    keys: tuple[tuple[bytes, bytes, int], ...]


async def back_up(client: Redis) -> Backup:
    """Reads all keys in one transaction, as a snapshot or a replica that falls behind has them."""
    names = sorted([name async for name in client.scan_iter(count=1000)])
    transaction = client.pipeline(transaction=True)
    for name in names:
        transaction.dump(name).pttl(name)
    answers = await transaction.execute()
    rows = zip(names, answers[::2], answers[1::2], strict=True)
    return Backup(tuple((name, value, max(0, ttl)) for name, value, ttl in rows if value is not None))


async def roll_back(client: Redis, backup: Backup) -> None:
    """The data becomes what it was, in one step: functions stay, as a replica has them too."""
    transaction = client.pipeline(transaction=True)
    transaction.flushdb()
    for name, value, ttl in backup.keys:
        transaction.restore(name, ttl, value)
    await transaction.execute()
