"""A real server and a simulated one that get the same calls at the same instant, and must give the same answers.

The clock of both is held (``held_clock.py``), so that times, ids and expiries are equal to the millisecond. What
differs by nature is brought into one form before it is compared: the order of a hash's fields and of a scan, the choice
of a random field, the place in a script at which an error happened, and the order of a map in msgpack: where a table of
Lua has its keys depends on a seed there.
"""

from __future__ import annotations

import re
import socket
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import hiredis
import msgpack

from sidecar.valkey.command import encode_command
from tests.simulation.valkey.held_clock import HeldClock, held_valkey
from tests.simulation.valkey.registry import lookup
from tests.simulation.valkey.replies import Reply, encoded
from tests.simulation.valkey.server import SimulatedValkey
from tests.simulation.valkey.session import RespSession

START_US: Final = 1_800_000_000_123_456
RECENT_CALLS: Final = 30
REPLY_CHARS_MAX: Final = 4_000
ANSWER_S: Final = 20.0
_SETTINGS: Final = {
    "enable_debug_command": "yes",
    "save": '""',
    # A node of a stream is full by its entries alone, as the simulated one's.
    "stream_node_max_bytes": "0",
}
_PLACE: Final = re.compile(r" script: on .*:-?\d+\.$")
_UNORDERED: Final = {"hgetall", "hkeys", "keys"}
_SCRIPTS: Final = {"eval", "evalsha"}
"""They may answer all fields of a hash, in the order that it has them."""
_RANDOM: Final = {"hrandfield", "zrandmember"}
_DIFFERENT: Final = {"info", "hello", "client|id", "memory|usage", "dump"}
"""What one server alone can say of itself."""


class TwinsDiffer(AssertionError):
    """The simulated server is not like the real one."""


class Twins:
    """``calls``: how often each command was compared. ``recent``: the last calls, for the message of a failure."""

    def __init__(self, port: int, clock: HeldClock) -> None:
        self.now_us = START_US
        self.simulated = SimulatedValkey(lambda: self.now_us)
        self.calls: Counter[str] = Counter()
        self.recent: deque[tuple[list[bytes], Reply]] = deque(maxlen=RECENT_CALLS)
        self._dumps: dict[bytes, bytes] = {}
        self._port, self._clock = port, clock
        self._own: TwinSession | None = None

    def open(self) -> TwinSession:
        """A connection to both."""
        return TwinSession(self, self._port)

    def call(self, *parts: bytes | str | int) -> Reply:
        """One call to both; what they answer."""
        self._own = self._own or self.open()
        return self._own.call([part if isinstance(part, bytes) else str(part).encode() for part in parts])

    def only_real(self, *parts: str) -> Reply:
        """One call to the real server alone, to bring it into trouble."""
        assert self._own is not None
        return self._own.only_real([part.encode() for part in parts])

    def move_to(self, now_us: int) -> None:
        self.now_us = now_us
        self._clock.set(now_us)

    def move(self, by_us: int) -> None:
        self.move_to(self.now_us + by_us)

    def reset(self) -> None:
        """Both are as new."""
        self.recent.clear()
        self._own = None
        for call in (["FLUSHALL"], ["SCRIPT", "FLUSH"], ["FUNCTION", "FLUSH"]):
            self.call(*call)
        self.simulated.trouble.is_replica = False
        self.move_to(START_US)

    def note_dump(self, real: bytes, simulated: bytes) -> None:
        """Each server has its own form of a dump."""
        self._dumps[real] = simulated

    def for_simulated(self, parts: list[bytes]) -> list[bytes]:
        if len(parts) > 3 and parts[0].upper() == b"RESTORE":
            return [*parts[:3], self._dumps.get(parts[3], parts[3]), *parts[4:]]
        return parts

    def compare_contents(self) -> dict[bytes, Any]:
        """Compares everything that both have, and answers it."""
        keys = sorted(self.call("KEYS", "*"))
        found: dict[bytes, Any] = {}
        for key in keys:
            kind = self.call("TYPE", key)
            found[key] = [kind, self.call("PTTL", key), *self._value(key, kind)]
        return found

    def _value(self, key: bytes, kind: bytes) -> list[Any]:
        if kind == b"string":
            return [self.call("GET", key)]
        if kind == b"zset":
            return [self.call("ZRANGE", key, 0, -1, "WITHSCORES")]
        if kind == b"hash":
            fields = self.call("HGETALL", key)
            names = sorted(fields[::2])
            ttls = self.call("HPTTL", key, "FIELDS", len(names), *names) if names else []
            return [dict(zip(fields[::2], fields[1::2], strict=True)), ttls, self.call("HLEN", key)]
        if kind == b"list":
            return [self.call("LRANGE", key, 0, -1)]
        assert kind == b"stream"
        groups = self.call("XINFO", "GROUPS", key)
        of_groups = [
            (self.call("XINFO", "CONSUMERS", key, group[1]), self.call("XPENDING", key, group[1], "-", "+", 10_000))
            for group in groups
        ]
        return [self.call("XRANGE", key, "-", "+"), self.call("XINFO", "STREAM", key), groups, of_groups]


