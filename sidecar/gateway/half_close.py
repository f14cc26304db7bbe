"""Ends one direction of a connection."""

from __future__ import annotations

import asyncio


def half_close(transport: asyncio.WriteTransport) -> None:
    """Tell the other end that nothing more comes, where the transport can. One that the other end has reset already is
    given up: its loss may not have been noticed yet, and the system refuses (ENOTCONN)."""
    if not transport.can_write_eof():
        return
    try:
        transport.write_eof()
    except OSError:
        transport.abort()
