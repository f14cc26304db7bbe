"""Keys of any type, and strings."""

from __future__ import annotations

import fnmatch
import pickle
from typing import TYPE_CHECKING

from tests.simulation.valkey.registry import command, keys_at
from tests.simulation.valkey.replies import NO_KEY, OK, SYNTAX, CommandError, Reply, Status, integer
from tests.simulation.valkey.values import TYPE_NAMES

if TYPE_CHECKING:
    from tests.simulation.valkey.server import SimulatedValkey

ONE = keys_at(1)
ALL = keys_at(1, -1)


@command("get", 2, keys=ONE)
def get(server: SimulatedValkey, parts: list[bytes]) -> Reply:
    return server.db.string(parts[1])


@command("set", -3, keys=ONE, writes=True, grows=True)
def set_(server: SimulatedValkey, parts: list[bytes]) -> Reply:
    _, key, value, *rest = parts
    db = server.db
    flags, unit = set(), None
    at = 0
    while at < len(rest):
        option = rest[at].upper()
        if option in (b"NX", b"XX", b"GET", b"KEEPTTL"):
            flags.add(option)
        elif option in (b"EX", b"PX", b"EXAT", b"PXAT") and at + 1 < len(rest) and unit is None:
            unit = option, rest[at + 1]
            at += 1
        else:
            raise CommandError(SYNTAX)
        at += 1
    if {b"NX", b"XX"} <= flags or (unit and b"KEEPTTL" in flags):
        raise CommandError(SYNTAX)
    end_ms = _end_ms(*unit, db.now_ms, "set") if unit else None
    former = db.string(key) if b"GET" in flags else None
    if (b"NX" in flags and db.has(key)) or (b"XX" in flags and not db.has(key)):
        return former
    kept_ms = db.expires.get(key) if b"KEEPTTL" in flags and db.has(key) else None
    db.set_string(key, value)
    if end_ms is not None or kept_ms is not None:
        db.expires[key] = end_ms if end_ms is not None else kept_ms  # type: ignore[assignment]
    return former if b"GET" in flags else OK


def _end_ms(unit: bytes, argument: bytes, now_ms: int, name: str) -> int:
    amount = integer(argument)
    milliseconds = amount * (1000 if unit in (b"EX", b"EXAT") else 1)
    if amount <= 0 or milliseconds >= 2**63 or (unit in (b"EX", b"PX") and milliseconds > 2**63 - 1 - now_ms):
        raise CommandError(f"ERR invalid expire time in '{name}' command")
    return milliseconds + (now_ms if unit in (b"EX", b"PX") else 0)


@command("mget", -2, keys=ALL)
def mget(server: SimulatedValkey, parts: list[bytes]) -> Reply:
    find = server.db.find
    return [value if type(value := find(key)) is bytes else None for key in parts[1:]]


@command("mset", -3, keys=keys_at(1, -1, 2), writes=True, grows=True)
def mset(server: SimulatedValkey, parts: list[bytes]) -> Reply:
    if len(parts) % 2 == 0:
        raise CommandError("ERR wrong number of arguments for 'mset' command")
    db = server.db
    for at in range(1, len(parts), 2):
        db.set_string(parts[at], parts[at + 1])
    return OK


@command("del", -2, keys=ALL, writes=True)
@command("unlink", -2, keys=ALL, writes=True)
def del_(server: SimulatedValkey, parts: list[bytes]) -> Reply:
    return sum(server.db.has(key) and server.db.remove(key) for key in parts[1:])


@command("exists", -2, keys=ALL)
def exists(server: SimulatedValkey, parts: list[bytes]) -> Reply:
    return sum(server.db.has(key) for key in parts[1:])


@command("type", 2, keys=ONE)
def type_(server: SimulatedValkey, parts: list[bytes]) -> Reply:
    value = server.db.find(parts[1])
    return Status(b"none" if value is None else TYPE_NAMES[type(value)])


@command("rename", 3, keys=keys_at(1, 2), writes=True)
def rename(server: SimulatedValkey, parts: list[bytes]) -> Reply:
    db, (_, old, new) = server.db, parts
    value = db.find(old)
    if value is None:
        raise CommandError(NO_KEY)
    if old == new:
        return OK
    end_ms, shared = db.expires.get(old), old in db._shared
    db.remove(old)
    db.remove(new)
    # A snapshot may have the value under its old name.
    db.set(new, value.copy() if shared and not isinstance(value, bytes) else value)
    if end_ms is not None:
        db.expires[new] = end_ms
    return OK


@command("pttl", 2, keys=ONE)
def pttl(server: SimulatedValkey, parts: list[bytes]) -> Reply:
    db, key = server.db, parts[1]
    if not db.has(key):
        return -2
    return max(0, db.expires[key] - db.now_ms) if key in db.expires else -1


@command("ttl", 2, keys=ONE)
def ttl(server: SimulatedValkey, parts: list[bytes]) -> Reply:
    left: int = pttl(server, parts)
    return left if left < 0 else (left + 500) // 1000


@command("persist", 2, keys=ONE, writes=True)
def persist(server: SimulatedValkey, parts: list[bytes]) -> Reply:
    return int(server.db.has(parts[1]) and server.db.expires.pop(parts[1], None) is not None)


