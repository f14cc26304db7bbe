"""Sockets to listen on."""

from __future__ import annotations

import errno
import socket
from typing import Final

_NO_IPV6: Final = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)


def listening_sockets(host: str, port: int, *, reuse_port: bool = False) -> list[socket.socket]:
    """Bound sockets, one for each address of ``host`` and all on one port, also if ``port`` is 0.

    ``::`` takes clients over IPv6 and IPv4, and over IPv4 alone where the machine has no IPv6. Event loops are given
    sockets rather than addresses since they would take it for IPv6 alone.

    Raises:
        OSError: an address cannot be bound, or the host's name is not known.
    """
    try:
        return _bound_all(host, port, reuse_port)
    except OSError as error:
        if host != "::" or error.errno not in _NO_IPV6:
            raise
    return _bound_all("0.0.0.0", port, reuse_port)  # noqa: S104


def _bound_all(host: str, port: int, reuse_port: bool) -> list[socket.socket]:
    places = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    sockets: list[socket.socket] = []
    try:
        for family, kind, protocol, _, address in places:
            sock = socket.socket(family, kind, protocol)
            sockets.append(sock)
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if reuse_port:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if host == "::" else 1)
            sock.bind((address[0], port, *address[2:]))
            port = port or sock.getsockname()[1]
    except BaseException:  # a cancellation too must not keep the port
        for sock in sockets:
            sock.close()
        raise
    return sockets


def plain_address(address: str) -> str:
    """An address as it is known elsewhere: an IPv4 client of a socket for both families shows as ``::ffff:192.0.2.1``
    (RFC 4291 section 2.5.5.2)."""
    return address[7:] if address.startswith("::ffff:") and "." in address else address
