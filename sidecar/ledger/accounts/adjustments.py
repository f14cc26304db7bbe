"""What operators do to one account beside loading it: adjust its units or its funds, close it, delete it.

Each leaves a line in the audit log. An adjustment of units is a usage event of its own, so OpenMeter, and what is
synced from it, learn of it.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

import msgpack
import orjson
from redis.exceptions import ConnectionError as ValkeyConnectionError
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as ValkeyTimeoutError

from sidecar.basics.fault_reasons import reason_of
from sidecar.ledger.accounts.api_keys import ApiKeys
from sidecar.ledger.accounts.load_errors import LedgerUnavailable, LoadRefused, MalformedAccount, UnknownAccount
from sidecar.ledger.accounts.loader import AccountLoader
from sidecar.ledger.audit_log import AuditLog
from sidecar.ledger.keys import Keys
from sidecar.valkey.scripts import script
from sidecar.valkey.topology import CLIENT_ERRORS, Client

ROUTE: Final = "adjustment"
METHOD: Final = "ADJUST"
"""Of the event of an adjustment, by which it is told from a call's."""
ATTEMPTS: Final = 3
UNITS_MAX: Final = 10**12


@dataclass(frozen=True, slots=True)
class UnitsAdjusted:
    """Settled units of the metric in the period, ``before`` and ``after``, and the id of the event that says so."""

    before: int
    after: int
    event_id: str


@dataclass(frozen=True, slots=True)
class FundsAdjusted:
    """What the account may still spend, ``before`` and ``after``, in units of its currency."""

    before: Decimal
    after: Decimal
    currency: str


class AccountAdjuster:
    """All methods raise ``LedgerUnavailable``, ``UnknownAccount``, ``LoadRefused`` (with the reason) and
    ``MalformedAccount``."""

    def __init__(self, client: Client, keys: Keys, accounts: AccountLoader) -> None:
        self._client = client
        self._keys = keys
        self._accounts = accounts
        self._log = AuditLog(client, keys)

    def __repr__(self) -> str:
        return f"AccountAdjuster({self._keys.prefix})"

    async def adjust_units(self, account: str, metric: str, units: int, why: str) -> UnitsAdjusted:
        """Adds settled units to the current period, or takes some of them away (``units`` below 0)."""
        if not units or abs(units) > UNITS_MAX:
            raise LoadRefused(f"{units} units cannot be added")
        partition = self._keys.partition(account)
        origin = f"adjustment.{partition:02d}"
        digest = secrets.token_bytes(16)
        event = orjson.dumps([account, metric, units, ROUTE, METHOD, 0, 0, digest.hex(), None])
        keys = [
            self._keys.state(account), self._keys.account(account), self._keys.clock(partition),
            self._keys.outbox(partition), self._keys.meta(partition),
        ]  # fmt: skip
        argument = msgpack.packb([account, metric, units, event, digest, origin], use_bin_type=False)
        reply = await self._run("adjust", account, keys, argument)
        if reply[0] == b"REPEAT":
            # The reply to the first attempt was lost; the numbers are told by what is stored.
            state = await self._accounts.state(account)
            after = sum(
                usage.settled for each in state.subscriptions for usage in each.usages if usage.metric == metric
            )
            done = UnitsAdjusted(after - units, after, origin)
        else:
            before, after, number = map(int, reply[1:])
            done = UnitsAdjusted(before, after, f"{origin}.{number}.0")
        await self._note(
            "account adjust", account, why,
            {"metric": metric, "settled": done.before}, {"settled": done.after, "event": done.event_id},
        )  # fmt: skip
        return done

    async def adjust_funds(self, account: str, amount: Decimal, why: str) -> FundsAdjusted:
        """Gives money to the account, or takes some (``amount`` below 0), in units of its currency. It counts as less
        cost of earlier periods, so a later load of the account keeps it.

        An account whose funds Lago decides is refused: top up its wallet there.
        """
        before, after = await self._accounts.adjust_unsettled(account, -amount)
        done = FundsAdjusted(before.money(before.available() or 0), after.money(after.available() or 0), after.currency)
        await self._note(
            "account adjust", account, why,
            {"available": str(done.before), "unsettled": str(before.money(before.unsettled))},
            {"available": str(done.after), "unsettled": str(after.money(after.unsettled)), "funds": str(amount)},
        )  # fmt: skip
        return done

    async def close(self, account: str, why: str) -> int:
        """Refuses the account's calls for good; what it owes stays. Answers the new version."""
        before = await self._accounts.state(account)
        version = await self._accounts.close(account)
        await self._note("account close", account, why, {"status": before.status.word}, {"status": "closed"})
        return version

    async def delete(self, account: str, why: str, *, although_owed: bool = False) -> None:
        """Removes a closed account that holds nothing, with its API keys. ``although_owed``: even if it has units or
        cost that no invoice has billed; the audit log keeps them."""
        try:
            state = await self._accounts.state(account)
        except MalformedAccount:
            state = None
        digests: Sequence[str] = state.about.api_keys if state is not None else ()
        partition = self._keys.partition(account)
        keys = [
            self._keys.state(account), self._keys.account(account), self._keys.accounts(partition),
            self._keys.clock(partition),
        ]  # fmt: skip
        reply = await self._run("delete", account, keys, account, int(although_owed))
        try:
            await ApiKeys(self._client, self._keys).remove(account, digests)
            await self._client.delete(self._keys.billing(account), self._keys.sync(account))
        except CLIENT_ERRORS as error:
            raise LedgerUnavailable(f"account {account} is deleted, its keys may not be: {reason_of(error)}") from error
        await self._note("account delete", account, why, {"state": bytes(reply[1]).hex()}, {})

    async def _run(self, name: str, account: str, keys: Sequence[str], *arguments: Any) -> Any:
        text = script(name).text.decode()
        for attempt in range(ATTEMPTS):
            try:
                return await self._client.eval(text, len(keys), *keys, *arguments)
            except ResponseError as error:
                word, _, reason = str(error).partition(" ")
                if word == "INVALID" and reason == f"there is no account {account}":
                    raise UnknownAccount(f"there is no account {account!r}") from None
                if word == "INVALID":
                    raise LoadRefused(reason) from None
                if word == "ACCOUNT":
                    raise MalformedAccount(f"account {account!r} cannot be read: {reason}"[:300]) from None
                raise LedgerUnavailable(f"the ledger refused it: {reason_of(error)}") from error
            except (ValkeyConnectionError, ValkeyTimeoutError) as error:
                # The script recognises a repetition.
                if attempt == ATTEMPTS - 1:
                    raise LedgerUnavailable(f"whether it was done is not known: {reason_of(error)}") from error
            except CLIENT_ERRORS as error:
                raise LedgerUnavailable(f"the ledger cannot be reached: {reason_of(error)}") from error
        raise AssertionError("unreachable")

    async def _note(self, what: str, account: str, why: str, before: dict[str, Any], after: dict[str, Any]) -> None:
        try:
            await self._log.add(what, account, before=before, after=after, why=why)
        except CLIENT_ERRORS as error:
            raise LedgerUnavailable(f"it is done, but not in the audit log: {reason_of(error)}") from error
