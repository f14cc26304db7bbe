"""Uses accounts as a gateway would, through lua/batch.lua and lua/register.lua, and makes their periods older."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import msgpack

from sidecar.ledger.accounts.account_state import FIELDS
from sidecar.ledger.accounts.state_values import StateValues, unpack_state
from sidecar.ledger.keys import Keys
from sidecar.ledger.ledger_format import open_ledger
from sidecar.valkey.scripts import script
from sidecar.valkey.topology import Client
from tests.support.ledger_driver import acall_batch, account_keys, one_group
from tests.support.ledger_state import pack


class Usage:
    """One gateway process, ``name``, with a home partition in every partition that it is asked about."""

    def __init__(self, client: Client, keys: Keys, name: str = "tests") -> None:
        self._client = client
        self._keys = keys
        self._name = name
        self._registered: dict[int, tuple[int, int]] = {}

    async def hold(self, account: str, metric: str, units: int) -> list[Any]:
        """The script's answer for one hold: view, rate_left, day_left, version, code, x, y."""
        answer = await self._batch(account, metric, holds=(units,))
        assert len(answer) == 7
        return answer

    async def settle(self, account: str, metric: str, units: int, event: str = "") -> None:
        """Count units that are held. ``event``: of it, as JSON."""
        await self._batch(account, metric, settled=units, event=event)

    async def release(self, account: str, metric: str, units: int) -> None:
        """Give back units that are held."""
        await self._batch(account, metric, released=units)

    async def spend(self, account: str, metric: str, units: int) -> None:
        """Count units whose hold is gone: no limit stands in their way."""
        await self._batch(account, metric, late=units)

    async def touch(self, account: str, metric: str) -> None:
        """What any call does first: roll the account over if its period has ended."""
        await self._batch(account, metric)

    async def _batch(
        self, account: str, metric: str, *, settled: int = 0, released: int = 0, late: int = 0,
        holds: Sequence[int] = (), event: str = "",
    ) -> list[Any]:  # fmt: skip
        partition = self._keys.partition(account)
        first = self._keys.instance(partition, self._name), self._keys.clock(partition)
        if not self._registered:
            await open_ledger(self._client, self._keys)
        if partition not in self._registered:
            names = [*first, self._keys.alive(partition), self._keys.meta(partition)]
            text = script("register").text
            epoch, last, _ = await self._client.execute_command("EVAL", text, 4, *names, self._name, partition)
            self._registered[partition] = (epoch, last)
        epoch, last = self._registered[partition]
        self._registered[partition] = (epoch, last + 1)
        group = metric, settled, released, late, holds
        arguments = one_group(epoch, last + 1, f"{self._name}.{partition}", event, group)
        names = [*first, self._keys.outbox(partition), *account_keys(self._keys, account)]
        # A view is bytes.
        _, _, answers, _, _ = msgpack.unpackb(await acall_batch(self._client, names, arguments), raw=True)
        return [*(answers[0] or (False, -1, -1, 0)), *answers[1:]] if answers else []

    async def stored(self, account: str) -> dict[str, Any]:
        """What the account's hash has of the fields that a loader reads, those of msgpack decoded, and ``state``."""
        values = await self._client.hmget(self._keys.account(account), *FIELDS)  # type: ignore[misc]
        packed = await self._client.get(self._keys.state(account))
        decoded: dict[str, Any] = {} if packed is None else {"state": unpack_state(packed)}
        for name, value in zip(FIELDS, values, strict=True):
            if value is not None:
                is_text = name in ("digits", "fence")
                decoded[name] = (
                    value.decode() if is_text else msgpack.unpackb(value, raw=name == "about", strict_map_key=False)
                )
        return decoded

    async def age(self, account: str, by_ms: int) -> None:
        """Move the account's periods into the past, as if time had gone by."""
        stored = await self.stored(account)
        state: StateValues = stored["state"]
        subscriptions = [(name, start - by_ms, end - by_ms) for name, start, end in state.subscriptions]
        await self._client.set(self._keys.state(account), replace(state, subscriptions=subscriptions).packed())
        periods = [[ends[0] - by_ms, *ends[1:]] if ends else [] for ends in stored["periods"]]
        await self._client.hset(self._keys.account(account), "periods", pack(periods))  # type: ignore[misc, arg-type]
