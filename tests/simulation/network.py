"""A network between the real clients and simulated servers, on virtual time and by a seed.

A connection is two directions, each of which keeps its order, as TCP does. Between connections there is no order: what
a client sent before its connection broke may reach the server after what it sent through the next one. What can go
wrong with a message is in :class:`Weather`; what can go wrong with a server, in :class:`Node`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from tests.simulation.loop import SimulatedLoop
from tests.simulation.valkey.replies import encoded
from tests.simulation.valkey.server import Session
from tests.simulation.valkey.session import RespSession, Server

APART_S: Final = 1e-6
"""Between two messages of one direction: a loop rings two timers of one instant in any order."""


@dataclass(slots=True)
class Weather:
    """Of the network. Delays are of one way, drawn evenly between their ends. The rest are chances of a request:

    ``slow``: it takes ``slow_s`` more. ``lost``: the connection breaks before it arrives. ``reply_lost``: the server
    does it, and the connection breaks before the reply arrives. ``cut``: in the middle of the reply. ``late``: the
    connection breaks, and the server gets the request up to ``late_s`` later. ``stuck``: neither it nor anything after
    it arrives, and nobody is told. ``refused``: of a new connection.
    """

    delay_s_min: float = 0.0002
    delay_s_max: float = 0.002
    slow: float = 0.0
    slow_s: float = 0.5
    lost: float = 0.0
    reply_lost: float = 0.0
    cut: float = 0.0
    late: float = 0.0
    late_s: float = 5.0
    stuck: float = 0.0
    refused: float = 0.0


class Node:
    """A server in the network. Paused, it answers when it goes on; down, connections break and none is made.
    ``cut_off`` parts it from all clients: what is sent either way arrives when that is over, if the connection still
    stands then. ``lives``: how often it was killed; what was sent to an earlier life arrives nowhere."""

    def __init__(self, network: Network, server: Server, address: str) -> None:
        self.network = network
        self.server = server
        self.address = address
        self.connections: list[Connection] = []
        self.requests = 0
        self.lives = 0
        self.is_down = False
        self._paused = False
        self._cut_off = False
        self._waiting: deque[Callable[[], None]] = deque()

    def __repr__(self) -> str:
        state = "down" if self.is_down else "paused" if self._paused else "cut off" if self._cut_off else "up"
        return f"<Node {self.address} {state} connections={len(self.connections)} waiting={len(self._waiting)}>"

    @property
    def is_reachable(self) -> bool:
        return not (self.is_down or self._paused or self._cut_off)

    def pause(self) -> None:
        self._paused = True

    def resume(self) -> None:
        self._paused = False
        self._go_on()

    def cut_off(self) -> None:
        self._cut_off = True

    def rejoin(self) -> None:
        self._cut_off = False
        self._go_on()

    def kill(self) -> None:
        """The process is gone. Its data are the server's; what of them it has after :meth:`start`, the caller decides
        (``SimulatedValkey.restart`` and ``restore``)."""
        self.is_down = True
        self.lives += 1
        self._waiting.clear()
        self.break_connections()

    def start(self) -> None:
        self.is_down = self._paused = False

    def break_connections(self) -> None:
        """All of them, as where a router forgets them."""
        for connection in list(self.connections):
            connection.break_off()

    def when_reachable(self, act: Callable[[], None]) -> None:
        """Now, or when the server goes on; never if it dies before."""
        if self.is_down:
            return
        if self.is_reachable and not self._waiting:
            act()
        else:
            self._waiting.append(act)

    def _go_on(self) -> None:
        while self._waiting and self.is_reachable:
            self._waiting.popleft()()


class Network:
    """``loop.network``. ``weather`` may be changed at any time; ``breaks``: connections that broke."""

    def __init__(self, loop: SimulatedLoop, weather: Weather | None = None) -> None:
        self.loop = loop
        self.weather = weather or Weather()
        self.random = loop.random
        self.nodes: dict[str, Node] = {}
        self.breaks = 0
        loop.network = self

    def __repr__(self) -> str:
        return f"<Network {list(self.nodes.values())} breaks={self.breaks}>"

    def add(self, server: Server, address: str) -> Node:
        node = self.nodes[address] = Node(self, server, address)
        return node

    def delay_s(self) -> float:
        weather = self.weather
        extra = weather.slow_s if self.chance(weather.slow) else 0.0
        return self.random.uniform(weather.delay_s_min, weather.delay_s_max) + extra

    def chance(self, share: float) -> bool:
        # Without a chance nothing is drawn: what one kind of fault does, does not move the others'.
        return share > 0 and self.random.random() < share

    async def connect(
        self, factory: Callable[[], asyncio.BaseProtocol], address: str
    ) -> tuple[asyncio.BaseTransport, asyncio.BaseProtocol]:
        """Opens a connection, as ``loop.create_connection`` does.

        Raises:
            ConnectionRefusedError: nobody listens there.
        """
        node = self.nodes.get(address)
        await asyncio.sleep(self.delay_s() + self.delay_s())
        if node is None or node.is_down or self.chance(self.weather.refused):
            raise ConnectionRefusedError(111, f"connection to {address} was refused")
        accepted = asyncio.Event()
        node.when_reachable(accepted.set)
        await accepted.wait()
        connection = Connection(self, node, factory())
        connection.protocol.connection_made(connection)
        return connection, connection.protocol


class Connection(asyncio.Transport):
    """A client's end of a connection; the server's is a session."""

    def __init__(self, network: Network, node: Node, protocol: asyncio.BaseProtocol) -> None:
        super().__init__()
        self._life = node.lives
        self.protocol: Any = protocol
        self._network, self._node, self._loop = network, node, network.loop
        self._session = RespSession(node.server)
        self._closing = False
        self._stuck = False
        """Nothing arrives at the server any more."""
        self._is_cut = False
        """Nothing arrives at the client any more."""
        self._to_server_s = self._to_client_s = 0.0
        """When the last of each direction arrives: nothing overtakes it."""
        node.connections.append(self)

    def __repr__(self) -> str:
        return f"<Connection to {self._node.address}{' closing' if self._closing else ''}>"

    # The client's side: asyncio.Transport

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def is_closing(self) -> bool:
        return self._closing

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._closing or self._stuck:
            return
        network, weather, payload = self._network, self._network.weather, bytes(data)
        if network.chance(weather.stuck):
            self._stuck = True
        elif network.chance(weather.lost):
            self._stuck = True
            self._loop.call_later(network.delay_s(), self.break_off)
        elif network.chance(weather.late):
            self._stuck = True
            self._arrive_at_server(payload, network.random.uniform(0.0, weather.late_s), None)
            self._loop.call_later(network.delay_s(), self.break_off)
        elif network.chance(weather.reply_lost):
            self._arrive_at_server(payload, 0.0, 0.0)
        elif network.chance(weather.cut):
            self._arrive_at_server(payload, 0.0, network.random.random())
        else:
            self._arrive_at_server(payload, 0.0, 1.0)

    def close(self) -> None:
        self._end(None)

    def abort(self) -> None:
        self._end(None)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def can_write_eof(self) -> bool:
        return False

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self.protocol  # type: ignore[no-any-return]

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol

    # Between the two

    def break_off(self) -> None:
        """The client is told that the connection is gone."""
        if not self._closing:
            self._network.breaks += 1
            self._end(ConnectionResetError(104, f"connection to {self._node.address} was reset"))

    def _end(self, error: Exception | None) -> None:
        if self._closing:
            return
        self._closing = True
        if self in self._node.connections:
            self._node.connections.remove(self)
        self._loop.call_soon(self.protocol.connection_lost, error)

    def _arrive_at_server(self, payload: bytes, late_s: float, share: float | None) -> None:
        """``share``: of the reply, that arrives before the connection breaks; 1: all, and it stands. None: no reply."""
        self._to_server_s = max(self._to_server_s + APART_S, self._loop.time() + self._network.delay_s() + late_s)
        self._loop.call_at(self._to_server_s, self._node.when_reachable, lambda: self._serve(payload, share))

    def _serve(self, payload: bytes, share: float | None) -> None:
        node = self._node
        if node.lives != self._life:
            return
        for parts in self._session.requests(payload):
            node.requests += 1
            reply = encoded(node.server.execute(self._session.session, parts))
            if share is not None:
                self._answer(reply, share)
        if self._session.closed:
            self.break_off()

    @property
    def session(self) -> Session:
        """What the server knows this connection by."""
        return self._session.session

    def push(self, message: bytes) -> None:
        """What the server says without being asked."""
        self._answer(message, 1.0)

    def _answer(self, reply: bytes, share: float) -> None:
        if self._closing or self._is_cut:
            return  # the server does not know that yet, and nobody reads it
        self._to_client_s = max(self._to_client_s + APART_S, self._loop.time() + self._network.delay_s())
        if share < 1.0:
            self._is_cut = True
            reply = reply[: int(share * len(reply))]
            self._loop.call_at(self._to_client_s, self._receive, reply)
            self._loop.call_at(self._to_client_s + APART_S, self.break_off)
        else:
            self._loop.call_at(self._to_client_s, self._receive, reply)

    def _receive(self, data: bytes) -> None:
        if self._closing or not data:
            return
        if self._node.is_reachable or self._node.is_down:
            self.protocol.data_received(data)
        else:
            self._node.when_reachable(lambda: self._receive(data))
