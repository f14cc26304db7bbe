"""Accepting connections on which no request can come at once: a TLS handshake, or a PROXY header, comes first.

An event loop's own server tells of such a connection only when its handshake is over. Until then nobody counts it.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from collections.abc import Callable
from time import monotonic
from typing import Final, Protocol

from sidecar.basics.fault_reasons import reason_of
from sidecar.basics.listening import plain_address
from sidecar.basics.logger import get_logger
from sidecar.gateway.admission.peer_keys import peer_key
from sidecar.gateway.admission.proxy_protocol import PREAMBLE_BYTES, ProxyHeaderError, rest_length, source_address
from sidecar.gateway.admission.shedding import Handshakes
from sidecar.gateway.context import GatewayContext
from sidecar.gateway.counters import SHED_HANDSHAKES

ACCEPTS_PER_TURN: Final = 64
"""So that a flood of new connections leaves turns for the others."""
DROPPED_MAX: Final = 16
"""Dropped handshakes that still have a descriptor, beyond which nothing is accepted for a turn."""
PAUSE_S: Final = 0.1
"""How long nothing is accepted when descriptors or memory have run out."""
_EXHAUSTED: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_LOG_EVERY_S: Final = 10.0
log = get_logger("sidecar.gateway")


class Arrival:
    """A connection that was accepted and cannot have a request yet. ``source``: the client's address, if the peer has
    said it."""

    __slots__ = ("handed_over", "peer", "sock", "source", "task")

    def __init__(self, sock: socket.socket, peer: str) -> None:
        self.sock = sock
        self.peer = peer
        self.source: str | None = None
        self.handed_over = False
        """The socket belongs to a transport."""
        self.task: asyncio.Task[None] | None = None

    def drop(self) -> None:
        """Ends it."""
        if self.task is not None:
            self.task.cancel()


Maker = Callable[[Arrival], asyncio.Protocol]


class Gate(Protocol):
    """Who says whether there is room (``gateway.Gateway``)."""

    handshakes: Handshakes[Arrival]

    def make_room(self) -> bool:
        """Whether there is room for one connection more."""
        ...

    def note_refused(self, name: object) -> None:
        """There was none, for the peer of this socket name."""
        ...


class Acceptor:
    """Accepts on ``sock``, and has ``make`` make the protocol of each connection whose handshake is done."""

    def __init__(
        self,
        context: GatewayContext,
        gate: Gate,
        make: Maker,
        sock: socket.socket,
        *,
        tls: ssl.SSLContext | None,
        proxy_protocol: bool,
    ) -> None:
        self._context = context
        self._gate = gate
        self._make = make
        self._sock = sock
        self._tls = tls
        self._proxy_protocol = proxy_protocol
        self._paused: asyncio.TimerHandle | None = None
        self._closed = False
        self._logged_at = -_LOG_EVERY_S

    def start(self, backlog: int) -> None:
        """Listens."""
        self._sock.setblocking(False)
        self._sock.listen(backlog)
        self._context.loop.add_reader(self._sock.fileno(), self._accept)

    def close(self) -> None:
        """Accepts nothing more."""
        if self._closed:
            return
        self._closed = True
        if self._paused is not None:
            self._paused.cancel()
        else:
            self._context.loop.remove_reader(self._sock.fileno())
        self._sock.close()

    def _accept(self) -> None:
        dropped = self._gate.handshakes.dropped
        for _ in range(ACCEPTS_PER_TURN):
            if len(dropped) >= DROPPED_MAX:
                return  # they have to end first; the socket is looked at again in the next turn
            try:
                sock, name = self._sock.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    self._pause(error)
                    return
                continue  # of this one connection, such as a reset that came before it was accepted
            self._begin(sock, name)

    def _pause(self, error: OSError) -> None:
        loop, now = self._context.loop, monotonic()
        if now - self._logged_at >= _LOG_EVERY_S:
            self._logged_at = now
            log.error("cannot accept connections", error=reason_of(error))
        loop.remove_reader(self._sock.fileno())
        self._paused = loop.call_later(PAUSE_S, self._resume)

    def _resume(self) -> None:
        self._paused = None
        self._context.loop.add_reader(self._sock.fileno(), self._accept)

    def _begin(self, sock: socket.socket, name: object) -> None:
        gate = self._gate
        if not gate.make_room():
            gate.note_refused(name)
            sock.close()
            return
        sock.setblocking(False)
        address = plain_address(str(name[0])) if isinstance(name, tuple) else ""
        arrival = Arrival(sock, address)
        gone = gate.handshakes.add(arrival, peer_key(address))
        if gone is not None:
            self._context.shed(SHED_HANDSHAKES, gone.peer, "")
            gone.drop()
        arrival.task = self._context.loop.create_task(self._shake(arrival))
        arrival.task.add_done_callback(lambda _: self._end(arrival))

    def _end(self, arrival: Arrival) -> None:
        """Also of a task that was cancelled before it began."""
        arrival.task = None
        self._gate.handshakes.remove(arrival)
        if not arrival.handed_over:
            arrival.sock.close()

    async def _shake(self, arrival: Arrival) -> None:
        context, sock = self._context, arrival.sock
        timeout_s = context.settings.handshake_timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                if self._proxy_protocol:
                    arrival.source = await self._read_header(arrival)
                arrival.handed_over = True
                options = {} if self._tls is None else {"ssl_handshake_timeout": timeout_s + 1.0}
                await context.loop.connect_accepted_socket(lambda: self._make(arrival), sock, ssl=self._tls, **options)
        except asyncio.CancelledError:
            pass  # dropped
        except TimeoutError:
            context.counters.fail_handshake("timeout")
        except ProxyHeaderError as error:
            context.counters.fail_handshake("proxy_header")
            self._log_header(arrival, str(error))
        except PermissionError as error:
            context.counters.fail_handshake("untrusted_proxy")
            self._log_header(arrival, str(error))
        except (OSError, EOFError):
            context.counters.fail_handshake("tls" if arrival.handed_over else "proxy_header")

    async def _read_header(self, arrival: Arrival) -> str | None:
        """Reads the PROXY header, and not a byte more: what follows is the client's.

        Raises:
            ProxyHeaderError: it is invalid.
            PermissionError: the peer may not send one.
        """
        if not self._context.trusts(arrival.peer):
            raise PermissionError("the peer is not in trusted_peers")
        preamble = await self._exactly(arrival.sock, PREAMBLE_BYTES)
        rest = await self._exactly(arrival.sock, rest_length(preamble))
        return source_address(preamble, rest)

    async def _exactly(self, sock: socket.socket, size: int) -> bytes:
        read = b""
        while len(read) < size:
            data = await self._context.loop.sock_recv(sock, size - len(read))
            if not data:
                raise EOFError
            read += data
        return read

    def _log_header(self, arrival: Arrival, why: str) -> None:
        now = monotonic()
        if now - self._logged_at >= _LOG_EVERY_S:
            self._logged_at = now
            log.warning("a PROXY header was refused", peer=arrival.peer, error=why)
