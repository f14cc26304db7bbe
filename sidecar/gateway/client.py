"""A client's connection as a relay sees it. ``connection.ClientConnection`` is the one there is."""

from __future__ import annotations

from typing import Any

from sidecar.gateway.http1.heads import RequestHead
from sidecar.gateway.relay import Relay
from sidecar.gateway.upstream import UpstreamPool
from sidecar.identity.types import Identity, Peer


class Client:
    """``keep``: the connection may carry another request. ``eof``: the client will send nothing more. ``account``: of
    the last identified request; "" if there was none."""

    __slots__ = ("account", "eof", "keep", "peer", "pool", "reading_paused", "transport", "writing_paused")

    transport: Any  # an asyncio.Transport or what uvloop has for one
    peer: Peer
    pool: UpstreamPool | None
    account: str
    keep: bool
    eof: bool
    reading_paused: bool
    writing_paused: bool

    @property
    def may_go_on(self) -> bool:
        """Whether another request may follow on this connection."""
        raise NotImplementedError

    def share_key(self) -> str | None:
        """Whose share of connections and of free routes it takes; None for nobody's."""
        raise NotImplementedError

    def forwarded_lines(self, head: RequestHead, identity: Identity | None) -> bytes:
        """Field lines that the gateway adds to a request of this client, each with its CRLF. ``identity``: who calls;
        None where nobody asked."""
        raise NotImplementedError

    def take_leftover(self, data: bytes) -> None:
        """Bytes after the end of a request's body: the next request."""
        raise NotImplementedError

    def still_taking(self) -> bool:
        """Whether the client took some of what waits for it since it was last asked."""
        raise NotImplementedError

    def pause_reading(self) -> None:
        raise NotImplementedError

    def resume_reading(self) -> None:
        raise NotImplementedError

    def exchange_done(self, now: float, *, unread_body: bool = False) -> None:
        """The answer was written, at ``now``. Goes on with the next request, or ends."""
        raise NotImplementedError

    def become_tunnel(self, tunnel: Relay) -> None:
        """From here on all bytes belong to ``tunnel``."""
        raise NotImplementedError

    def end(self) -> None:
        """Closes when what was written has gone out."""
        raise NotImplementedError

    def reset(self) -> None:
        """Closes at once, with a reset."""
        raise NotImplementedError
