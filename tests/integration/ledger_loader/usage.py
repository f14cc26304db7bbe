"""Uses accounts as a gateway would, through lua/batch.lua and lua/register.lua, and makes their periods older."""

from __future__ import annotations

from typing import Any

import msgpack
from redis.exceptions import ResponseError

from sidecar.ledger.accounts.account_state import FIELDS
from sidecar.ledger.keys import Keys
from sidecar.ledger.ledger_format import open_ledger
from sidecar.valkey.scripts import function, script
from sidecar.valkey.topology import Client

HEAD, SUBSCRIPTION = 14, 3
"""Values of a state before its subscriptions, and of each of those."""


def pack(value: Any) -> bytes:
    """As Lua reads it: cmsgpack does not know the bin type."""
    return bytes(msgpack.packb(value, use_bin_type=False))


class Usage:
    """One gateway process with a home partition in every partition that it is asked about."""

    def __init__(self, client: Client, keys: Keys) -> None:
        self._client = client
        self._keys = keys
        self._registered: dict[int, tuple[int, int]] = {}

    async def hold(self, account: str, metric: str, units: int) -> list[Any]:
        """The script's answer for one hold: view, rate_left, day_left, version, code, x, y."""
        answer = await self._batch(account, metric, hold=units)
        assert len(answer) == 7
        return answer

    async def spend(self, account: str, metric: str, units: int) -> None:
        """Count units whose hold is gone: no limit stands in their way."""
        await self._batch(account, metric, late=units)

    async def touch(self, account: str, metric: str) -> None:
        """What any call does first: roll the account over if its period has ended."""
        await self._batch(account, metric)

    async def _batch(self, account: str, metric: str, *, hold: int = 0, late: int = 0) -> list[Any]:
        partition = self._keys.partition(account)
        instance, meta = self._keys.instance(partition, "tests"), self._keys.meta(partition)
        if not self._registered:
            await open_ledger(self._client, self._keys)
        if partition not in self._registered:
            names = [instance, self._keys.alive(partition), meta]
            text = script("register").text
            epoch, last, _ = await self._client.execute_command("EVAL", text, 3, *names, "tests", partition)
            self._registered[partition] = (epoch, last)
        epoch, last = self._registered[partition]
        self._registered[partition] = (epoch, last + 1)
        head = epoch, last + 1, f"tests.{partition}", "", 1000, 1, [metric], []
        group = 1, 0, 1, 0, 0, late, *((-1, hold) if hold else (0,))
        names = [instance, meta, self._keys.outbox(partition), self._keys.account(account)]
        batch = function("batch")
        arguments = batch.name.decode(), len(names), *names, b"".join(map(pack, head)), b"".join(map(pack, group))
        try:
            reply = await self._client.fcall(*arguments)
        except ResponseError as error:
            if "Function not found" not in str(error):
                raise
            await self._client.function_load(batch.library.decode(), replace=True)
            reply = await self._client.fcall(*arguments)
        _, _, holds, _, _ = msgpack.unpackb(reply, raw=True)
        return [*(holds[0] or (False, -1, -1, 0)), *holds[1:]] if holds else []

    async def stored(self, account: str) -> dict[str, Any]:
        """What the account's hash has of the fields that a loader reads, those of msgpack decoded."""
        values = await self._client.hmget(self._keys.account(account), *FIELDS)  # type: ignore[misc]
        decoded: dict[str, Any] = {}
        for name, value in zip(FIELDS, values, strict=True):
            if value is not None:
                is_text = name in ("digits", "fence")
                decoded[name] = value.decode() if is_text else msgpack.unpackb(value, raw=name == "about")
        return decoded

    async def age(self, account: str, by_ms: int) -> None:
        """Move the account's periods into the past, as if time had gone by."""
        stored = await self.stored(account)
        state, periods = stored["s"], [[end - by_ms for end in ends] for ends in stored["periods"]]
        for at in range(HEAD, HEAD + SUBSCRIPTION * state[12], SUBSCRIPTION):
            state[at + 1 : at + 3] = state[at + 1] - by_ms, state[at + 2] - by_ms
        mapping = {"s": pack(state), "periods": pack(periods)}
        await self._client.hset(self._keys.account(account), mapping=mapping)  # type: ignore[misc, arg-type]
