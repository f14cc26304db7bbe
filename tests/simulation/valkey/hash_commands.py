"""Hashes, with fields that expire by themselves (Valkey 9)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.simulation.valkey.key_commands import ONE, expiry_changes, matches, scan_options
from tests.simulation.valkey.registry import command
from tests.simulation.valkey.replies import OK, SYNTAX, CommandError, Reply, flat, integer, number_of
from tests.simulation.valkey.values import Hash

if TYPE_CHECKING:
    from tests.simulation.valkey.server import SimulatedValkey

_NUMFIELDS = b"ERR numfields should be greater than 0 and match the provided number of fields"


def _wrong_number(name: bytes) -> CommandError:
    return CommandError(b"ERR wrong number of arguments for '%b' command" % name.lower())


@command("hget", 3, keys=ONE)
def hget(server: SimulatedValkey, parts: list[bytes]) -> Reply:
    found = server.db.read(parts[1], Hash)
    return None if found is None else found.get(parts[2], server.db.now_ms)


@command("hset", -4, keys=ONE, writes=True, grows=True)
@command("hmset", -4, keys=ONE, writes=True, grows=True)
def hset(server: SimulatedValkey, parts: list[bytes]) -> Reply:
    if len(parts) % 2:
        raise _wrong_number(parts[0])
    db = server.db
    found = db.write_or_create(parts[1], Hash)
    new = 0
    for at in range(2, len(parts), 2):
        new += found.get(parts[at], db.now_ms) is None
        found.set(parts[at], parts[at + 1])
    return OK if parts[0].lower() == b"hmset" else new


@command("hsetnx", 4, keys=ONE, writes=True, grows=True)
def hsetnx(server: SimulatedValkey, parts: list[bytes]) -> Reply:
    db, (_, key, name, value) = server.db, parts
    found = db.read(key, Hash)
    if found is not None and found.get(name, db.now_ms) is not None:
        return 0
    db.write_or_create(key, Hash).set(name, value)
    return 1


@command("hmget", -3, keys=ONE)
def hmget(server: SimulatedValkey, parts: list[bytes]) -> Reply:
    found, now_ms = server.db.read(parts[1], Hash), server.db.now_ms
    if found is None:
        return [None] * (len(parts) - 2)
    return [found.get(name, now_ms) for name in parts[2:]]


@command("hgetall", 2, keys=ONE)
def hgetall(server: SimulatedValkey, parts: list[bytes]) -> Reply:
    found = server.db.read(parts[1], Hash)
    return [] if found is None else flat(found.living(server.db.now_ms).items())


@command("hkeys", 2, keys=ONE)
def hkeys(server: SimulatedValkey, parts: list[bytes]) -> Reply:
    found = server.db.read(parts[1], Hash)
    return [] if found is None else list(found.living(server.db.now_ms))


@command("hlen", 2, keys=ONE)
def hlen(server: SimulatedValkey, parts: list[bytes]) -> Reply:
    """Fields that have ended count until they are reclaimed."""
    found = server.db.read(parts[1], Hash)
    return 0 if found is None else len(found.fields)


@command("hexists", 3, keys=ONE)
def hexists(server: SimulatedValkey, parts: list[bytes]) -> Reply:
    return int(hget(server, parts) is not None)


@command("hdel", -3, keys=ONE, writes=True)
def hdel(server: SimulatedValkey, parts: list[bytes]) -> Reply:
    db = server.db
    found = db.write(parts[1], Hash)
    if found is None:
        return 0
    gone = 0
    for name in parts[2:]:
        if found.get(name, db.now_ms) is not None:
            found.remove(name)
            gone += 1
    db.remove_if_empty(parts[1], found)
    return gone


@command("hincrby", 4, keys=ONE, writes=True, grows=True)
def hincrby(server: SimulatedValkey, parts: list[bytes]) -> Reply:
    db, (_, key, name, by) = server.db, parts
    added = integer(by)
    found = db.read(key, Hash)
    former = None if found is None else found.get(name, db.now_ms)
    value = 0 if former is None else integer(former, b"ERR hash value is not an integer")
    if not -(2**63) <= value + added < 2**63:
        raise CommandError("ERR increment or decrement would overflow")
    found = db.write_or_create(key, Hash)
    end_ms = found.expires.get(name) if former is not None else None
    found.set(name, b"%d" % (value + added))
    if end_ms is not None:
        found.expires[name] = end_ms
    return value + added


@command("hrandfield", -2, keys=ONE)
def hrandfield(server: SimulatedValkey, parts: list[bytes]) -> Reply:
    count = number_of(parts[2]) if len(parts) > 2 else None
    with_values = len(parts) == 4 and parts[3].upper() == b"WITHVALUES"
    if len(parts) > 4 or (len(parts) == 4 and not with_values):
        raise CommandError(SYNTAX)
    if with_values and count is not None and abs(count) > (2**63 - 1) // 2:
        raise CommandError("ERR value is out of range")
    found = server.db.read(parts[1], Hash)
    living = {} if found is None else found.living(server.db.now_ms)
    if count is None:
        return server.random.choice(list(living)) if living else None
    if not living:
        return []
    names = list(living)
    if count < 0:
        chosen = [server.random.choice(names) for _ in range(-count)]
    elif count >= len(names):
        chosen = names
    else:
        chosen = server.random.sample(names, count)
    return flat((name, living[name]) for name in chosen) if with_values else chosen


@command("hscan", -3, keys=ONE)
def hscan(server: SimulatedValkey, parts: list[bytes]) -> Reply:
    if not parts[2].isdigit():
        raise CommandError("ERR invalid cursor")
    found = server.db.read(parts[1], Hash)
    if found is None:
        return [b"0", []]
    match, no_values = scan_options(parts[3:], is_hash=True)
    living = {name: value for name, value in found.living(server.db.now_ms).items() if matches(name, match)}
    return [b"0", list(living) if no_values is not None else flat(living.items())]


@command("hpexpire", -6, keys=ONE, writes=True)
def hpexpire(server: SimulatedValkey, parts: list[bytes]) -> Reply:
    db = server.db
    flags: set[bytes] = set()
    at = 3
    while at < len(parts) and parts[at].upper() in (b"NX", b"XX", b"GT", b"LT"):
        flags.add(parts[at].upper())
        at += 1
    if b"NX" in flags and len(flags) > 1:
        raise CommandError("ERR NX and XX, GT or LT options at the same time are not compatible")
    if {b"GT", b"LT"} <= flags:
        raise CommandError("ERR GT and LT options at the same time are not compatible")
    names = _fields(parts, at, _NUMFIELDS)
    amount = integer(parts[2])
    end_ms = amount + db.now_ms
    if amount < 0 or end_ms >= 2**63:
        raise CommandError("ERR invalid expire time in 'hpexpire' command")
    found = db.write(parts[1], Hash)
    if found is None:
        return [-2] * len(names)
    done = []
    for name in names:
        if found.get(name, db.now_ms) is None:
            done.append(-2)
        elif not expiry_changes(flags, found.expires.get(name), end_ms):
            done.append(0)
        elif end_ms <= db.now_ms:
            found.remove(name)
            done.append(2)
        else:
            found.expires[name] = end_ms
            done.append(1)
    db.remove_if_empty(parts[1], found)
    return done


@command("hpttl", -5, keys=ONE)
def hpttl(server: SimulatedValkey, parts: list[bytes]) -> Reply:
    db = server.db
    names = _fields(parts, 2, SYNTAX)
    found = db.read(parts[1], Hash)
    left = []
    for name in names:
        if found is None or found.get(name, db.now_ms) is None:
            left.append(-2)
        else:
            left.append(found.expires[name] - db.now_ms if name in found.expires else -1)
    return left


def _fields(parts: list[bytes], at: int, message: bytes) -> list[bytes]:
    """What follows FIELDS and a number at position ``at``."""
    if at >= len(parts) or parts[at].upper() != b"FIELDS":
        raise CommandError(message)
    names = parts[at + 2 :]
    count = integer(parts[at + 1]) if at + 1 < len(parts) else 0
    if count < 1 or count != len(names):
        raise CommandError(message)
    return names
