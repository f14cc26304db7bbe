"""Whose share of connections and of free routes a client takes. No I/O."""

from __future__ import annotations

import socket

from sidecar.basics.listening import plain_address


def peer_key(address: str) -> str:
    """An IPv4 address, or the /64 of an IPv6 address: whoever has one address of that has all. "" for a Unix
    socket."""
    if ":" not in address:
        return address
    try:
        packed = socket.inet_pton(socket.AF_INET6, address.partition("%")[0])
    except OSError:
        return address
    return socket.inet_ntop(socket.AF_INET6, packed[:8] + bytes(8)) + "/64"


def forwarded_key(chain: bytes) -> str | None:
    """The key of the last address of an ``X-Forwarded-For``, which the peer before the gateway wrote. None if it is no
    address: what a proxy calls its client (``unknown``, a name) tells nobody apart."""
    text = chain.rpartition(b",")[2].strip().decode("latin-1")
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    text = plain_address(text)
    try:
        socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)
    except (OSError, ValueError):  # ValueError: it has a NUL
        return None
    return peer_key(text)
