"""Streams: consumer groups, and what the server tells of a stream."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.simulation.valkey.key_commands import ONE
from tests.simulation.valkey.registry import command, keys_at, keys_of_streams
from tests.simulation.valkey.replies import OK, SYNTAX, CommandError, Reply, integer
from tests.simulation.valkey.stream_commands import entry, interval, parse_id
from tests.simulation.valkey.values import (
    LAST_ID,
    UNKNOWN_READ,
    Consumer,
    Group,
    Id,
    Pending,
    Stream,
    id_text,
    next_id,
)

if TYPE_CHECKING:
    from tests.simulation.valkey.server import SimulatedValkey

SUBKEY = keys_at(2)
_NEEDS_KEY = (
    "ERR The XGROUP subcommand requires the key to exist. Note that for CREATE you may want to use the MKSTREAM option "
    "to create an empty stream automatically."
)


def no_group(group: bytes, key: bytes) -> CommandError:
    return CommandError(b"NOGROUP No such consumer group '%b' for key name '%b'" % (group, key))


def no_key_or_group(key: bytes, group: bytes) -> CommandError:
    return CommandError(b"NOGROUP No such key '%b' or consumer group '%b'" % (key, group))


def _group(server: SimulatedValkey, key: bytes, name: bytes) -> tuple[Stream, Group]:
    """Both to be changed. Raises CommandError (WRONGTYPE, NOGROUP)."""
    stream = server.db.write(key, Stream)
    if stream is None or name not in stream.groups:
        raise no_key_or_group(key, name)
    return stream, stream.groups[name]


def _consumer(group: Group, name: bytes, now_ms: int) -> Consumer:
    consumer = group.consumers.get(name)
    if consumer is None:
        consumer = group.consumers[name] = Consumer(now_ms)
    consumer.seen_ms = now_ms
    return consumer


@command("xgroup", -2, container=True)
def container(server: SimulatedValkey, parts: list[bytes]) -> Reply:
    raise AssertionError("a container has only subcommands")


@command("xgroup|create", -5, keys=SUBKEY, writes=True, grows=True)
def xgroup_create(server: SimulatedValkey, parts: list[bytes]) -> Reply:
    _, _, key, name, start, *rest = parts
    makes, read = False, UNKNOWN_READ
    at = 0
    while at < len(rest):
        if rest[at].upper() == b"MKSTREAM":
            makes = True
            at += 1
        elif rest[at].upper() == b"ENTRIESREAD" and at + 1 < len(rest):
            read = integer(rest[at + 1])
            if read < 0 and read != UNKNOWN_READ:
                raise CommandError("ERR value for ENTRIESREAD must be positive or -1")
            at += 2
        else:
            raise CommandError("ERR unknown subcommand or wrong number of arguments for 'CREATE'. Try XGROUP HELP.")
    stream = server.db.read(key, Stream)
    if stream is None and not makes:
        raise CommandError(_NEEDS_KEY)
    last = (stream.last if stream else (0, 0)) if start == b"$" else parse_id(start)
    stream = server.db.write_or_create(key, Stream)
    if name in stream.groups:
        raise CommandError("BUSYGROUP Consumer Group name already exists")
    stream.groups[name] = Group(last, read)
    return OK


@command("xgroup|destroy", 4, keys=SUBKEY, writes=True)
def xgroup_destroy(server: SimulatedValkey, parts: list[bytes]) -> Reply:
    stream = server.db.write(parts[2], Stream)
    if stream is None:
        raise CommandError(_NEEDS_KEY)
    return int(stream.groups.pop(parts[3], None) is not None)


@command("xgroup|delconsumer", 5, keys=SUBKEY, writes=True)
def xgroup_delconsumer(server: SimulatedValkey, parts: list[bytes]) -> Reply:
    _, _, key, name, consumer = parts
    stream = server.db.write(key, Stream)
    if stream is None:
        raise CommandError(_NEEDS_KEY)
    group = stream.groups.get(name)
    if group is None:
        raise no_group(name, key)
    if group.consumers.pop(consumer, None) is None:
        return 0
    gone = group.of(consumer)
    for id_ in gone:
        del group.pending[id_]
    return len(gone)


@command("xreadgroup", -7, keys=keys_of_streams, writes=True)
def xreadgroup(server: SimulatedValkey, parts: list[bytes]) -> Reply:
    """Without BLOCK it answers at once, and with it too, as where it may not wait."""
    name = consumer = None
    count, acknowledges = 0, False
    at = 1
    while True:
        option, more = parts[at].upper() if at < len(parts) else b"", len(parts) - at - 1
        if option == b"BLOCK" and more > 0:
            integer(parts[at + 1], b"ERR timeout is not an integer or out of range")
            at += 2
        elif option == b"COUNT" and more > 0:
            count = max(0, integer(parts[at + 1]))
            at += 2
        elif option == b"GROUP" and more > 1:
            name, consumer = parts[at + 1], parts[at + 2]
            at += 3
        elif option == b"NOACK":
            acknowledges = True
            at += 1
        elif option == b"STREAMS" and more > 0:
            break
        else:
            raise CommandError(SYNTAX)
    names = parts[at + 1 :]
    if len(names) % 2:
        raise CommandError(
            "ERR Unbalanced 'xreadgroup' list of streams: for each stream key an ID or '>' must be specified."
        )
    if name is None or consumer is None:
        raise CommandError("ERR Missing GROUP option for XREADGROUP")
    half = len(names) // 2
    wanted: list[tuple[bytes, Id | None]] = []
    for key, start in zip(names[:half], names[half:], strict=True):
        stream = server.db.read(key, Stream)
        if stream is None or name not in stream.groups:
            raise CommandError(no_key_or_group(key, name).message + b" in XREADGROUP with GROUP option")
        if start in (b"$", b"+"):
            raise CommandError(
                b"ERR The %b ID is meaningless in the context of XREADGROUP: you want to read the history of this "
                b"consumer by specifying a proper ID, or use the > ID to get new messages. The %b ID would just return "
                b"an empty result set." % (start, start)
            )
        wanted.append((key, None if start == b">" else parse_id(start)))
    replies = []
    for key, after in wanted:
        stream, group = _group(server, key, name)
        _consumer(group, consumer, server.db.now_ms)
        if after is not None:
            replies.append([key, _history(server, stream, group, consumer, after, count)])
        elif stream.ids and stream.ids[-1] > group.last:
            replies.append([key, _news(server, stream, group, consumer, count, acknowledges)])
    return replies or None


def _news(
    server: SimulatedValkey, stream: Stream, group: Group, name: bytes, count: int, acknowledges: bool
) -> list[Reply]:
    now_ms = server.db.now_ms
    ids = stream.between(next_id(group.last), LAST_ID)
    for id_ in ids[:count] if count else ids:
        if group.read != UNKNOWN_READ and not stream.has_deleted_after(id_):
            group.read += 1
        elif stream.added:
            group.read = stream.read_at(id_)
        group.last = id_
        if not acknowledges:
            group.pending[id_] = Pending(name, now_ms, 1)
            group.consumers[name].active_ms = now_ms
    return [entry(stream, id_) for id_ in (ids[:count] if count else ids)]


def _history(
    server: SimulatedValkey, stream: Stream, group: Group, name: bytes, after: Id, count: int
) -> list[Reply]:  # fmt: skip
    found: list[Reply] = []
    for id_ in [each for each in group.of(name) if each > after][: count or None]:
        if id_ in stream.entries:
            found.append(entry(stream, id_))
            group.pending[id_].delivered_ms = server.db.now_ms
            group.pending[id_].deliveries += 1
        else:
            found.append([id_text(id_), None])
    return found


@command("xack", -4, keys=ONE, writes=True)
def xack(server: SimulatedValkey, parts: list[bytes]) -> Reply:
    _, key, name, *ids = parts
    stream = server.db.write(key, Stream)
    group = stream.groups.get(name) if stream else None
    if group is None:
        return 0
    return sum(group.pending.pop(id_, None) is not None for id_ in [parse_id(each) for each in ids])


@command("xpending", -3, keys=ONE)
def xpending(server: SimulatedValkey, parts: list[bytes]) -> Reply:
    _, key, name, *rest = parts
    if rest and not 3 <= len(rest) <= 6:
        raise CommandError(SYNTAX)
    idle_ms, count, low, high = 0, 0, (0, 0), LAST_ID
    if rest:
        if rest[0].upper() == b"IDLE":
            idle_ms = integer(rest[1])
            rest = rest[2:]
            if len(rest) < 3:
                raise CommandError(SYNTAX)
        count = max(0, integer(rest[2]))
        low, high = interval(rest[0], rest[1])
    stream = server.db.read(key, Stream)
    group = stream.groups.get(name) if stream else None
    if group is None:
        raise no_key_or_group(key, name)
    if not rest:
        return _pending_summary(group)
    found: list[Reply] = []
    for id_ in sorted(group.pending):
        each = group.pending[id_]
        idle = server.db.now_ms - each.delivered_ms
        wanted = low <= id_ <= high and (len(rest) < 4 or each.consumer == rest[3]) and (not idle_ms or idle >= idle_ms)
        if wanted and len(found) < count:
            found.append([id_text(id_), each.consumer, max(0, idle), each.deliveries])
    return found


def _pending_summary(group: Group) -> Reply:
    if not group.pending:
        return [0, None, None, None]
    counts = [[name, b"%d" % len(group.of(name))] for name in sorted(group.consumers) if group.of(name)]
    return [len(group.pending), id_text(min(group.pending)), id_text(max(group.pending)), counts]


@command("xclaim", -6, keys=ONE, writes=True)
def xclaim(server: SimulatedValkey, parts: list[bytes]) -> Reply:
    _, key, name, consumer_name, least, *rest = parts
    stream, group = _group(server, key, name)
    least_ms = max(0, integer(least, b"ERR Invalid min-idle-time argument for XCLAIM"))
    now_ms = server.db.now_ms
    ids: list[Id] = []
    for each in rest:
        try:
            ids.append(parse_id(each))
        except CommandError:
            break
    forces = just_ids = False
    delivered, deliveries = None, None
    last: Id = (0, 0)
    at = len(ids)
    while at < len(rest):
        option, more = rest[at].upper(), at + 1 < len(rest)
        if option == b"FORCE":
            forces = True
        elif option == b"JUSTID":
            just_ids = True
        elif option == b"IDLE" and more:
            at += 1
            delivered = now_ms - integer(rest[at], b"ERR Invalid IDLE option argument for XCLAIM")
        elif option == b"TIME" and more:
            at += 1
            delivered = integer(rest[at], b"ERR Invalid TIME option argument for XCLAIM")
        elif option == b"RETRYCOUNT" and more:
            at += 1
            deliveries = integer(rest[at], b"ERR Invalid RETRYCOUNT option argument for XCLAIM")
        elif option == b"LASTID" and more:
            at += 1
            last = parse_id(rest[at])
        else:
            raise CommandError(b"ERR Unrecognized XCLAIM option '%b'" % rest[at])
        at += 1
    group.last = max(group.last, last)
    if delivered is None or not 0 <= delivered <= now_ms:
        delivered = now_ms
    consumer = _consumer(group, consumer_name, now_ms)
    claimed: list[Reply] = []
    for id_ in ids:
        pending = group.pending.get(id_)
        if id_ not in stream.entries:
            group.pending.pop(id_, None)
            continue
        if pending is None:
            if not forces:
                continue
            pending = group.pending[id_] = Pending(consumer_name, now_ms, 1)
        elif least_ms and now_ms - pending.delivered_ms < least_ms:
            continue
        pending.consumer, pending.delivered_ms = consumer_name, delivered
        if deliveries is not None and deliveries >= 0:
            pending.deliveries = deliveries
        elif not just_ids:
            pending.deliveries += 1
        claimed.append(id_text(id_) if just_ids else entry(stream, id_))
        consumer.active_ms = now_ms
    return claimed


@command("xautoclaim", -6, keys=ONE, writes=True)
def xautoclaim(server: SimulatedValkey, parts: list[bytes]) -> Reply:
    _, key, name, consumer_name, least, start, *rest = parts
    server.db.find(key)  # looked at before all else: one that has expired goes, whatever comes of the call
    least_ms = max(0, integer(least, b"ERR Invalid min-idle-time argument for XAUTOCLAIM"))
    low, _ = interval(start, b"+")
    count, just_ids = 100, False
    at = 0
    while at < len(rest):
        if rest[at].upper() == b"COUNT" and at + 1 < len(rest):
            count = integer(rest[at + 1], b"ERR COUNT must be > 0")
            if not 1 <= count <= (2**63 - 1) // 16:
                raise CommandError("ERR COUNT must be > 0")
            at += 1
        elif rest[at].upper() == b"JUSTID":
            just_ids = True
        else:
            raise CommandError(SYNTAX)
        at += 1
    stream, group = _group(server, key, name)
    now_ms = server.db.now_ms
    consumer = _consumer(group, consumer_name, now_ms)
    claimed: list[Reply] = []
    gone: list[Reply] = []
    order = sorted(id_ for id_ in group.pending if id_ >= low)
    looks, at = 10 * count, 0
    while looks and count and at < len(order):
        id_ = order[at]
        looks, at = looks - 1, at + 1
        pending = group.pending[id_]
        if id_ not in stream.entries:
            del group.pending[id_]
            gone.append(id_text(id_))
            count -= 1
            continue
        if least_ms and now_ms - pending.delivered_ms < least_ms:
            continue
        pending.consumer, pending.delivered_ms = consumer_name, now_ms
        if not just_ids:
            pending.deliveries += 1
        claimed.append(id_text(id_) if just_ids else entry(stream, id_))
        count -= 1
        consumer.active_ms = now_ms
    return [id_text(order[at]) if at < len(order) else b"0-0", claimed, gone]
