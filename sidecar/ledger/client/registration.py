"""An instance's registration at its home partition: register, heartbeat, leave. Each is a script call on a given
connection.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from sidecar.ledger.keys import Keys
from sidecar.valkey.resp import LedgerConnectionError, Reply, ReplyError, RespConnection
from sidecar.valkey.scripts import script

ACCOUNTS_MAX = 1000
"""Accounts named in one call: what an instance held of more is given back in several."""


@dataclass(frozen=True, slots=True)
class Registration:
    """``answer_s``: how long a call may take; a connection that is slower is closed."""

    instance: str
    instance_key: bytes
    alive_key: bytes
    answer_s: float

    @classmethod
    def of(cls, instance: str, home_partition: int, keys: Keys, answer_s: float) -> Registration:
        return cls(
            instance, keys.instance(home_partition, instance).encode(), keys.alive(home_partition).encode(), answer_s
        )

    async def register(self, connection: RespConnection) -> tuple[int, int]:
        """Enters, or enters again. Answers the new epoch and the number of the last batch.

        Raises:
            LedgerConnectionError: Valkey did not do it; the message says why.
        """
        named: list[bytes] = []
        held_before: int | None = None
        while True:
            reply = await self._eval(connection, "register", named, self.instance.encode())
            match reply:
                case [int(epoch), int(number)]:
                    return epoch, number
            held = _still_held(reply)
            if held is None or (held_before is not None and held >= held_before):
                raise LedgerConnectionError(f"Valkey at {connection.address} does not register this instance: {reply}")
            # It still has holds of an epoch that nobody reaped (a registration whose answer was lost). They are given
            # back here; what is settled of them later counts as late.
            held_before = held
            named = await self._accounts_held(connection)

    async def heartbeat(self, connection: RespConnection, epoch: int) -> bool:
        """Says that the instance lives. False: it was reaped, and must register. Raises as :meth:`register`."""
        reply = await self._eval(connection, "heartbeat", [], self.instance.encode(), b"%d" % epoch)
        if isinstance(reply, ReplyError):
            raise LedgerConnectionError(f"Valkey at {connection.address} refused a heartbeat: {reply}")
        return bool(reply == 1)

    async def leave(self, connection: RespConnection) -> None:
        """Gives back what is still held, and takes the instance out of the living. Raises as :meth:`register`."""
        while True:
            named = await self._accounts_held(connection)
            reply = await self._eval(connection, "reap", named, self.instance.encode(), b"-1")
            if isinstance(reply, ReplyError):
                raise LedgerConnectionError(
                    f"Valkey at {connection.address} refused to deregister this instance: {reply}"
                )
            if not reply:
                return

    async def _accounts_held(self, connection: RespConnection) -> list[bytes]:
        fields = await self._answer(connection, b"HKEYS", self.instance_key)
        if isinstance(fields, ReplyError):
            raise LedgerConnectionError(f"Valkey at {connection.address} does not report the held units: {fields}")
        return sorted({field.split(b"\0", 1)[0] for field in fields if b"\0" in field})[:ACCOUNTS_MAX]

    async def _eval(self, connection: RespConnection, name: str, accounts: list[bytes], *arguments: bytes) -> Reply:
        body = script(name)
        tail = (b"%d" % (2 + len(accounts)), self.instance_key, self.alive_key, *accounts, *arguments)
        reply = await self._answer(connection, b"EVALSHA", body.sha, *tail)
        if isinstance(reply, ReplyError) and str(reply).startswith("NOSCRIPT"):
            reply = await self._answer(connection, b"EVAL", body.text, *tail)
        return reply

    async def _answer(self, connection: RespConnection, *parts: bytes) -> Reply:
        try:
            async with asyncio.timeout(self.answer_s):
                return await connection.call(*parts)
        except TimeoutError:
            connection.close()
            raise LedgerConnectionError(f"Valkey at {connection.address} does not respond") from None


def _still_held(reply: Reply) -> int | None:
    """How many shares a refusal ``HELD … shares: <n>`` counts; None for any other error."""
    text = str(reply)
    count = text.rpartition(" ")[2]
    return int(count) if text.startswith("HELD ") and count.isdecimal() else None
