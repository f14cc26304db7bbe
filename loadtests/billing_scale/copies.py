"""Makes accounts that the reconciler would have loaded by copying one that it has: ids have one length, so that they
can be exchanged in whatever is stored.
"""

from __future__ import annotations

from typing import Any

from loadtests.billing_scale.bank import CUSTOMER, SUBSCRIPTION, WALLET, Bank, account_of, lago_id
from loadtests.billing_scale.ledger_usage import PAGE, Commands, replies
from sidecar.billing.reconcile.reconcile_state import decode_reconcile_state
from sidecar.billing.reconcile.sweep import Fingerprints
from sidecar.ledger.keys import Keys
from sidecar.valkey.topology import Client


async def copy_accounts(client: Client, keys: Keys, bank: Bank, loaded: int, prints: Fingerprints) -> None:
    """The accounts from number ``loaded`` on, as copies of number 0. ``prints``: of all, as Lago lists them now."""
    first = account_of(0)
    state, fields, billing, scheduled = await replies(
        client,
        [
            ("GET", keys.state(first)),
            ("HGETALL", keys.account(first)),
            ("HGETALL", keys.billing(first)),
            ("ZSCORE", keys.scheduled_reloads(), f"account:{first}"),
        ],
    )
    last = decode_reconcile_state(billing)
    for start in range(loaded, bank.accounts, PAGE):
        commands: Commands = []
        for number in range(start, min(start + PAGE, bank.accounts)):
            account = account_of(number)

            def own(value: bytes, number: int = number) -> bytes:
                for kind in (CUSTOMER, SUBSCRIPTION, WALLET):
                    value = value.replace(lago_id(0, kind).encode(), lago_id(number, kind).encode())
                return value.replace(first.encode(), account_of(number).encode())

            kept = {own(name): own(value) for name, value in billing.items()}
            kept[b"last"] = last.with_fingerprint(prints.of(account)).fields()["last"].encode()
            commands += [
                ("SET", keys.state(account), own(state)),
                ("HSET", keys.account(account), *_pairs({name: own(value) for name, value in fields.items()})),
                ("HSET", keys.billing(account), *_pairs(kept)),
                ("ZADD", keys.accounts(keys.partition(account)), "0", account),
            ]
            if scheduled is not None:
                commands.append(("ZADD", keys.scheduled_reloads(), str(int(float(scheduled))), f"account:{account}"))
        await replies(client, commands)


def _pairs(fields: dict[bytes, bytes]) -> list[Any]:
    return [part for pair in fields.items() for part in pair]
