"""Sorted sets."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import takewhile
from typing import TYPE_CHECKING, TypeVar

from tests.simulation.valkey.key_commands import ONE
from tests.simulation.valkey.registry import command
from tests.simulation.valkey.replies import NOT_FLOAT, SYNTAX, CommandError, Reply, flat, integer, number_of
from tests.simulation.valkey.values import SortedSet

if TYPE_CHECKING:
    from tests.simulation.valkey.server import SimulatedValkey

T = TypeVar("T")

_MIN_MAX_FLOAT = b"ERR min or max is not a float"
_MIN_MAX_LEX = b"ERR min or max not valid string range item"


def number(argument: bytes, message: bytes = NOT_FLOAT, *, overflows: bool = False) -> float:
    """A score. ``overflows``: what is too large is infinite, as in a bound.

    Raises:
        CommandError: it is none.
    """
    try:
        value = float(argument)
    except ValueError:
        raise CommandError(message) from None
    is_spelled_out = argument.lstrip(b"+-").lower() in (b"inf", b"infinity")
    if (
        math.isnan(value)
        or argument != argument.strip()
        or b"_" in argument
        or (math.isinf(value) and not is_spelled_out and not overflows)
    ):
        raise CommandError(message)
    return value


def score_text(score: float) -> bytes:
    """A score as replies have it."""
    if math.isinf(score):
        return b"inf" if score > 0 else b"-inf"
    if score == int(score) and abs(score) < 2**62:
        return b"%d" % int(score) if score or math.copysign(1, score) > 0 else b"-0"
    mantissa, _, exponent = repr(score).partition("e")
    if not exponent:
        return mantissa.encode()
    return f"{mantissa.removesuffix('.0')}e{exponent[0]}{exponent[1:].lstrip('0')}".encode()


@command("zadd", -4, keys=ONE, writes=True, grows=True)
def zadd(server: SimulatedValkey, parts: list[bytes]) -> Reply:
    db, key = server.db, parts[1]
    flags: set[bytes] = set()
    at = 2
    while at < len(parts) and parts[at].upper() in (b"NX", b"XX", b"GT", b"LT", b"CH"):
        flags.add(parts[at].upper())
        at += 1
    pairs = parts[at:]
    if not pairs or len(pairs) % 2:
        raise CommandError(SYNTAX)
    if {b"NX", b"XX"} <= flags:
        raise CommandError("ERR XX and NX options at the same time are not compatible")
    if len(flags & {b"GT", b"LT", b"NX"}) > 1:
        raise CommandError("ERR GT, LT, and/or NX options at the same time are not compatible")
    scores = [number(each) for each in pairs[::2]]
    found = db.read(key, SortedSet)
    if found is None and b"XX" in flags:
        return 0
    found = db.write_or_create(key, SortedSet)
    added = changed = 0
    for score, name in zip(scores, pairs[1::2], strict=True):
        former = found.scores.get(name)
        if former is None:
            if b"XX" not in flags:
                found.set(name, score)
                added += 1
        elif b"NX" in flags or (b"GT" in flags and score <= former) or (b"LT" in flags and score >= former):
            continue
        elif score != former:
            found.set(name, score)
            changed += 1
    db.remove_if_empty(key, found)
    return added + changed if b"CH" in flags else added


@command("zrem", -3, keys=ONE, writes=True)
def zrem(server: SimulatedValkey, parts: list[bytes]) -> Reply:
    return _remove(server, parts[1], lambda found: [name for name in dict.fromkeys(parts[2:]) if name in found.scores])


def _remove(server: SimulatedValkey, key: bytes, choose: Callable[[SortedSet], list[bytes]]) -> int:
    found = server.db.write(key, SortedSet)
    if found is None:
        return 0
    gone = choose(found)
    for name in gone:
        found.remove(name)
    server.db.remove_if_empty(key, found)
    return len(gone)


@command("zscore", 3, keys=ONE)
def zscore(server: SimulatedValkey, parts: list[bytes]) -> Reply:
    found = server.db.read(parts[1], SortedSet)
    score = None if found is None else found.scores.get(parts[2])
    return None if score is None else score_text(score)


@command("zcard", 2, keys=ONE)
def zcard(server: SimulatedValkey, parts: list[bytes]) -> Reply:
    found = server.db.read(parts[1], SortedSet)
    return 0 if found is None else len(found.scores)


def _ranks(found: SortedSet, start: int, stop: int) -> list[tuple[float, bytes]]:
    order = found.ordered()
    if start < 0:
        start = max(0, start + len(order))
    if stop < 0:
        stop += len(order)
    return order[start : stop + 1] if stop >= 0 else []


def _named(order: list[tuple[float, bytes]], with_scores: bool) -> list[bytes]:
    if with_scores:
        return flat((name, score_text(score)) for score, name in order)
    return [name for _, name in order]


@command("zrange", -4, keys=ONE)
def zrange(server: SimulatedValkey, parts: list[bytes]) -> Reply:
    """By rank only."""
    options = [part.upper() for part in parts[4:]]
    if options not in ([], [b"WITHSCORES"]):
        raise CommandError(SYNTAX)
    start, stop = integer(parts[2]), integer(parts[3])
    found = server.db.read(parts[1], SortedSet)
    return [] if found is None else _named(_ranks(found, start, stop), bool(options))


def _score_bounds(low: bytes, high: bytes) -> Callable[[float], bool]:
    low_open, high_open = low.startswith(b"("), high.startswith(b"(")
    # Nothing is read as zero.
    least = number((low[1:] if low_open else low) or b"0", _MIN_MAX_FLOAT, overflows=True)
    most = number((high[1:] if high_open else high) or b"0", _MIN_MAX_FLOAT, overflows=True)

    def inside(score: float) -> bool:
        return (score > least if low_open else score >= least) and (score < most if high_open else score <= most)

    return inside


def _lex_range(order: list[bytes], low: bytes, high: bytes) -> list[bytes]:
    """Names between the bounds. Where scores differ, and so names are not in order, it finds what the real one's walk
    along a short list finds (zzlFirstInLexRange)."""
    for bound in (low, high):
        if bound not in (b"-", b"+") and bound[:1] not in (b"(", b"["):
            raise CommandError(_MIN_MAX_LEX)

    def is_above(name: bytes) -> bool:
        return low == b"-" or (low != b"+" and (name > low[1:] if low[:1] == b"(" else name >= low[1:]))

    def is_below(name: bytes) -> bool:
        return high == b"+" or (high != b"-" and (name < high[1:] if high[:1] == b"(" else name <= high[1:]))

    if not order or not is_above(order[-1]) or not is_below(order[0]):
        return []
    first = next(at for at, name in enumerate(order) if is_above(name))
    return list(takewhile(is_below, order[first:]))


def _options(rest: list[bytes], *, scores: bool) -> tuple[bool, int, int]:
    """WITHSCORES, and offset and count of LIMIT; a negative count is all."""
    with_scores, offset, count = False, 0, -1
    at = 0
    while at < len(rest):
        option = rest[at].upper()
        if option == b"WITHSCORES" and scores:
            with_scores = True
        elif option == b"LIMIT" and at + 2 < len(rest):
            offset, count = integer(rest[at + 1]), integer(rest[at + 2])
            at += 2
        else:
            raise CommandError(SYNTAX)
        at += 1
    return with_scores, offset, count


def _limited(order: list[T], offset: int, count: int) -> list[T]:
    if offset < 0:
        return []
    return order[offset:] if count < 0 else order[offset : offset + count]


@command("zrangebyscore", -4, keys=ONE)
def zrangebyscore(server: SimulatedValkey, parts: list[bytes]) -> Reply:
    with_scores, offset, count = _options(parts[4:], scores=True)
    inside = _score_bounds(parts[2], parts[3])
    found = server.db.read(parts[1], SortedSet)
    if found is None:
        return []
    return _named(_limited([each for each in found.ordered() if inside(each[0])], offset, count), with_scores)


@command("zrangebylex", -4, keys=ONE)
def zrangebylex(server: SimulatedValkey, parts: list[bytes]) -> Reply:
    _, offset, count = _options(parts[4:], scores=False)
    _lex_range([], parts[2], parts[3])
    found = server.db.read(parts[1], SortedSet)
    names = [] if found is None else [name for _, name in found.ordered()]
    return _limited(_lex_range(names, parts[2], parts[3]), offset, count)


@command("zremrangebyscore", 4, keys=ONE, writes=True)
def zremrangebyscore(server: SimulatedValkey, parts: list[bytes]) -> Reply:
    inside = _score_bounds(parts[2], parts[3])
    return _remove(server, parts[1], lambda found: [name for score, name in found.ordered() if inside(score)])


@command("zremrangebyrank", 4, keys=ONE, writes=True)
def zremrangebyrank(server: SimulatedValkey, parts: list[bytes]) -> Reply:
    start, stop = integer(parts[2]), integer(parts[3])
    return _remove(server, parts[1], lambda found: [name for _, name in _ranks(found, start, stop)])


@command("zrandmember", -2, keys=ONE)
def zrandmember(server: SimulatedValkey, parts: list[bytes]) -> Reply:
    """Without scores."""
    count = number_of(parts[2]) if len(parts) > 2 else None
    if len(parts) > 3:
        raise CommandError(SYNTAX)
    found = server.db.read(parts[1], SortedSet)
    names = [] if found is None else [name for _, name in found.ordered()]
    if count is None:
        return server.random.choice(names) if names else None
    if not names:
        return []
    if count < 0:
        return [server.random.choice(names) for _ in range(-count)]
    return names if count >= len(names) else server.random.sample(names, count)
