"""Streams: what is in them. What consumer groups do is in ``group_commands.py``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.simulation.valkey.key_commands import ONE
from tests.simulation.valkey.registry import command
from tests.simulation.valkey.replies import NO_KEY, OK, SYNTAX, CommandError, Reply, integer
from tests.simulation.valkey.values import ID_MAX, LAST_ID, NODE_ENTRIES, Id, Stream, id_before, id_text, next_id

if TYPE_CHECKING:
    from tests.simulation.valkey.server import SimulatedValkey

_NO_ID = "ERR Invalid stream ID specified as stream command argument"
_TWO_TRIMS = "ERR syntax error, MAXLEN and MINID options at the same time are not compatible"


def parse_id(text: bytes, missing_sequence: int = 0, *, strict: bool = True) -> Id:
    """``<ms>-<seq>`` or ``<ms>``; unless ``strict``, ``-`` and ``+`` too.

    Raises:
        CommandError: it is no id.
    """
    if not strict and text in (b"-", b"+"):
        return (0, 0) if text == b"-" else LAST_ID
    first, dash, second = text.partition(b"-")
    if not first.isdigit() or (dash and not second.isdigit()):
        raise CommandError(_NO_ID)
    id_ = int(first), int(second) if dash else missing_sequence
    if max(id_) > ID_MAX:
        raise CommandError(_NO_ID)
    return id_


def interval(start: bytes, end: bytes) -> tuple[Id, Id]:
    """The ends of a range, both included.

    Raises:
        CommandError: they are no ids.
    """
    if len(start) > 1 and start.startswith(b"("):
        low = parse_id(start[1:])
        if low == LAST_ID:
            raise CommandError("ERR invalid start ID for the interval")
        low = next_id(low)
    else:
        low = parse_id(start, strict=False)
    if len(end) > 1 and end.startswith(b"("):
        high = id_before(parse_id(end[1:], ID_MAX))
        if high is None:
            raise CommandError("ERR invalid end ID for the interval")
    else:
        high = parse_id(end, ID_MAX, strict=False)
    return low, high


def entry(stream: Stream, id_: Id) -> list[Reply]:
    return [id_text(id_), list(stream.entries[id_])]


class _Trim:
    """MAXLEN or MINID of XADD and XTRIM."""

    def __init__(self) -> None:
        self.length: int | None = None
        self.least: Id | None = None
        self.is_approximate = False
        self.limit: int | None = None

    @property
    def is_given(self) -> bool:
        return self.length is not None or self.least is not None

    def option(self, parts: list[bytes], at: int) -> int | None:
        """Reads the option at a position; answers where the next one is, None if it is no option of a trim."""
        name, more = parts[at].upper(), len(parts) - 1 - at
        if name in (b"MAXLEN", b"MINID") and more:
            if self.is_given:
                raise CommandError(_TWO_TRIMS)
            at += 1
            if more >= 2 and parts[at] in (b"~", b"="):
                self.is_approximate = parts[at] == b"~"
                at += 1
            if name == b"MAXLEN":
                self.length = integer(parts[at])
                if self.length < 0:
                    raise CommandError("ERR The MAXLEN argument must be >= 0.")
            else:
                self.least = parse_id(parts[at])
            return at + 1
        if name == b"LIMIT" and more:
            self.limit = integer(parts[at + 1])
            if self.limit < 0:
                raise CommandError("ERR The LIMIT argument must be >= 0.")
            return at + 2
        return None

    def check(self) -> None:
        if self.limit and not self.is_given:
            raise CommandError("ERR syntax error, LIMIT cannot be used without specifying a trimming strategy")
        if self.limit is not None and not self.is_approximate:
            raise CommandError("ERR syntax error, LIMIT cannot be used without the special ~ option")

    def apply(self, stream: Stream) -> int:
        """Answers how many entries went. An approximate trim takes whole nodes only."""
        limit = 100 * NODE_ENTRIES if self.limit is None else self.limit
        gone = 0
        while stream.nodes and self._ends_here(stream):
            node = stream.nodes[0]
            if self.is_approximate and limit and gone + node.alive > limit:
                break
            some = stream.ids[: node.alive]
            if self.length is not None:
                excess = len(stream.ids) - self.length
            else:
                assert self.least is not None
                excess = sum(id_ < self.least for id_ in some)
            if excess < node.alive:
                if self.is_approximate:
                    break
                some = some[:excess]
            for id_ in some:
                stream.delete(id_)
            gone += len(some)
            if excess < len(some) or not some:
                break
        return gone

    def _ends_here(self, stream: Stream) -> bool:
        if self.length is not None:
            return len(stream.ids) > self.length
        return self.least is not None and stream.first < self.least


@command("xadd", -5, keys=ONE, writes=True, grows=True)
def xadd(server: SimulatedValkey, parts: list[bytes]) -> Reply:
    trim, creates = _Trim(), True
    given: Id | None = None
    any_sequence = False
    at = 2
    while at < len(parts):
        if parts[at] == b"*":
            break
        after = trim.option(parts, at)
        if after is not None:
            at = after
        elif parts[at].upper() == b"NOMKSTREAM":
            creates = False
            at += 1
        else:
            any_sequence = parts[at].endswith(b"-*")
            given = parse_id(parts[at][:-2] if any_sequence else parts[at])
            break
    trim.check()
    fields = parts[at + 1 :]
    if len(fields) < 2 or len(fields) % 2:
        raise CommandError("ERR wrong number of arguments for 'xadd' command")
    if given == (0, 0) and not any_sequence:
        raise CommandError("ERR The ID specified in XADD must be greater than 0-0")
    db, key = server.db, parts[1]
    if not creates and db.read(key, Stream) is None:
        return None
    existed = db.read(key, Stream) is not None
    stream = db.write_or_create(key, Stream)
    if stream.last == LAST_ID:
        raise CommandError("ERR The stream has exhausted the last possible ID, unable to add more items")
    if given is None:
        id_ = stream.next_id(db.now_ms)
    elif any_sequence and given[0] == stream.last[0]:
        id_ = given[0], stream.last[1] + 1
    else:
        id_ = given
    if id_ <= stream.last or id_[1] > ID_MAX:
        if not existed:
            db.remove(key)
        raise CommandError("ERR The ID specified in XADD is equal or smaller than the target stream top item")
    stream.add(id_, fields)
    trim.apply(stream)
    return id_text(id_)


@command("xtrim", -4, keys=ONE, writes=True)
def xtrim(server: SimulatedValkey, parts: list[bytes]) -> Reply:
    trim = _Trim()
    at = 2
    while at < len(parts):
        after = trim.option(parts, at)
        if after is None:
            raise CommandError(SYNTAX)
        at = after
    if not trim.is_given and not trim.limit:
        raise CommandError("ERR syntax error, XTRIM must be called with a trimming strategy")
    trim.check()
    stream = server.db.write(parts[1], Stream)
    return 0 if stream is None else trim.apply(stream)


@command("xdel", -3, keys=ONE, writes=True)
def xdel(server: SimulatedValkey, parts: list[bytes]) -> Reply:
    stream = server.db.write(parts[1], Stream)
    if stream is None:
        return 0
    gone = 0
    for id_ in [parse_id(part) for part in parts[2:]]:
        if stream.delete(id_):
            stream.deleted_max = max(stream.deleted_max, id_)
            gone += 1
    return gone


@command("xlen", 2, keys=ONE)
def xlen(server: SimulatedValkey, parts: list[bytes]) -> Reply:
    stream = server.db.read(parts[1], Stream)
    return 0 if stream is None else len(stream.ids)


@command("xrange", -4, keys=ONE)
def xrange_(server: SimulatedValkey, parts: list[bytes]) -> Reply:
    return _range(server, parts[1], *interval(parts[2], parts[3]), parts[4:], backwards=False)


@command("xrevrange", -4, keys=ONE)
def xrevrange(server: SimulatedValkey, parts: list[bytes]) -> Reply:
    return _range(server, parts[1], *interval(parts[3], parts[2]), parts[4:], backwards=True)


def _range(
    server: SimulatedValkey, key: bytes, low: Id, high: Id, options: list[bytes], *, backwards: bool
) -> Reply:  # fmt: skip
    count = -1
    for at in range(0, len(options), 2):
        if options[at].upper() != b"COUNT" or at + 1 == len(options):
            raise CommandError(SYNTAX)
        count = max(0, integer(options[at + 1]))
    stream = server.db.read(key, Stream)
    if stream is None:
        return []
    if count == 0:
        return None
    ids = stream.between(low, high)
    if backwards:
        ids.reverse()
    return [entry(stream, id_) for id_ in (ids if count < 0 else ids[:count])]


@command("xsetid", -3, keys=ONE, writes=True, grows=True)
def xsetid(server: SimulatedValkey, parts: list[bytes]) -> Reply:
    last = parse_id(parts[2])
    added, deleted_max = None, (0, 0)
    for at in range(3, len(parts), 2):
        option, more = parts[at].upper(), at + 1 < len(parts)
        if option == b"ENTRIESADDED" and more:
            added = integer(parts[at + 1])
            if added < 0:
                raise CommandError("ERR entries_added must be positive")
        elif option == b"MAXDELETEDID" and more:
            deleted_max = parse_id(parts[at + 1])
            if last < deleted_max:
                raise CommandError("ERR The ID specified in XSETID is smaller than the provided max_deleted_entry_id")
        else:
            raise CommandError(SYNTAX)
    stream = server.db.write(parts[1], Stream)
    if stream is None:
        raise CommandError(NO_KEY)
    if last < stream.deleted_max:
        raise CommandError("ERR The ID specified in XSETID is smaller than current max_deleted_entry_id")
    if stream.ids:
        if last < stream.ids[-1]:
            raise CommandError("ERR The ID specified in XSETID is smaller than the target stream top item")
        if added is not None and len(stream.ids) > added:
            raise CommandError("ERR The entries_added specified in XSETID is smaller than the target stream length")
    stream.last = last
    if added is not None:
        stream.added = added
    if deleted_max != (0, 0):
        stream.deleted_max = deleted_max
    return OK
