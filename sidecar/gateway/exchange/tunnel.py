"""What an exchange becomes when the API switches protocols (101): bytes both ways, until one end or nothing moves."""

from __future__ import annotations

from time import monotonic
from typing import Final

from sidecar.gateway.client import Client
from sidecar.gateway.context import GatewayContext
from sidecar.gateway.exchange.access_log import record
from sidecar.gateway.exchange.charging import ChargedRelay
from sidecar.gateway.half_close import half_close
from sidecar.gateway.relay import Relay
from sidecar.gateway.upstream import UpstreamConnection

_clock: Final = monotonic


class Tunnel(Relay):
    """Takes both connections over from ``exchange``, which has been charged. Half-closes pass through."""

    def __init__(
        self, context: GatewayContext, exchange: ChargedRelay, connection: Client, upstream: UpstreamConnection
    ) -> None:
        self.context = context
        self.exchange = exchange
        self.connection: Client | None = connection
        self.upstream: UpstreamConnection | None = upstream
        self._upstream_ended = False
        upstream.user = self
        self._touch()

    def __repr__(self) -> str:
        return f"<Tunnel {self.exchange!r}>"

    def _touch(self) -> None:
        self.deadline = _clock() + self.context.settings.stream_idle_timeout_s

    def _end(self) -> None:
        if self.finished:
            return
        self.finished = True
        upstream, self.upstream = self.upstream, None
        if upstream is not None:
            upstream.end()
        record(self.exchange, 101, _clock(), refused=False)
        if self.connection is not None:
            self.connection.end()

    # from the client's connection

    def wants_data(self) -> bool:
        return True

    def client_data(self, data: bytes) -> None:
        if self.upstream is not None:
            self._touch()
            self.upstream.transport.write(data)

    def client_eof(self) -> None:
        upstream = self.upstream
        if upstream is None or self._upstream_ended or not upstream.transport.can_write_eof():
            self._end()
        else:
            half_close(upstream.transport)

    def client_gone(self) -> None:
        if self.finished:
            return
        connection, self.connection = self.connection, None
        self.exchange.connection = None
        self.context.counters.client_aborts += 1
        self._end()
        if connection is not None:
            connection.reset()

    def client_pause(self) -> None:
        if self.upstream is not None:
            self.upstream.pause_reading()
            self._touch()

    def client_resume(self) -> None:
        if self.upstream is not None:
            self.upstream.resume_reading()
            self._touch()

    # from the connection to the API

    def upstream_data(self, data: bytes) -> None:
        if self.connection is not None:
            self._touch()
            self.connection.transport.write(data)

    def upstream_eof(self) -> bool:
        self._upstream_ended = True
        connection = self.connection
        if connection is None or connection.eof or not connection.transport.can_write_eof():
            self._end()
            return False
        half_close(connection.transport)
        return True

    def upstream_lost(self, exc: Exception | None) -> None:
        self.upstream = None
        self._end()

    def upstream_pause(self) -> None:
        if self.connection is not None:
            self.connection.pause_reading()

    def upstream_resume(self) -> None:
        if self.connection is not None:
            self.connection.resume_reading()
        self._touch()

    # from the gateway

    def give_way(self, reason: str) -> None:
        raise AssertionError("a tunnel stays: the API has heard of it")

    def given_up(self) -> None:
        self._end()

    def stopped(self) -> None:
        self._end()

    # from the sweep

    def timed_out(self) -> None:
        self._end()
