"""The sync state: what was pushed, and frozen events. One hash per account in Valkey.

Fields: ``token`` the highest leader's token that has written, ``usage:<period's start>:<metric>``,
``event:<transaction id>`` a frozen event that Lago is not known to have, ``forgotten`` what forgotten periods came to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol, cast

import msgpack
import orjson

from sidecar.basics.fault_reasons import reason_of
from sidecar.billing.usage_sync.frozen_events import FrozenEvent, decode_frozen_event, encode_frozen_event
from sidecar.billing.usage_sync.pushed_usage import PushedUsage, decode_pushed_usage, encode_pushed_usage
from sidecar.ledger.keys import Keys
from sidecar.valkey.topology import Client

APPLY: Final = """
-- Changes what is state of an account, all of it or nothing, unless somebody else has changed it or a
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
    """The sync state of an account cannot be used. The message names the account."""


class Fenced(Exception):
    """Another leader has taken over; this one must stop."""


class Changed(SyncStateError):
    """Somebody else has changed it since it was read. Nothing was written."""


@dataclass(frozen=True, slots=True)
class ForgottenPeriods:
    """Periods that are forgotten: every one that starts by ``until_s``, and what they came to per metric."""

    until_s: int = -1
    pushed: Mapping[str, int] = field(default_factory=dict)
    late: Mapping[str, int] = field(default_factory=dict)
    carried: Mapping[str, int] = field(default_factory=dict)

    def with_pushed_usage(self, pushed_usage: PushedUsage) -> ForgottenPeriods:
        """These periods and this one."""
        return ForgottenPeriods(
            max(self.until_s, pushed_usage.start_s),
            _plus(self.pushed, pushed_usage.metric, pushed_usage.pushed),
            _plus(self.late, pushed_usage.metric, pushed_usage.late),
            _plus(self.carried, pushed_usage.metric, pushed_usage.carried_out),
        )


@dataclass(frozen=True, slots=True)
class SyncState:
    """The sync state of an account; ``pushed_usages`` by start in seconds and metric, ``frozen_events`` by
    transaction id.

    ``raw`` is what was read, by which a later change by somebody else is noticed.
    """

    pushed_usages: Mapping[tuple[int, str], PushedUsage] = field(default_factory=dict)
    frozen_events: Mapping[str, FrozenEvent] = field(default_factory=dict)
    forgotten_periods: ForgottenPeriods = field(default_factory=ForgottenPeriods)
    token: int = 0
    raw: Mapping[bytes, bytes] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class SyncStateChange:
    """A change to write: pushed usage and events as they are to be, events and pushed usage to forget."""

    pushed_usages: Sequence[PushedUsage] = ()
    frozen_events: Sequence[FrozenEvent] = ()
    delivered: Sequence[str] = ()
    forgotten: Sequence[tuple[int, str]] = ()
    forgotten_periods: ForgottenPeriods | None = None

    @property
    def is_empty(self) -> bool:
        return not (
            self.pushed_usages or self.frozen_events or self.delivered or self.forgotten or self.forgotten_periods
        )

    def values(self) -> dict[bytes, bytes]:
        """Fields to set."""
        values = {
            _pushed_usage_field(pushed_usage.start_s, pushed_usage.metric): encode_pushed_usage(pushed_usage)
            for pushed_usage in self.pushed_usages
        }
        values |= {_frozen_event_field(each.transaction_id): encode_frozen_event(each) for each in self.frozen_events}
        if self.forgotten_periods is not None:
            forgotten_periods = self.forgotten_periods
            row = {
                "until_s": forgotten_periods.until_s,
                "pushed": forgotten_periods.pushed,
                "late": forgotten_periods.late,
                "carried": forgotten_periods.carried,
            }
            values[b"forgotten"] = orjson.dumps(row)
        return values

    def removed(self) -> list[bytes]:
        """Fields to remove."""
        return [_frozen_event_field(each) for each in self.delivered] + [
            _pushed_usage_field(*each) for each in self.forgotten
        ]


