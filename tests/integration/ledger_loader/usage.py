"""Uses accounts as a gateway would, through lua/batch.lua and lua/register.lua, and makes their periods older."""

from __future__ import annotations

from typing import Any

import msgpack
import orjson

from sidecar.ledger.keys import Keys
from sidecar.valkey.scripts import script
from sidecar.valkey.topology import Client
from tests.support.ledger_driver import acall_batch, one_answer, one_group


class Usage:
    """One gateway process with a home partition in every partition that it is asked about."""

    def __init__(self, client: Client, keys: Keys) -> None:
        self._client = client
        self._keys = keys
        self._registered: dict[int, tuple[int, int]] = {}

    async def hold(self, account: str, metric: str, units: int) -> list[Any]:
        """The script's answer for one hold: info, rate_left, day_left, code, x, y."""
        answer = await self._batch(account, [metric, 0, 0, 0, [units]])
        assert isinstance(answer, list)
        return answer

    async def spend(self, account: str, metric: str, units: int) -> None:
        """Count units whose hold is gone: no limit stands in their way."""
        await self._batch(account, [metric, 0, 0, units, []])

    async def touch(self, account: str, metric: str) -> None:
        """What any call does first: roll the account over if its period has ended."""
        await self._batch(account, [metric, 0, 0, 0, []])

    async def _batch(self, account: str, group: list[Any]) -> Any:
        partition = self._keys.partition(account)
        instance = self._keys.instance(partition, "tests")
        if partition not in self._registered:
            alive = self._keys.alive(partition)
            epoch, last = await self._run("register", [instance, alive], b"tests")
            self._registered[partition] = (epoch, last)
        epoch, last = self._registered[partition]
        self._registered[partition] = (epoch, last + 1)
        arguments = one_group(epoch, last + 1, f"tests.{partition}", "", group)
        names = [instance, self._keys.outbox(partition), self._keys.account(account)]
        reply = await acall_batch(self._client, names, arguments)
        return one_answer(reply)

    async def _run(self, name: str, keys: list[str], argument: bytes) -> Any:
        return await self._client.eval(script(name).text.decode(), len(keys), *keys, argument)

    async def stored(self, account: str) -> dict[str, Any]:
        """The account's hash, decoded field by field as docs/ledger.md has them."""
        fields: dict[bytes, bytes] = await self._client.hgetall(self._keys.account(account))  # type: ignore[assignment]
        packed = ("policy", "state", "prices", "periods")
        decoded: dict[str, Any] = {}
        for name, value in fields.items():
            text = name.decode()
            if text in packed:
                decoded[text] = msgpack.unpackb(value, raw=False)
            else:
                decoded[text] = orjson.loads(value) if text == "info" else value.decode()
        return decoded

    async def age(self, account: str, by_ms: int) -> None:
        """Move the account's periods into the past, as if time had gone by."""
        key = self._keys.account(account)
        stored = await self.stored(account)
        state, periods = stored["state"], [end - by_ms for end in stored["periods"]]
        state[1], state[2] = state[1] - by_ms, state[2] - by_ms
        packed = {
            "state": msgpack.packb(state, use_bin_type=False),
            "periods": msgpack.packb(periods, use_bin_type=False),
        }
        await self._client.hset(key, mapping=packed)  # type: ignore[arg-type]
