"""Writes usage into the ledger as if gateways had charged it in hours that are over, and ends periods.

Straight into the accounts' keys, since Valkey's clock cannot be set back: a state with its counters, and hours of days
(docs/ledger.md, "An account"; lua/lib/account.lua has the layout).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any, Final

import msgpack
import orjson

from loadtests.billing_scale.bank import Bank, Moment, account_of
from sidecar.ledger.accounts.state_values import StateValues, unpack_state
from sidecar.ledger.hours import HOURS_OF_DAY
from sidecar.ledger.keys import Keys
from sidecar.valkey.topology import Client

PAGE: Final = 200
Commands = list[tuple[str | bytes, ...]]


async def write_usage(client: Client, keys: Keys, bank: Bank, moment: Moment) -> None:
    """What ``moment`` says that every account has used, instead of what was there."""
    async for numbers, states in _pages(client, keys, bank):
        commands: Commands = []
        for number, values in zip(numbers, states, strict=True):
            counters = []
            days: dict[int, bytearray] = {}
            for metric in sorted(bank.used(number)):
                name = bank.metric(metric)
                total = moment.total(bank, number, metric)
                counters.append([1, name, 0, 1, 0, 0, 0, moment.hours[1], total, 0, 0])
                for hour in range(*moment.hours):
                    units = moment.times * bank.units(number, metric, hour)
                    count = (hour % HOURS_OF_DAY, values.subscriptions[0][0], name, units)
                    packed = b"".join(msgpack.packb(part, use_bin_type=False) for part in count)
                    days.setdefault(hour // HOURS_OF_DAY, bytearray()).extend(packed)
            account = account_of(number)
            commands.append(("SET", keys.state(account), replace(values, counters=counters).packed()))
            if days:
                fields = [part for day, found in days.items() for part in (f"h{day}", bytes(found))]
                commands.append(("HSET", keys.account(account), *fields))
        await replies(client, commands)


async def end_periods(client: Client, keys: Keys, bank: Bank, until_s: int) -> None:
    """Every account's period, and the link to Lago's that the reconciler has kept, end at ``until_s``."""
    end_ms = until_s * 1000
    async for numbers, states in _pages(client, keys, bank):
        accounts = [account_of(number) for number in numbers]
        commands: Commands = []
        stored = await replies(client, [("HGETALL", keys.billing(account)) for account in accounts])
        for account, values, fields in zip(accounts, states, stored, strict=True):
            [[name, start_ms, _]] = values.subscriptions
            ended = replace(values, subscriptions=[[name, start_ms, end_ms]])
            commands.append(("SET", keys.state(account), ended.packed()))
            for field, value in fields.items():
                if field.startswith(b"link:"):
                    link = orjson.loads(value) | {"ledger_end_ms": end_ms, "lago_to_ms": end_ms}
                    commands.append(("HSET", keys.billing(account), field, orjson.dumps(link)))
        await replies(client, commands)


async def _pages(client: Client, keys: Keys, bank: Bank) -> AsyncIterator[tuple[Sequence[int], list[StateValues]]]:
    for first in range(0, bank.accounts, PAGE):
        numbers = range(first, min(first + PAGE, bank.accounts))
        states = await replies(client, [("GET", keys.state(account_of(number))) for number in numbers])
        assert None not in states, "the first sweep, which loads the accounts, comes before their usage"
        yield numbers, [unpack_state(state) for state in states]


async def replies(client: Client, commands: Commands) -> list[Any]:
    """The replies of one pipeline."""
    pipeline: Any = client.pipeline(transaction=False)
    for command in commands:
        pipeline.execute_command(*command)
    return list(await pipeline.execute())
