"""Where books and frozen events are kept: one hash per account in Valkey.

Fields: ``token`` the highest leader's token that has written, ``book:<period's start>:<metric>``,
``out:<transaction id>`` a frozen event that Lago is not known to have, ``past`` what forgotten periods came to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol, cast

import msgpack
import orjson

from sidecar.billing.usage_sync.frozen_events import Outgoing, decode_outgoing, encode_outgoing
from sidecar.billing.usage_sync.pushed_usage import Book, decode_book, encode_book
from sidecar.ledger.keys import Keys
from sidecar.valkey.topology import Client

APPLY: Final = """
-- Changes what is remembered of an account, all of it or nothing, unless somebody else has changed it or a
-- later leader came.
--
-- KEYS [1] the account's sync hash
-- ARGV [1] token [2] msgpack {field, value or false, ...} expected [3] msgpack {field, value, ...} to set
--      [4] msgpack {field, ...} to remove
-- reply OK, FENCED or CHANGED
--
-- Why a token: a leader that stood still may wake when another has taken over. Why what is expected: an event is frozen
-- once and for all, and its revision must not be given to another one. Why a call that finds its own work done answers
-- OK: the client repeats a call whose reply was lost.
local key, token = KEYS[1], tonumber(ARGV[1])
local held = tonumber(redis.call('HGET', key, 'token') or 0)
if held > token then
  return 'FENCED'
end
local expected, values, removed = cmsgpack.unpack(ARGV[2]), cmsgpack.unpack(ARGV[3]), cmsgpack.unpack(ARGV[4])
local changed = false
for i = 1, #expected, 2 do
  if redis.call('HGET', key, expected[i]) ~= expected[i + 1] then
    changed = true
    break
  end
end
if changed then
  for i = 1, #values, 2 do
    if redis.call('HGET', key, values[i]) ~= values[i + 1] then
      return 'CHANGED'
    end
  end
  for _, name in ipairs(removed) do
    if redis.call('HEXISTS', key, name) == 1 then
      return 'CHANGED'
    end
  end
  return 'OK'
end
if held < token then
  redis.call('HSET', key, 'token', ARGV[1])
end
for i = 1, #values, 2 do
  redis.call('HSET', key, values[i], values[i + 1])
end
for _, name in ipairs(removed) do
  redis.call('HDEL', key, name)
