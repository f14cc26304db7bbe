"""Lists, as far as a test needs a key of a type that the project does not use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.simulation.valkey.key_commands import ONE
from tests.simulation.valkey.registry import command
from tests.simulation.valkey.replies import Reply, integer
from tests.simulation.valkey.values import List

if TYPE_CHECKING:
    from tests.simulation.valkey.server import SimulatedValkey


@command("rpush", -3, keys=ONE, writes=True, grows=True)
@command("lpush", -3, keys=ONE, writes=True, grows=True)
def push(server: SimulatedValkey, parts: list[bytes]) -> Reply:
    items = server.db.write_or_create(parts[1], List).items
    if parts[0].lower() == b"rpush":
        items += parts[2:]
    else:
        items[:0] = reversed(parts[2:])
    return len(items)


@command("llen", 2, keys=ONE)
def llen(server: SimulatedValkey, parts: list[bytes]) -> Reply:
    found = server.db.read(parts[1], List)
    return 0 if found is None else len(found.items)


@command("lrange", 4, keys=ONE)
def lrange(server: SimulatedValkey, parts: list[bytes]) -> Reply:
    start, stop = integer(parts[2]), integer(parts[3])
    found = server.db.read(parts[1], List)
    if found is None:
        return []
    count = len(found.items)
    start, stop = max(0, start + count if start < 0 else start), stop + count if stop < 0 else stop
    return found.items[start : stop + 1] if stop >= 0 else []