@command("expire", -3, keys=ONE, writes=True)
@command("pexpire", -3, keys=ONE, writes=True)
@command("expireat", -3, keys=ONE, writes=True)
@command("pexpireat", -3, keys=ONE, writes=True)
def expire(server: SimulatedValkey, parts: list[bytes]) -> Reply:
    db, name, key = server.db, parts[0].lower(), parts[1]
    flags = {part.upper() for part in parts[3:]}
    if unknown := flags - {b"NX", b"XX", b"GT", b"LT"}:
        raise CommandError(b"ERR Unsupported option " + next(part for part in parts[3:] if part.upper() in unknown))
    if b"NX" in flags and len(flags) > 1:
        raise CommandError("ERR NX and XX, GT or LT options at the same time are not compatible")
    if {b"GT", b"LT"} <= flags:
        raise CommandError("ERR GT and LT options at the same time are not compatible")
    amount = integer(parts[2])
    base_ms = 0 if name.endswith(b"at") else db.now_ms
    end_ms = amount * (1 if name.startswith(b"p") else 1000) + base_ms
    if not -(2**63) <= end_ms < 2**63 or not -(2**63) <= end_ms - base_ms < 2**63:
        raise CommandError(b"ERR invalid expire time in '%b' command" % name)
    if not db.has(key):
        return 0
    former = db.expires.get(key)
    if not expiry_changes(flags, former, end_ms):
        return 0
    if end_ms <= db.now_ms:
        db.remove(key)
    else:
        db.expires[key] = end_ms
    return 1


def expiry_changes(flags: set[bytes], former: int | None, end_ms: int) -> bool:
    """Whether NX, XX, GT and LT let the end of a key or a field become this one. What does not expire ends last."""
    if b"NX" in flags and former is not None:
        return False
    if b"XX" in flags and former is None:
        return False
    if b"GT" in flags and (former is None or end_ms <= former):
        return False
    return not (b"LT" in flags and former is not None and end_ms >= former)


@command("dbsize", 1)
def dbsize(server: SimulatedValkey, parts: list[bytes]) -> Reply:
    return len(server.db)


@command("flushall", -1, writes=True)
@command("flushdb", -1, writes=True)
def flushall(server: SimulatedValkey, parts: list[bytes]) -> Reply:
    server.db.clear()
    return OK


@command("scan", -2)
def scan(server: SimulatedValkey, parts: list[bytes]) -> Reply:
    """All keys in one page: a cursor promises no more than that each key that stays is there once at least. What has
    expired goes."""
    if not parts[1].isdigit():
        raise CommandError("ERR invalid cursor")
    match, kind = scan_options(parts[2:])
    db = server.db
    keys = [key for key in list(db.values) if db.has(key) and matches(key, match)]
    if kind is not None:
        keys = [key for key in keys if TYPE_NAMES[type(db.values[key])] == kind.lower()]
    return [b"0", keys]


def scan_options(rest: list[bytes], *, is_hash: bool = False) -> tuple[bytes | None, bytes | None]:
    """MATCH and TYPE, or for a hash MATCH and NOVALUES (empty if it is given).

    Raises:
        CommandError: not the options of a scan.
    """
    match = kind = None
    at = 0
    while at < len(rest):
        option, more = rest[at].upper(), at + 1 < len(rest)
        if option == b"COUNT" and more:
            if integer(rest[at + 1]) < 1:
                raise CommandError(SYNTAX)
            at += 1
        elif option == b"MATCH" and more:
            match = rest[at + 1]
            at += 1
        elif option == b"TYPE" and more and not is_hash:
            kind = rest[at + 1]
            at += 1
        elif option == b"NOVALUES" and is_hash:
            kind = b""
        else:
            raise CommandError(SYNTAX)
        at += 1
    return match, kind


def matches(name: bytes, pattern: bytes | None) -> bool:
    """Patterns of ``*`` and ``?`` as the server's; ``\\`` and sets are not used."""
    return pattern is None or fnmatch.fnmatchcase(name.decode("latin-1"), pattern.decode("latin-1"))


@command("memory|usage", -3, keys=keys_at(2))
def memory_usage(server: SimulatedValkey, parts: list[bytes]) -> Reply:
    """A size of the right order only; also of what has expired and is not reclaimed."""
    if len(parts) > 3 and (len(parts) != 5 or parts[3].upper() != b"SAMPLES"):
        raise CommandError(SYNTAX)
    value = server.db.values.get(parts[2])
    if value is None:
        return None
    return 56 + len(parts[2]) + (len(value) if isinstance(value, bytes) else 100)


@command("keys", 2)
def keys(server: SimulatedValkey, parts: list[bytes]) -> Reply:
    return [key for key in server.db.living() if matches(key, parts[1])]


_DUMPED = b"simulated:"


@command("dump", 2, keys=ONE)
def dump(server: SimulatedValkey, parts: list[bytes]) -> Reply:
    """A form of its own, which a simulated server alone can restore."""
    value = server.db.find(parts[1])
    return None if value is None else _DUMPED + pickle.dumps(value)


@command("restore", -4, keys=ONE, writes=True, grows=True)
def restore(server: SimulatedValkey, parts: list[bytes]) -> Reply:
    _, key, left, dumped, *rest = parts
    flags = {part.upper() for part in rest}
    if flags - {b"REPLACE", b"ABSTTL"}:
        raise CommandError(SYNTAX)
    db = server.db
    if b"REPLACE" not in flags and db.has(key):
        raise CommandError("BUSYKEY Target key name already exists.")
    ttl_ms = integer(left)
    if ttl_ms < 0:
        raise CommandError("ERR Invalid TTL value, must be >= 0")
    if not dumped.startswith(_DUMPED):
        raise CommandError("ERR DUMP payload version or checksum are wrong")
    db.remove(key)
    end_ms = ttl_ms if b"ABSTTL" in flags else ttl_ms + db.now_ms
    if not ttl_ms or end_ms > db.now_ms:
        db.set(key, pickle.loads(dumped[len(_DUMPED) :]))
        if ttl_ms:
            db.expires[key] = end_ms
    return OK