class TwinSession:
    """A connection to both servers (``clients.Wire``)."""

    def __init__(self, twins: Twins, port: int) -> None:
        self._twins = twins
        self._real = socket.create_connection(("127.0.0.1", port))
        self._real.settimeout(ANSWER_S)
        self._real.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._simulated = RespSession(twins.simulated)

    def __del__(self) -> None:
        self._real.close()

    def receive(self, data: bytes) -> bytes:
        answers = [self._compared(parts)[0] for parts in self._simulated.requests(data)]
        assert not self._simulated.closed, "a client sent what is no request"
        return b"".join(answers)

    def call(self, parts: list[bytes]) -> Reply:
        return self._compared(parts)[1]

    def only_real(self, parts: list[bytes]) -> Reply:
        return self._ask_real(parts)[1]

    def _ask_real(self, parts: list[bytes]) -> tuple[bytes, Reply]:
        self._real.sendall(encode_command(parts))
        reader, raw = hiredis.Reader(), b""
        while (reply := reader.gets()) is False:
            some = self._real.recv(1 << 20)
            if not some:
                raise ConnectionError("the real server hung up")
            raw += some
            reader.feed(some)
        return raw, reply

    def _compared(self, parts: list[bytes]) -> tuple[bytes, Reply]:
        """The real one's answer as it came, and read."""
        twins = self._twins
        raw, real = self._ask_real(parts)
        reader = hiredis.Reader()
        reader.feed(encoded(twins.simulated.execute(self._simulated.session, twins.for_simulated(parts))))
        simulated = reader.gets()
        command = lookup(parts)
        name = command.name if command else ""
        twins.calls[name] += 1
        twins.recent.append((parts, real))
        if name == "dump" and isinstance(real, bytes) and isinstance(simulated, bytes):
            twins.note_dump(real, simulated)
        if not _same(name, parts, real, simulated, twins):
            calls = "\n".join(f"  {_text(each)} -> {_short(answer)}"[:600] for each, answer in twins.recent)
            raise TwinsDiffer(
                f"after\n{calls}\nthe real server answers\n  {_short(real)}\nthe simulated one\n  {_short(simulated)}"
            )
        return raw, real


def _short(reply: Reply) -> str:
    return repr(reply)[:REPLY_CHARS_MAX]


def _text(parts: list[bytes]) -> str:
    return " ".join(repr(part)[2:-1][:100] for part in parts)


def _same(name: str, parts: list[bytes], real: Reply, simulated: Reply, twins: Twins) -> bool:
    if isinstance(real, hiredis.ReplyError) or isinstance(simulated, hiredis.ReplyError):
        return type(real) is type(simulated) and _PLACE.sub("", str(real)) == _PLACE.sub("", str(simulated))
    if name in _DIFFERENT:
        return type(real) is type(simulated)
    if name in _RANDOM and isinstance(real, list):
        return len(real) == len(simulated)
    if name in _RANDOM:
        return (real is None) == (simulated is None)
    real, simulated = _in_order(name, parts, real), _in_order(name, parts, simulated)
    return _equal(real, simulated) or (name in _SCRIPTS and _sorted(real) == _sorted(simulated))


def _equal(real: Reply, simulated: Reply) -> bool:
    """Whether replies are equal, but for the order of maps in msgpack, which is that of a table of Lua."""
    if real == simulated:
        return True
    if isinstance(real, hiredis.ReplyError):
        return isinstance(simulated, hiredis.ReplyError) and str(real) == str(simulated)
    if isinstance(real, bytes) and isinstance(simulated, bytes):
        return len(real) == len(simulated) and _unpacked(real) == _unpacked(simulated)
    if isinstance(real, list | tuple) and isinstance(simulated, list | tuple):
        return len(real) == len(simulated) and all(map(_equal, real, simulated))
    return False


def _sorted(reply: Reply) -> Reply:
    return sorted((_sorted(each) for each in reply), key=repr) if isinstance(reply, list) else reply


def _unpacked(packed: bytes) -> Any:
    unpacker = msgpack.Unpacker(raw=True, strict_map_key=False)
    unpacker.feed(packed)
    try:
        return list(unpacker)
    except (ValueError, msgpack.UnpackException):
        return packed


def _in_order(name: str, parts: list[bytes], reply: Reply) -> Reply:
    if name in ("hgetall",) or (name == "hscan" and b"NOVALUES" not in [part.upper() for part in parts]):
        pairs = reply if name == "hgetall" else reply[1]
        return sorted(zip(pairs[::2], pairs[1::2], strict=True))
    if name in _UNORDERED:
        return sorted(reply)
    if name in ("scan", "hscan"):
        return sorted(reply[1])
    if name == "xinfo|stream":
        return reply[:4] + reply[6:]  # without the nodes of its tree
    if name == "function|list":
        return sorted(map(repr, reply))
    return reply


@contextmanager
def twins_in(directory: Path) -> Iterator[Twins]:
    """Both servers, empty. What expires goes when it is looked at, never by itself."""
    with held_valkey(directory, START_US, **_SETTINGS) as (server, clock):
        twins = Twins(server.port, clock)
        assert twins.open().only_real([b"DEBUG", b"SET-ACTIVE-EXPIRE", b"0"]) == b"OK"
        yield twins
