"""An instance's registration at its home partition: register, heartbeat, leave. Each is a script call on a given
connection.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from sidecar.ledger.client.server_answers import Meaning, server_answer
from sidecar.ledger.keys import Keys
from sidecar.ledger.ledger_format import FormatError, new_generation, nothing_there, open_arguments, partition_format
from sidecar.valkey.resp import LedgerConnectionError, Reply, ReplyError, RespConnection
from sidecar.valkey.scripts import script


@dataclass(frozen=True, slots=True)
class Beat:
    """What the ledger knows of an instance. ``alive``: in the epoch that it named. ``number``: of its last batch; 0 if
    it is not known. ``generation``: the partition's, "" if there is none."""

    alive: bool
    number: int
    generation: str


@dataclass(frozen=True, slots=True)
class Registration:
    """``answer_s``: how long a call may take; a connection that is slower is closed. ``create``: whether a partition
    that has nothing becomes a new ledger's."""

    instance: str
    home_partition: int
    keys: Keys
    answer_s: float
    create: bool = True
    instance_key: bytes = field(init=False)
    alive_key: bytes = field(init=False)
    clock_key: bytes = field(init=False)
    meta_key: bytes = field(init=False)

    def __post_init__(self) -> None:
        keys, home = self.keys, self.home_partition
        object.__setattr__(self, "instance_key", keys.instance(home, self.instance).encode())
        object.__setattr__(self, "alive_key", keys.alive(home).encode())
        object.__setattr__(self, "clock_key", keys.clock(home).encode())
        object.__setattr__(self, "meta_key", keys.meta(home).encode())

    async def register(self, connection: RespConnection, *, create: bool | None = None) -> tuple[int, int, str]:
        """Enters, or enters again. Answers the new epoch, the number of the last batch, and the partition's generation.
        ``create`` overrides the field.

        Raises:
            LedgerConnectionError: Valkey did not do it, or the ledger does not fit; the message says why.
        """
        await self._open(connection, self.create if create is None else create)
        reply = await self._eval(
            connection, "register", self._names, self.instance.encode(), b"%d" % self.home_partition
        )
        match reply:
            case [int(epoch), int(number), bytes(generation)]:
                return epoch, number, generation.decode()
        raise LedgerConnectionError(f"Valkey at {connection.address} does not register this instance: {reply}")

    async def _open(self, connection: RespConnection, create: bool) -> None:
        names, arguments = open_arguments(self.keys, self.home_partition, new_generation() if create else "")
        parts = [str(argument).encode() for argument in arguments]
        reply = await self._eval(connection, "open", [name.encode() for name in names], *parts)
        if isinstance(reply, ReplyError):
            raise LedgerConnectionError(f"Valkey at {connection.address} does not tell the ledger's format: {reply}")
        try:
            found = partition_format(reply)
            if found is None:
                raise FormatError(nothing_there(self.keys, [self.home_partition]))
            found.check(self.keys)
        except FormatError as error:
            raise LedgerConnectionError(f"Valkey at {connection.address}: {error}") from None

    async def heartbeat(self, connection: RespConnection, epoch: int, chain: bytes = b"") -> Beat | None:
        """Says that the instance lives, and what its chain value is. None: the server cannot say anything now. Raises
        as :meth:`register`."""
        reply = await self._eval(connection, "heartbeat", self._names, self.instance.encode(), b"%d" % epoch, chain)
        match reply:
            case [int(alive), int(number), bytes(generation)]:
                return Beat(bool(alive), number, generation.decode())
        if isinstance(reply, ReplyError) and server_answer(str(reply)).meaning in (Meaning.ASK, Meaning.LATER):
            return None  # the server lives and knows the epoch or will; the next heartbeat tells
        raise LedgerConnectionError(f"Valkey at {connection.address} refused a heartbeat: {reply}")

    async def leave(self, connection: RespConnection, chain: bytes = b"") -> None:
        """Takes the instance out of the living, and says what its chain value is; what it still holds is given back by
        the reaper. Raises as :meth:`register`."""
        reply = await self._eval(connection, "reap", self._names, self.instance.encode(), b"-1", chain)
        if isinstance(reply, ReplyError):
            raise LedgerConnectionError(f"Valkey at {connection.address} refused to deregister this instance: {reply}")

    @property
    def _names(self) -> list[bytes]:
        return [self.instance_key, self.clock_key, self.alive_key, self.meta_key]

    async def _eval(self, connection: RespConnection, name: str, names: list[bytes], *arguments: bytes) -> Reply:
        # By its digest first: a server takes no long command from who has not said his password.
        body = script(name)
        tail = (b"%d" % len(names), *names, *arguments)
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