end
return 'OK'
"""


class SyncStateError(Exception):
    """What is remembered of an account cannot be used. The message names the account."""


class Fenced(Exception):
    """Another leader has taken over; this one must stop."""


class Changed(SyncStateError):
    """Somebody else has changed it since it was read. Nothing was written."""


@dataclass(frozen=True, slots=True)
class Past:
    """Periods that are forgotten: every one that starts by ``until_s``, and what they came to per metric."""

    until_s: int = -1
    pushed: Mapping[str, int] = field(default_factory=dict)
    late: Mapping[str, int] = field(default_factory=dict)
    carried: Mapping[str, int] = field(default_factory=dict)

    def with_book(self, book: Book) -> Past:
        """These periods and this one."""
        return Past(
            max(self.until_s, book.start_s),
            _plus(self.pushed, book.metric, book.pushed),
            _plus(self.late, book.metric, book.late),
            _plus(self.carried, book.metric, book.carried_out),
        )


@dataclass(frozen=True, slots=True)
class Remembered:
    """All that is remembered of an account; ``books`` by start in seconds and metric, ``outgoing`` by transaction id.

    ``raw`` is what was read, by which a later change by somebody else is noticed.
    """

    books: Mapping[tuple[int, str], Book] = field(default_factory=dict)
    outgoing: Mapping[str, Outgoing] = field(default_factory=dict)
    past: Past = field(default_factory=Past)
    token: int = 0
    raw: Mapping[bytes, bytes] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class Change:
    """What to write: books and events as they are to be, events and books to forget."""

    books: Sequence[Book] = ()
    outgoing: Sequence[Outgoing] = ()
    delivered: Sequence[str] = ()
    forgotten: Sequence[tuple[int, str]] = ()
    past: Past | None = None

    @property
    def is_empty(self) -> bool:
        return not (self.books or self.outgoing or self.delivered or self.forgotten or self.past)

    def values(self) -> dict[bytes, bytes]:
        """Fields to set."""
        values = {_book_field(book.start_s, book.metric): encode_book(book) for book in self.books}
        values |= {_out_field(each.transaction_id): encode_outgoing(each) for each in self.outgoing}
        if self.past is not None:
            past = self.past
            row = {"until_s": past.until_s, "pushed": past.pushed, "late": past.late, "carried": past.carried}
            values[b"past"] = orjson.dumps(row)
        return values

    def removed(self) -> list[bytes]:
        """Fields to remove."""
        return [_out_field(each) for each in self.delivered] + [_book_field(*each) for each in self.forgotten]


class Store(Protocol):
    """Reads and changes what is remembered."""

    async def read(self, account: str) -> Remembered:
        """Raises ``SyncStateError``, and what redis-py raises."""
        ...

    async def apply(self, account: str, remembered: Remembered, change: Change, token: int) -> Remembered:
        """Write a change to what was read; answer how it is now.

        Raises:
            Fenced: a later leader has written.
            Changed: it is no longer as it was read.
        """
        ...


class ValkeyStore:
    """The real one. Beside its own errors it raises what redis-py raises (``topology.CLIENT_ERRORS``)."""

    def __init__(self, client: Client, keys: Keys) -> None:
        self._client = client
        self._keys = keys

    def __repr__(self) -> str:
        return f"ValkeyStore({self._keys.prefix})"

    async def read(self, account: str) -> Remembered:
        fields = await self._client.hgetall(self._keys.sync(account))
        # The client was made with decode_responses=False, which redis-py's types do not know.
        return decode_remembered(account, cast(Mapping[bytes, bytes], fields))

    async def apply(self, account: str, remembered: Remembered, change: Change, token: int) -> Remembered:
        values, removed = change.values(), change.removed()
        expected: list[bytes | bool] = []
        for name in [*values, *removed]:
            expected += [name, remembered.raw.get(name, False)]
        pairs = [each for pair in values.items() for each in pair]
        # cmsgpack reads strings only, not the newer type for bytes.
        packed = [msgpack.packb(each, use_bin_type=False) for each in (expected, pairs, removed)]
        reply = await self._client.eval(APPLY, 1, self._keys.sync(account), str(token), *packed)
        if reply == b"FENCED":
            raise Fenced(f"a leader later than {token} has written the sync state of account {account}")
        if reply != b"OK":
            raise Changed(f"account {account}: its sync state was changed by another process meanwhile")
        return after(account, remembered, change, token)


def after(account: str, remembered: Remembered, change: Change, token: int) -> Remembered:
    """What is remembered once a change is written."""
    gone = set(change.removed())
    raw = {name: value for name, value in remembered.raw.items() if name not in gone}
    raw |= change.values()
    raw[b"token"] = b"%d" % max(token, remembered.token)
    return decode_remembered(account, raw)


def decode_remembered(account: str, fields: Mapping[bytes, bytes]) -> Remembered:
    """Raises ``SyncStateError``, naming the account and the field."""
    books: dict[tuple[int, str], Book] = {}
    outgoing: dict[str, Outgoing] = {}
    past, token = Past(), 0
    for name, value in fields.items():
        try:
            kind, _, rest = name.decode().partition(":")
            if kind == "book":
                start, _, metric = rest.partition(":")
                books[int(start), metric] = decode_book(int(start), metric, value)
            elif kind == "out":
                outgoing[rest] = decode_outgoing(rest, value)
            elif kind == "past":
                past = _decode_past(value)
            elif kind == "token":
                token = int(value)
        except ValueError as error:
            raise SyncStateError(f"account {account}: field {name[:80]!r} cannot be read: {error}") from None
    return Remembered(books, outgoing, past, token, dict(fields))


def _decode_past(data: bytes) -> Past:
    row = orjson.loads(data)
    try:
        sums = [{str(name): int(units) for name, units in row[each].items()} for each in ("pushed", "late", "carried")]
        return Past(int(row["until_s"]), *sums)
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from None


def _book_field(start_s: int, metric: str) -> bytes:
    return f"book:{start_s}:{metric}".encode()


def _out_field(transaction_id: str) -> bytes:
    return f"out:{transaction_id}".encode()


def _plus(sums: Mapping[str, int], metric: str, units: int) -> dict[str, int]:
    return {**sums, metric: sums.get(metric, 0) + units}
