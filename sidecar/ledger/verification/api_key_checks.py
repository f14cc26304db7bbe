"""API keys and their accounts name each other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from redis.exceptions import ResponseError

from sidecar.basics.fault_reasons import reason_of
from sidecar.ledger.accounts.account_about import DIGEST_BYTES, About
from sidecar.ledger.keys import Keys
from sidecar.ledger.verification.pace import Pace
from sidecar.ledger.verification.verify_report import Check, Difference
from sidecar.valkey.calls import Call, call_each, raise_first
from sidecar.valkey.topology import Client

SCAN_FIELDS: Final = 500


async def check_owned_keys(client: Client, keys: Keys, owned: Sequence[tuple[str, str]]) -> list[Difference]:
    """``owned``: accounts, and an API key of each that they name. Raises what redis-py raises."""
    places = [(keys.api_keys(bytes.fromhex(digest)), bytes.fromhex(digest)) for _, digest in owned]
    replies = await call_each(client, [Call(key, ("HGET", key, field)) for key, field in places])
    raise_first(replies)
    return [
        Difference(
            Check.API_KEYS, f"account {account}, API key {digest[:12]}…", "the account names it, it names another",
            account, "nothing" if owner is None else owner.decode("utf-8", "backslashreplace"),
        )
        for (account, digest), owner in zip(owned, replies, strict=True)
        if owner != account.encode()
    ]  # fmt: skip


async def check_api_keys(client: Client, keys: Keys, hashes: Iterable[str], pace: Pace) -> list[Difference]:
    """``hashes``: the keys in Valkey that have API keys. Raises what redis-py raises."""
    found: list[Difference] = []
    for key in sorted(hashes):
        cursor = 0
        while True:
            await pace.wait()
            reply = (await call_each(client, [Call(key, ("HSCAN", key, str(cursor), "COUNT", SCAN_FIELDS))]))[0]
            if isinstance(reply, ResponseError):
                found.append(Difference(Check.READABLE, key, "it cannot be read", "a hash", reason_of(reply)[:200]))
                break
            raise_first([reply])
            position, fields = reply
            pairs = (
                list(fields.items()) if isinstance(fields, dict) else list(zip(fields[::2], fields[1::2], strict=True))
            )
            found += await _check_pairs(client, keys, key, pairs)
            cursor = int(position)
            if cursor == 0:
                break
    return found


async def _check_pairs(client: Client, keys: Keys, key: str, pairs: list[tuple[bytes, bytes]]) -> list[Difference]:
    accounts = [owner.decode("utf-8", "replace") for _, owner in pairs]
    replies: list[Any] = await call_each(
        client, [Call(keys.account(account), ("HGET", keys.account(account), "about")) for account in accounts]
    )
    found = []
    for (digest, _), account, about in zip(pairs, accounts, replies, strict=True):
        place = f"API key {digest.hex()[:12]}…"
        if len(digest) != DIGEST_BYTES or keys.api_keys(digest) != key:
            found.append(
                Difference(Check.API_KEYS, place, "it is in the wrong hash, where nobody finds it", "another", key)
            )
        elif about is None:
            found.append(Difference(Check.API_KEYS, place, "its account does not exist", account, "nothing"))
        elif digest.hex() not in _listed(about):
            found.append(Difference(Check.API_KEYS, place, "its account does not name it", account, "other keys"))
    return found


def _listed(about: Any) -> tuple[str, ...]:
    try:
        return About.unpacked(about).api_keys
    except (ValueError, TypeError, LookupError, AttributeError):
        return ()