class SyncStore(Protocol):
    """Reads and changes sync states."""

    async def read(self, account: str) -> SyncState:
        """Raises ``SyncStateError``, and what redis-py raises."""
        ...

    async def apply(self, account: str, state: SyncState, change: SyncStateChange, token: int) -> SyncState:
        """Write a change to what was read; answer how it is now.

        Raises:
            Fenced: a later leader has written.
            Changed: it is no longer as it was read.
        """
        ...


class ValkeySyncStore:
    """The real one. Beside its own errors it raises what redis-py raises (``topology.CLIENT_ERRORS``)."""

    def __init__(self, client: Client, keys: Keys) -> None:
        self._client = client
        self._keys = keys

    def __repr__(self) -> str:
        return f"ValkeySyncStore({self._keys.prefix})"

    async def read(self, account: str) -> SyncState:
        fields = await self._client.hgetall(self._keys.sync(account))
        # The client was made with decode_responses=False, which redis-py's types do not know.
        return decode_sync_state(account, cast(Mapping[bytes, bytes], fields))

    async def apply(self, account: str, state: SyncState, change: SyncStateChange, token: int) -> SyncState:
        values, removed = change.values(), change.removed()
        expected: list[bytes | bool] = []
        for name in [*values, *removed]:
            expected += [name, state.raw.get(name, False)]
        pairs = [each for pair in values.items() for each in pair]
        # cmsgpack reads strings only, not the newer type for bytes.
        packed = [msgpack.packb(each, use_bin_type=False) for each in (expected, pairs, removed)]
        reply = await self._client.eval(APPLY, 1, self._keys.sync(account), str(token), *packed)
        if reply == b"FENCED":
            raise Fenced(f"a leader later than {token} has written the sync state of account {account}")
        if reply != b"OK":
            raise Changed(f"account {account}: its sync state was changed by another process meanwhile")
        return after(account, state, change, token)


def after(account: str, state: SyncState, change: SyncStateChange, token: int) -> SyncState:
    """The sync state once a change is written."""
    gone = set(change.removed())
    raw = {name: value for name, value in state.raw.items() if name not in gone}
    raw |= change.values()
    raw[b"token"] = b"%d" % max(token, state.token)
    return decode_sync_state(account, raw)


def decode_sync_state(account: str, fields: Mapping[bytes, bytes]) -> SyncState:
    """Raises ``SyncStateError``, naming the account and the field."""
    pushed_usages: dict[tuple[int, str], PushedUsage] = {}
    frozen_events: dict[str, FrozenEvent] = {}
    forgotten_periods, token = ForgottenPeriods(), 0
    for name, value in fields.items():
        try:
            kind, _, rest = name.decode().partition(":")
            if kind == "usage":
                start, _, metric = rest.partition(":")
                pushed_usages[int(start), metric] = decode_pushed_usage(int(start), metric, value)
            elif kind == "event":
                frozen_events[rest] = decode_frozen_event(rest, value)
            elif kind == "forgotten":
                forgotten_periods = _decode_forgotten(value)
            elif kind == "token":
                token = int(value)
        except ValueError as error:
            raise SyncStateError(f"account {account}: field {name[:80]!r} cannot be read: {error}") from None
    return SyncState(pushed_usages, frozen_events, forgotten_periods, token, dict(fields))


def _decode_forgotten(data: bytes) -> ForgottenPeriods:
    row = orjson.loads(data)
    try:
        sums = [{str(name): int(units) for name, units in row[each].items()} for each in ("pushed", "late", "carried")]
        return ForgottenPeriods(int(row["until_s"]), *sums)
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(reason_of(error)) from None


def _pushed_usage_field(start_s: int, metric: str) -> bytes:
    return f"usage:{start_s}:{metric}".encode()


def _frozen_event_field(transaction_id: str) -> bytes:
    return f"event:{transaction_id}".encode()


def _plus(sums: Mapping[str, int], metric: str, units: int) -> dict[str, int]:
    return {**sums, metric: sums.get(metric, 0) + units}
