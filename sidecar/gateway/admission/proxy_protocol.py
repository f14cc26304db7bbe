"""PROXY protocol version 2: the header by which a load balancer tells whose connection it passes on. No I/O.

Source: https://www.haproxy.org/download/2.9/doc/proxy-protocol.txt, section 2.2.
"""

from __future__ import annotations

import socket
from typing import Final

from sidecar.basics.listening import plain_address

SIGNATURE: Final = b"\r\n\r\n\x00\r\nQUIT\n"
PREAMBLE_BYTES: Final = 16
"""Signature, version and command, family and protocol, length of the rest."""
HEADER_BYTES_MAX: Final = 4096
"""Of a whole header. Those of load balancers have some hundred bytes."""
_LOCAL: Final = 0x20
_PROXY: Final = 0x21
_UNSPECIFIED: Final = 0x00
_FAMILIES: Final = {0x11: (socket.AF_INET, 4, 12), 0x21: (socket.AF_INET6, 16, 36)}
"""TCP over IPv4 and over IPv6: the family, bytes of an address, bytes of both addresses and ports."""


class ProxyHeaderError(Exception):
    """It is no header of version 2, or not one of a TCP connection. The message says why."""


def rest_length(preamble: bytes) -> int:
    """How many bytes follow the first `PREAMBLE_BYTES`.

    Raises:
        ProxyHeaderError: this does not begin a header that can be used.
    """
    if not preamble.startswith(SIGNATURE):
        raise ProxyHeaderError("it is of version 1" if preamble.startswith(b"PROXY ") else "there is none")
    if preamble[12] not in (_LOCAL, _PROXY):
        raise ProxyHeaderError("its version or command is not known")
    length = int.from_bytes(preamble[14:16], "big")
    if PREAMBLE_BYTES + length > HEADER_BYTES_MAX:
        raise ProxyHeaderError("it is too long")
    if preamble[12] == _PROXY and preamble[13] != _UNSPECIFIED:
        if preamble[13] not in _FAMILIES:
            raise ProxyHeaderError("it is not of a TCP connection")
        if length < _FAMILIES[preamble[13]][2]:
            raise ProxyHeaderError("it is too short for its addresses")
    return length


def source_address(preamble: bytes, rest: bytes) -> str | None:
    """The client's address; None if the connection is the load balancer's own (LOCAL), or of a kind that has none
    (UNSPEC). What follows the addresses (TLVs) is ignored. ``preamble`` has passed `rest_length`."""
    if preamble[12] == _LOCAL or preamble[13] == _UNSPECIFIED:
        return None
    family, size, _ = _FAMILIES[preamble[13]]
    return plain_address(socket.inet_ntop(family, rest[:size]))
