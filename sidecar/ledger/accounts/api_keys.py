"""Maps API keys to accounts: small hashes from SHA-256 to account id (docs/ledger.md, "Keys")."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from typing import Final

from sidecar.basics.fault_reasons import reason_of
from sidecar.ledger.accounts.load_errors import ApiKeyTaken, LedgerUnavailable
from sidecar.ledger.keys import Keys
from sidecar.valkey.topology import CLIENT_ERRORS, Client

_REMOVE: Final = """
-- KEYS [1] the hash that has the API key  ARGV [1] its SHA-256 [2] account id
if redis.call('HGET', KEYS[1], ARGV[1]) == ARGV[2] then
  redis.call('HDEL', KEYS[1], ARGV[1])
end
"""

_SHA256 = re.compile(r"[0-9a-f]{64}")

#: What a header field can carry as one value: visible ASCII without the comma that separates a list.
_KEY = re.compile(r"[!-+\--~]{1,512}")

KEY_LENGTH_MIN: Final = 16
"""Keys are stored under a plain hash, which protects a random key but not a short one."""


def is_sha256(text: str) -> bool:
    """Whether ``text`` is a SHA-256 in lower-case hexadecimal."""
    return _SHA256.fullmatch(text) is not None


def digest_of(key: str) -> str:
    """The SHA-256 of a key in lower-case hexadecimal: the ledger keeps nothing else of it.

    Raises:
        ValueError: it is too short, or no request could carry it. The message does not repeat it.
    """
    if _KEY.fullmatch(key) is None:
        raise ValueError("should be at most 512 visible ASCII characters without comma")
    if len(key) < KEY_LENGTH_MIN:
        raise ValueError(f"should have at least {KEY_LENGTH_MIN} random characters: a shorter key can be guessed")
    return hashlib.sha256(key.encode()).hexdigest()


class ApiKeys:
    """The ledger's API keys. Fit to be identity's ``KeyStore``: give it the exception that identity expects."""

    def __init__(self, client: Client, keys: Keys, *, unavailable: type[Exception] = LedgerUnavailable) -> None:
        self._client = client
        self._keys = keys
        self._unavailable = unavailable

    async def account_of(self, sha256_hex: str) -> str | None:
        """The account that a key belongs to, None if there is no such key.

        Raises:
            LedgerUnavailable: or what the constructor was given.
        """
        try:
            return await self._owner(sha256_hex)
        except CLIENT_ERRORS as error:
            raise self._unavailable(f"cannot read an API key from the ledger: {reason_of(error)}") from error

    async def assign(self, account: str, digests: Iterable[str]) -> list[str]:
        """Make keys the account's; answer those that were new.

        Raises:
            ApiKeyTaken: one is another account's; then none of them was assigned.
            CLIENT_ERRORS: the ledger cannot be reached; then some may have been.
        """
        new: list[str] = []
        for digest in digests:
            owner: str | None = None
            while owner is None:
                if await self._client.execute_command("HSETNX", *self._place(digest), account):
                    new.append(digest)
                    break
                owner = await self._owner(digest)
            if owner not in (None, account):
                await self.remove(account, new)
                raise ApiKeyTaken(f"the API key sha256 {digest[:12]}… belongs to the account {owner!r}")
        return new

    async def remove(self, account: str, digests: Iterable[str]) -> None:
        """Remove keys that are the account's; raises ``CLIENT_ERRORS``."""
        for digest in digests:
            key, sha256 = self._place(digest)
            await self._client.execute_command("EVAL", _REMOVE, 1, key, sha256, account)

    async def _owner(self, digest: str) -> str | None:
        account = await self._client.execute_command("HGET", *self._place(digest))
        return account.decode() if isinstance(account, bytes) else account

    def _place(self, digest: str) -> tuple[str, bytes]:
        """Key and field."""
        sha256 = bytes.fromhex(digest)
        return self._keys.api_keys(sha256), sha256

    def __repr__(self) -> str:
        return f"ApiKeys({self._keys.prefix})"
