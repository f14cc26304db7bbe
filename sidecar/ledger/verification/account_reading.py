"""Reads accounts whole, many at one instant each."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from sidecar.basics.fault_reasons import reason_of
from sidecar.ledger.keys import Keys
from sidecar.ledger.verification.pace import Pace
from sidecar.valkey.topology import Client

PAGE_ACCOUNTS: Final = 100
PAGE_FIELDS: Final = 2_000
"""Fields after which a page ends: an account may have 10,000 idempotency keys."""

_READ: Final = """
-- Accounts as they are at one instant, without their idempotency keys.
-- KEYS [1 2, 3 4, ...] state and hash of each account   ARGV [1] fields after which no further account is read
-- reply {{state, {field, value, ...}, idempotency keys, those without a time}, ...}
local found, left = {}, tonumber(ARGV[1])
for k = 1, #KEYS, 2 do
  if left <= 0 then
    break
  end
  local hash = redis.pcall('HGETALL', KEYS[k + 1])
  local parts, marks, broken = hash, 0, 0
  if not hash.err then
    parts = {}
    for f = 1, #hash, 2 do
      if #hash[f] == 17 and string.byte(hash[f]) == 105 then
        marks = marks + 1
        broken = broken + ((#hash[f + 1] < 9 or string.byte(hash[f + 1]) ~= 207) and 1 or 0)
      else
        parts[#parts + 1] = hash[f]
        parts[#parts + 1] = hash[f + 1]
      end
    end
    left = left - 1 - #hash / 2
  end
  found[#found + 1] = {redis.pcall('GET', KEYS[k]), parts, marks, broken}
end
return found
"""


@dataclass(frozen=True, slots=True)
class StoredAccount:
    """``state`` None: there is none. ``error``: why a key cannot be read, or "". ``marks``: idempotency keys, of which
    ``broken_marks`` have no time."""

    id: str
    state: bytes | None = None
    fields: Mapping[str, bytes] = field(default_factory=dict)
    marks: int = 0
    broken_marks: int = 0
    error: str = ""


async def read_accounts(
    client: Client, keys: Keys, accounts: Sequence[str], pace: Pace
) -> AsyncIterator[list[StoredAccount]]:
    """Accounts of one partition, as many at once as are not too much.

    Raises:
        RedisError, OSError: Valkey cannot be reached.
    """
    at = 0
    while at < len(accounts):
        await pace.wait()
        some = accounts[at : at + PAGE_ACCOUNTS]
        names = [name for account in some for name in (keys.state(account), keys.account(account))]
        replies: Any = await client.eval(_READ, len(names), *names, PAGE_FIELDS)
        yield [_stored(account, reply) for account, reply in zip(some, replies, strict=False)]
        at += max(1, len(replies))


def _stored(account: str, reply: Any) -> StoredAccount:
    state, parts, marks, broken = reply
    for part, name in ((state, "state"), (parts, "hash")):
        if isinstance(part, Exception):
            return StoredAccount(account, error=f"its {name}: {reason_of(part)}")
    fields = {
        name.decode("utf-8", "backslashreplace"): value for name, value in zip(parts[::2], parts[1::2], strict=True)
    }
    return StoredAccount(account, state, fields, marks, broken)
