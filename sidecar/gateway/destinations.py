"""Which API a connection belongs to: that of the port it came in by, or the one it was on its way to."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from typing import Any, Final

from sidecar.gateway.counters import ProxyCounters
from sidecar.gateway.parameters import OriginalDestinations, ProxySettings, UpstreamTarget
from sidecar.gateway.upstream import UpstreamPool

# linux/netfilter_ipv4.h, linux/netfilter_ipv6/ip6_tables.h: the address before the kernel's redirection.
_SO_ORIGINAL_DST: Final = 80
_IN: Final = struct.Struct("!2xH4s")
_IN6: Final = struct.Struct("!2xH4x16s")
_SOL_IPV6: Final = 41


def original_destination(sock: Any) -> tuple[str, int] | None:
    """Host and port that a redirected connection was on its way to; None if it was not redirected.

    An IPv4 client of a socket for both families is asked about as what it is.
    """
    if sock.family == socket.AF_INET6:
        name = sock.getsockname()
        if not name[0].startswith("::ffff:"):
            try:
                port, packed = _IN6.unpack_from(sock.getsockopt(_SOL_IPV6, _SO_ORIGINAL_DST, 28))
            except OSError:
                return None
            return socket.inet_ntop(socket.AF_INET6, packed), port
    elif sock.family != socket.AF_INET:
        return None
    try:
        port, packed = _IN.unpack_from(sock.getsockopt(socket.IPPROTO_IP, _SO_ORIGINAL_DST, 16))
    except OSError:
        return None
    return socket.inet_ntop(socket.AF_INET, packed), port


class Destinations:
    """The pools of all APIs behind the gateway: one for each listener, or one for each original destination in use."""

    def __init__(self, settings: ProxySettings, counters: ProxyCounters) -> None:
        self._settings = settings
        self._counters = counters
        self._fixed: list[UpstreamPool] = []
        self._found: dict[tuple[str, int], UpstreamPool] = {}

    def __repr__(self) -> str:
        return f"<Destinations {[*self._fixed, *self._found.values()]}>"

    def __iter__(self) -> Iterator[UpstreamPool]:
        yield from self._fixed
        yield from self._found.values()

    def fixed(self, target: UpstreamTarget) -> UpstreamPool:
        """A pool that stays until the end."""
        pool = UpstreamPool(target, self._settings, self._counters)
        self._fixed.append(pool)
        return pool

    def of(self, sock: Any, wanted: OriginalDestinations) -> UpstreamPool | None:
        """The pool for where a client was on its way to; None if that is not served, or is one too many.

        Whoever asks counts itself in with ``pool.clients`` and out again: a pool that nobody uses is dropped.
        """
        place = original_destination(sock) if sock is not None else None
        if place is None or not wanted.serves(place[1]):
            return None
        pool = self._found.get(place)
        if pool is None:
            if len(self._found) >= self._settings.destinations_max:
                self._drop_unused()
            if len(self._found) >= self._settings.destinations_max:
                return None
            pool = UpstreamPool(UpstreamTarget(*place), self._settings, self._counters)
            self._found[place] = pool
        return pool

    def sweep(self, now: float) -> None:
        """Closes connections to the APIs that were idle for too long, and forgets what is not used any more."""
        for pool in self:
            pool.sweep(now)
        self._drop_unused()

    def _drop_unused(self) -> None:
        for place in [place for place, pool in self._found.items() if not pool.clients and not pool.size]:
            del self._found[place]

    async def close(self) -> None:
        for pool in [*self]:
            await pool.close()
