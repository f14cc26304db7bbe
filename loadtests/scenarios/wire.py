"""A client that knows how each request ended. Blocking sockets of the library, which gevent makes cooperate."""

from __future__ import annotations

import contextlib
import http.client
import select
import socket
import ssl
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import urlsplit

from loadtests.scenarios.result_counter import End, Reply

TIMEOUT_S = 60.0


def connect(url: str, timeout_s: float = TIMEOUT_S) -> socket.socket:
    """A connection to a base URL. Raises OSError."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    sock = socket.create_connection((parts.hostname or "", port), timeout_s)
    if parts.scheme == "https":
        return ssl.create_default_context().wrap_socket(sock, server_hostname=parts.hostname)
    return sock


class Line:
    """One kept connection to one gateway; a request that finds it closed opens another."""

    def __init__(self, url: str, timeout_s: float = TIMEOUT_S) -> None:
        parts = urlsplit(url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._connection = kind(parts.hostname or "", parts.port, timeout=timeout_s)
        self.url = url

    def __repr__(self) -> str:
        return f"<Line {self.url} {'open' if self._connection.sock else 'closed'}>"

    def close(self) -> None:
        self._connection.close()

    def call(
        self, method: str, path: str, fields: Mapping[str, str], body: bytes | Iterable[bytes] | None = None
    ) -> Reply:
        """Makes one request. ``body`` in pieces goes out chunked, unless ``fields`` have a Content-Length."""
        reply, response = self.begin(method, path, fields, body)
        if response is None:
            return reply
        try:
            content = response.read()
        except (OSError, http.client.HTTPException):
            self.close()
            return Reply(End.BROKEN, reply.status, reply.fields)
        return Reply(End.ANSWERED, reply.status, reply.fields, content)

    def begin(
        self, method: str, path: str, fields: Mapping[str, str], body: bytes | Iterable[bytes] | None = None
    ) -> tuple[Reply, http.client.HTTPResponse | None]:
        """Makes a request and reads the head of its answer; who calls reads the rest. No response: it ended before."""
        self._drop_if_closed()
        connection = self._connection
        if connection.sock is None:
            try:
                connection.connect()
            except OSError as error:
                self.close()
                why = getattr(error, "verify_message", None) or error.strerror or str(error)
                return Reply(End.REFUSED, why=why), None
        try:
            # A refusal may come, and the connection be closed, before the whole body was taken.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.request(method, path, body, dict(fields))
            response = connection.getresponse()
        except (OSError, http.client.HTTPException):
            self.close()
            return Reply(End.CUT), None
        names: dict[str, Any] = {name.lower(): value for name, value in response.getheaders()}
        return Reply(End.ANSWERED, response.status, names), response

    def _drop_if_closed(self) -> None:
        """As HTTP clients do: what is readable on an idle connection can only be its end."""
        sock = self._connection.sock
        if sock is not None:
            poll = select.poll()  # select() knows no more than 1,024 files
            poll.register(sock, select.POLLIN)
            if poll.poll(0):
                self.close()
