"""Sentinels of a simulated network: each says what it knows, which may be what was true a while ago.

Answers and messages are those of src/sentinel.c, as far as this project's and redis-py's clients read them.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.simulation.network import Network, Node
from tests.simulation.valkey.replies import OK, Error, Reply, Status, encoded, flat
from tests.simulation.valkey.server import Session

SERVICE = "ledger"
PORTS = (26379, 26380, 26381)


@dataclass(frozen=True)
class Configuration:
    """``epoch`` grows with each failover."""

    primary: str
    epoch: int
    is_down: bool = False


class SimulatedSentinel:
    """One process. ``node`` is set when it is put into a network."""

    def __init__(self, configuration: Configuration) -> None:
        self.configuration = configuration
        self.node: Node | None = None
        self._sessions = 0
        self._subscribers: dict[int, set[bytes]] = {}

    def __repr__(self) -> str:
        return f"<SimulatedSentinel {self.configuration}>"

    def connect(self) -> Session:
        self._sessions += 1
        return Session(self._sessions)

    def execute(self, session: Session, parts: list[bytes]) -> Reply:
        match [part.upper() for part in parts]:
            case [b"PING"]:
                return Status(b"PONG")
            case [b"CLIENT", *_]:
                return OK
            case [b"SENTINEL", b"MASTER", _]:
                return self._details() if parts[2].decode() == SERVICE else Error(b"ERR No such master with that name")
            case [b"SENTINEL", b"GET-MASTER-ADDR-BY-NAME", _]:
                host, _, port = self.configuration.primary.rpartition(":")
                return [host.encode(), port.encode()] if parts[2].decode() == SERVICE else None
            case [b"SUBSCRIBE", _]:
                channels = self._subscribers.setdefault(session.id, set())
                channels.add(parts[1])
                return [b"subscribe", parts[1], len(channels)]
        return Error(b"ERR unknown command '%b'" % parts[0])

    def _details(self) -> Reply:
        now = self.configuration
        host, _, port = now.primary.rpartition(":")
        fields = {
            b"name": SERVICE.encode(), b"ip": host.encode(), b"port": port.encode(),
            b"flags": b"s_down,o_down,master" if now.is_down else b"master", b"config-epoch": b"%d" % now.epoch,
        }  # fmt: skip
        return flat(fields.items())

    def learn(self, configuration: Configuration) -> None:
        """Takes over a newer configuration, and tells whoever has subscribed if the primary is another one."""
        before = self.configuration
        if configuration.epoch < before.epoch:
            return
        self.configuration = configuration
        if configuration.primary == before.primary or self.node is None:
            return
        old, new = (each.primary.replace(":", " ") for each in (before, configuration))
        message = encoded([b"message", b"+switch-master", f"{SERVICE} {old} {new}".encode()])
        for connection in list(self.node.connections):
            if b"+switch-master" in self._subscribers.get(connection.session.id, ()):
                connection.push(message)


def add_sentinels(network: Network, primary: str) -> list[SimulatedSentinel]:
    """Three of them, that know a primary."""
    found = []
    for port in PORTS:
        sentinel = SimulatedSentinel(Configuration(primary, 0))
        sentinel.node = network.add(sentinel, f"127.0.0.1:{port}")
        found.append(sentinel)
    return found
