"""Streams: what the server tells of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.simulation.valkey.group_commands import SUBKEY, no_group
from tests.simulation.valkey.registry import command
from tests.simulation.valkey.replies import NO_KEY, CommandError, Reply
from tests.simulation.valkey.stream_commands import entry
from tests.simulation.valkey.values import UNKNOWN_READ, Stream, id_text

if TYPE_CHECKING:
    from tests.simulation.valkey.server import SimulatedValkey


@command("xinfo", -2, container=True)
def container(server: SimulatedValkey, parts: list[bytes]) -> Reply:
    raise AssertionError("a container has only subcommands")


@command("xinfo|consumers", 4, keys=SUBKEY)
def xinfo_consumers(server: SimulatedValkey, parts: list[bytes]) -> Reply:
    stream = _informed(server, parts[2])
    group = stream.groups.get(parts[3])
    if group is None:
        raise no_group(parts[3], parts[2])
    now_ms = server.db.now_ms
    return [
        [
            b"name", name, b"pending", len(group.of(name)), b"idle", max(0, now_ms - each.seen_ms),
            b"inactive", now_ms - each.active_ms if each.active_ms != -1 else -1,
        ]
        for name, each in sorted(group.consumers.items())
    ]  # fmt: skip


@command("xinfo|groups", 3, keys=SUBKEY)
def xinfo_groups(server: SimulatedValkey, parts: list[bytes]) -> Reply:
    stream = _informed(server, parts[2])
    return [
        [
            b"name", name, b"consumers", len(group.consumers), b"pending", len(group.pending),
            b"last-delivered-id", id_text(group.last),
            b"entries-read", None if group.read == UNKNOWN_READ else group.read, b"lag", stream.lag_of(group),
        ]
        for name, group in sorted(stream.groups.items())
    ]  # fmt: skip


@command("xinfo|stream", -3, keys=SUBKEY)
def xinfo_stream(server: SimulatedValkey, parts: list[bytes]) -> Reply:
    """Without FULL. The number of the tree's nodes is not the real one's."""
    stream = _informed(server, parts[2])
    if len(parts) > 3:
        raise CommandError("ERR unknown subcommand or wrong number of arguments for 'STREAM'. Try XINFO HELP.")
    return [
        b"length", len(stream.ids), b"radix-tree-keys", len(stream.nodes), b"radix-tree-nodes", len(stream.nodes) + 1,
        b"last-generated-id", id_text(stream.last), b"max-deleted-entry-id", id_text(stream.deleted_max),
        b"entries-added", stream.added, b"recorded-first-entry-id", id_text(stream.first),
        b"groups", len(stream.groups),
        b"first-entry", entry(stream, stream.ids[0]) if stream.ids else None,
        b"last-entry", entry(stream, stream.ids[-1]) if stream.ids else None,
    ]  # fmt: skip


def _informed(server: SimulatedValkey, key: bytes) -> Stream:
    stream = server.db.read(key, Stream)
    if stream is None:
        raise CommandError(NO_KEY)
    return stream
