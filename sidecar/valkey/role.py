"""Whether the server at the other end is a primary."""

from __future__ import annotations

import asyncio
from typing import Final

from sidecar.basics.logger import get_logger
from sidecar.valkey.resp import LedgerConnectionError, ReplyError, RespConnection, ServerAddress

log = get_logger("sidecar.ledger")

SILENT_MAX: Final = 1000
"""Servers that are remembered to refuse ROLE; beyond it all of them are asked again."""

LATER: Final = ("LOADING", "BUSY", "UNBLOCKED")
"""First words of refusals that say nothing of the role, now or ever."""

_silent: set[ServerAddress] = set()


async def require_primary(connection: RespConnection, timeout_s: float) -> None:
    """Asks ``ROLE``, and returns if the server is a primary or does not say (an ACL without ROLE, a proxy that does
    not know the command). A server that refuses is named in the log once and not asked again.

    Whoever raises here closes the connection: what was written to a replica or to a demoted primary is lost.

    Raises:
        LedgerConnectionError: the server is a replica, or does not answer within ``timeout_s``.
    """
    address = connection.address
    if address in _silent:
        return
    try:
        async with asyncio.timeout(timeout_s):
            reply = await connection.call(b"ROLE")
    except TimeoutError:
        connection.close()
        raise LedgerConnectionError(f"Valkey at {address} does not answer ROLE within {timeout_s:g} s") from None
    if isinstance(reply, ReplyError):
        _note_refusal(address, str(reply))
        return
    role = reply[0] if isinstance(reply, list) and reply else reply
    if role == b"master":
        return
    connection.close()
    if role == b"slave":
        follows = f" of {_text(reply[1])}:{_text(reply[2])}" if len(reply) > 2 else ""
        raise LedgerConnectionError(f"Valkey at {address} is a replica{follows}: it takes no writes")
    raise LedgerConnectionError(f"Valkey at {address} is no primary: its role is {_text(role)[:40]}")


def _note_refusal(address: ServerAddress, reason: str) -> None:
    word = reason.partition(" ")[0]
    if word in LATER:
        return
    if word not in ("NOPERM", "ERR"):
        raise LedgerConnectionError(f"Valkey at {address} refused ROLE: {reason}")
    if len(_silent) >= SILENT_MAX:
        _silent.clear()
    _silent.add(address)
    log.warning("Valkey does not tell its role, so a demoted primary is noticed late: allow the command ROLE (+role)",
                server=str(address), reason=reason[:200])  # fmt: skip


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
