"""What a client asks of the server itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.simulation.valkey.registry import COMMANDS, Command, KeysAt, command, lookup
from tests.simulation.valkey.replies import OK, CommandError, Reply, Status, flat, integer

if TYPE_CHECKING:
    from tests.simulation.valkey.server import SimulatedValkey

_NO_CLUSTER = "ERR This instance has cluster support disabled"
_NO_PASSWORD = (
    "ERR AUTH <password> called without any password configured for the default user. Are you sure your configuration "
    "is correct?"
)


@command("ping", -1)
def ping(server: SimulatedValkey, parts: list[bytes]) -> Reply:
    if len(parts) > 2:
        raise CommandError("ERR wrong number of arguments for 'ping' command")
    return parts[1] if len(parts) > 1 else Status(b"PONG")


@command("echo", 2, while_loading=True)
def echo(server: SimulatedValkey, parts: list[bytes]) -> Reply:
    return parts[1]


@command("time", 1, while_loading=True)
def time(server: SimulatedValkey, parts: list[bytes]) -> Reply:
    seconds, micros = divmod(server.now_us, 1_000_000)
    return [b"%d" % seconds, b"%d" % micros]


@command("auth", -2, scripts=False, while_loading=True, while_busy=True)
def auth(server: SimulatedValkey, parts: list[bytes]) -> Reply:
    if len(parts) > 3:
        raise CommandError("ERR syntax error")
    if len(parts) == 3:
        raise CommandError("WRONGPASS invalid username-password pair or user is disabled.")
    raise CommandError(_NO_PASSWORD)


@command("select", 2, while_loading=True, while_busy=True)
def select(server: SimulatedValkey, parts: list[bytes]) -> Reply:
    """There is one database."""
    if integer(parts[1]) != 0:
        raise CommandError("ERR DB index is out of range")
    return OK


@command("hello", -1, scripts=False, while_loading=True, while_busy=True)
def hello(server: SimulatedValkey, parts: list[bytes]) -> Reply:
    if len(parts) > 1 and integer(parts[1], b"ERR Protocol version is not an integer or out of range") != 2:
        raise CommandError("NOPROTO unsupported protocol version")
    if len(parts) > 2:
        raise CommandError(b"ERR Syntax error in HELLO option '%b'" % parts[2])
    role = b"replica" if server.trouble.is_replica else b"master"
    return [
        b"server", b"valkey", b"version", server.version.text, b"proto", 2, b"id", server.session.id,
        b"mode", b"standalone" if server.slots is None else b"cluster", b"role", role, b"modules", [],
    ]  # fmt: skip


@command("client", -2, container=True)
@command("cluster", -2, container=True)
@command("config", -2, container=True)
@command("memory", -2, container=True)
def container(server: SimulatedValkey, parts: list[bytes]) -> Reply:
    raise AssertionError("a container has only subcommands")


@command("client|setname", 3, scripts=False, while_loading=True, while_busy=True)
def client_setname(server: SimulatedValkey, parts: list[bytes]) -> Reply:
    if any(not 33 <= each <= 126 for each in parts[2]):
        raise CommandError("ERR Client names cannot contain spaces, newlines or special characters.")
    server.session.name = parts[2]
    return OK


@command("client|getname", 2, scripts=False, while_loading=True, while_busy=True)
def client_getname(server: SimulatedValkey, parts: list[bytes]) -> Reply:
    return server.session.name or None


@command("client|setinfo", 4, scripts=False, while_loading=True, while_busy=True)
def client_setinfo(server: SimulatedValkey, parts: list[bytes]) -> Reply:
    return OK


@command("client|id", 2, scripts=False, while_loading=True, while_busy=True)
def client_id(server: SimulatedValkey, parts: list[bytes]) -> Reply:
    return server.session.id


@command("command", -1, container=True, while_loading=True)
def command_(server: SimulatedValkey, parts: list[bytes]) -> Reply:
    return [_described(each) for each in COMMANDS.values() if "|" not in each.name]


def _described(each: Command) -> Reply:
    flags = [
        word
        for word, is_so in (
            (b"write", each.writes), (b"denyoom", each.grows), (b"noscript", not each.scripts),
            (b"movablekeys", each.keys is not None and not isinstance(each.keys, KeysAt)),
        )
        if is_so
    ]  # fmt: skip
    at = each.keys if isinstance(each.keys, KeysAt) else KeysAt(0, 0, 0)
    # The last position counts from the end, as there.
    below = [_described(sub) for sub in COMMANDS.values() if sub.name.startswith(f"{each.name}|")]
    return [each.name.encode(), each.arity, flags, at.first, at.last, at.step, [], [], [], below]


@command("command|getkeys", -3, while_loading=True)
def command_getkeys(server: SimulatedValkey, parts: list[bytes]) -> Reply:
    asked = lookup(parts[2:])
    if asked is None:
        raise CommandError("ERR Invalid command specified")
    keys = asked.keys(parts[2:]) if asked.keys is not None else []
    if not keys:
        raise CommandError("ERR The command has no key arguments")
    return keys


@command("cluster|slots", 2, while_loading=True)
def cluster_slots(server: SimulatedValkey, parts: list[bytes]) -> Reply:
    if server.slots is None:
        raise CommandError(_NO_CLUSTER)
    return server.slots.ranges()


@command("cluster|nodes", 2, while_loading=True)
def cluster_nodes(server: SimulatedValkey, parts: list[bytes]) -> Reply:
    if server.slots is None:
        raise CommandError(_NO_CLUSTER)
    return server.slots.nodes()


@command("asking", 1)
def asking(server: SimulatedValkey, parts: list[bytes]) -> Reply:
    if server.slots is None:
        raise CommandError(_NO_CLUSTER)
    server.session.asking = True
    return OK


@command("config|get", -3, scripts=False, while_loading=True)
def config_get(server: SimulatedValkey, parts: list[bytes]) -> Reply:
    """Names without patterns."""
    names = [name.lower().decode() for name in parts[2:]]
    return flat((name.encode(), server.config[name].encode()) for name in names if name in server.config)


@command("role", 1, scripts=False, while_loading=True)
def role(server: SimulatedValkey, parts: list[bytes]) -> Reply:
    if not server.trouble.is_replica:
        return [b"master", server.writes, []]
    host, _, port = server.trouble.primary.rpartition(":")
    link = b"connect" if server.trouble.link_is_down else b"connected"
    return [b"slave", host.encode(), int(port or 0), link, server.writes]


@command("wait", 3)
def wait(server: SimulatedValkey, parts: list[bytes]) -> Reply:
    """No replica has ever acknowledged anything."""
    integer(parts[1])
    integer(parts[2])
    return 0


@command("info", -1, while_loading=True)
def info(server: SimulatedValkey, parts: list[bytes]) -> Reply:
    """What clients and this project read of it."""
    trouble, version = server.trouble, server.version
    own = {"server_name": "valkey", "valkey_version": version.text.decode()} if version.is_valkey else {}
    sections: dict[bytes, dict[str, object]] = {
        b"server": {
            "redis_version": version.redis_text.decode(), **own,
            "redis_mode": "standalone" if server.slots is None else "cluster",
            "run_id": server.run_id,
        },
        b"memory": {
            "used_memory": server.used_bytes, "maxmemory": server.config["maxmemory"],
            "maxmemory_policy": server.config["maxmemory-policy"],
        },
        b"persistence": {"loading": int(trouble.is_loading), "aof_enabled": 0},
        b"replication": {
            "role": "slave" if trouble.is_replica else "master", "connected_slaves": 0,
            "master_replid": server.run_id, "master_repl_offset": server.writes,
        },
    }  # fmt: skip
    wanted = [part.lower() for part in parts[1:]]
    lines: list[str] = []
    for name, section in sections.items():
        if not wanted or name in wanted or {b"all", b"default", b"everything"} & set(wanted):
            lines.append(f"# {name.decode().capitalize()}")
            lines += [f"{key}:{value}" for key, value in section.items()]
            lines.append("")
    return "\r\n".join(lines).encode()
