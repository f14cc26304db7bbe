"""Checks of one account against itself, without I/O."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgpack

from sidecar.ledger.accounts.account_state import FIELDS, AccountState, SubscriptionState, Usage, decode_account
from sidecar.ledger.accounts.load_errors import MalformedAccount
from sidecar.ledger.accounts.state_values import StateValues, unpack_state
from sidecar.ledger.hours import DAY_MS, HOUR_MS, HOURS_OF_DAY, WHOLE_DAY, MalformedHours, day_counts
from sidecar.ledger.pricing.price_tables import MAX_INT, PackedTable
from sidecar.ledger.pricing.rating import cost
from sidecar.ledger.verification.account_reading import StoredAccount
from sidecar.ledger.verification.charged_units import ChargedUnits
from sidecar.ledger.verification.verify_report import Check, Difference

TAKEN: Final = "taken"
"""The field of the units that came with a load (lua/load.lua): start_ms, subscription, counter, units of each, one
after another in one array."""

_DAY = re.compile(r"h([0-9]{1,7})")
_LENGTH: Final = 3


@dataclass(frozen=True, slots=True)
class HourCount:
    """Units of a subscription and a metric in an hour, or in a whole day where ``length`` is 24."""

    hour: int
    length: int
    subscription: str
    metric: str
    units: int


@dataclass(frozen=True, slots=True)
class AccountFindings:
    """``shares``: epoch and units of each. ``version``, ``settled``: of the state, 0 if it cannot be read.
    ``api_keys``: SHA-256 in hexadecimal."""

    differences: list[Difference] = field(default_factory=list)
    shares: list[tuple[int, int]] = field(default_factory=list)
    version: int = 0
    settled: int = 0
    api_keys: tuple[str, ...] = ()
    unknown_fields: tuple[str, ...] = ()


def check_account(stored: StoredAccount, charged: ChargedUnits | None = None) -> AccountFindings:
    """``charged``: what the events say, or None if they are not to be compared."""
    place = f"account {stored.id}"

    def broken(why: object) -> Difference:
        return Difference(Check.READABLE, place, "it cannot be read", "an account", str(why)[:300])

    if stored.error:
        return AccountFindings([broken(stored.error)])
    if stored.state is None:
        if not stored.fields:
            return AccountFindings()
        return AccountFindings([Difference(Check.ACCOUNTS, place, "it has a hash and no state", "both", "a hash")])
    try:
        values = unpack_state(stored.state)
        account = decode_account(stored.id, stored.state, [stored.fields.get(name) for name in FIELDS])
        hours = list(_hours(stored, values))
        taken = _taken(stored.fields.get(TAKEN))
    except (MalformedAccount, MalformedHours, ValueError, TypeError, msgpack.UnpackException) as error:
        return AccountFindings([broken(error)])
    differences = [broken(why) for why in (*_shape(stored, values), *_kept_pieces(account, values))]
    if not stored.fields and account.version:
        differences.append(Difference(Check.ACCOUNTS, place, "it has a state and no hash", "both", "a state"))
    for subscription in account.subscriptions:
        for usage in subscription.usages:
            where = f"{place}, {_named(subscription.name, usage.metric)}"
            shares = sum(share.units for share in usage.shares)
            if shares != usage.held:
                differences.append(
                    Difference(
                        Check.HELD, where, "held units are not the sum of the shares", str(shares), str(usage.held)
                    )
                )
            differences += _settled(where, account, subscription, usage, hours, taken)
    if charged is not None:
        differences += _events(place, hours, charged, stored.id)
    return AccountFindings(
        differences,
        [(epoch, units) for epoch, _, units in values.shares],
        account.version,
        sum(usage.settled for subscription in account.subscriptions for usage in subscription.usages),
        account.about.api_keys,
        tuple(name for name in stored.fields if name not in (*FIELDS, TAKEN) and not _DAY.fullmatch(name)),
    )


def _named(subscription: str, metric: str) -> str:
    return f"{metric} of {subscription}" if subscription else metric


def _hours(stored: StoredAccount, values: StateValues) -> Iterator[HourCount]:
    for name, packed in stored.fields.items():
        match = _DAY.fullmatch(name)
        if match is None:
            continue
        for hour, subscription, metric, units in day_counts(packed):
            if not 0 <= hour <= WHOLE_DAY or abs(units) > MAX_INT or not isinstance(subscription, bytes):
                raise MalformedHours(f"{name} has {units} units in hour {hour}")
            first, length = int(match[1]) * HOURS_OF_DAY, 1
            if hour == WHOLE_DAY:
                length = HOURS_OF_DAY
            else:
                first += hour
            yield HourCount(first, length, subscription.decode(), metric.decode(), units)
    for subscription_number, metric, *_, hour, _, _, units in values.counters:
        if units:
            yield HourCount(hour, 1, values.subscriptions[subscription_number - 1][0], metric, units)


def _taken(packed: bytes | None) -> Counter[tuple[int, str, str]]:
    values: Any = [] if packed is None else msgpack.unpackb(packed, raw=False)
    found: Counter[tuple[int, str, str]] = Counter()
    for at in range(0, len(values), 4):
        start_ms, subscription, metric, units = values[at : at + 4]
        if not isinstance(units, int) or units < 0:
            raise ValueError(f"its field {TAKEN} has {units!r} units")
        found[start_ms, subscription, metric] += units
    return found


def _shape(stored: StoredAccount, values: StateValues) -> Iterator[str]:
    """What a state must be beyond what is read of it."""
    state = stored.state or b""
    reader = msgpack.Unpacker(raw=True)
    reader.feed(state[_LENGTH : _LENGTH + int.from_bytes(state[:_LENGTH], "big")])
    slow = len(values.terms) + 2 + 3 * len(values.subscriptions) + 8 * len(values.counters)
    if sum(1 for _ in reader) != slow:
        yield "the length of the first part of its state is wrong"
    numbers: list[object] = [*values.limits, *(row[v] for row in values.counters for v in (0, 3, 4, 5, 6, 7, 8, 9))]
    numbers += [value for share in values.shares for value in share]
    signed = [row[v] for row in values.counters for v in (2, 10)]  # an operator may have taken units away
    if not all(type(number) is int and 0 <= number <= MAX_INT for number in numbers + [abs(each) for each in signed]):
        yield "a number that is no integer from 0 to 2^53"
    if len({name for name, *_ in values.subscriptions}) < len(values.subscriptions):
        yield "two subscriptions of one name"
    if len({(row[0], row[1]) for row in values.counters}) < len(values.counters):
        yield "two counters of one metric of a subscription"
    if len({(epoch, counter) for epoch, counter, _ in values.shares}) < len(values.shares):
        yield "two shares of one epoch in a counter"
    if any(units == 0 or epoch == 0 for epoch, _, units in values.shares):
        yield "a share of nothing, or of nobody"
    if stored.broken_marks:
        yield f"{stored.broken_marks} idempotency keys without a time"


def _kept_pieces(account: AccountState, values: StateValues) -> Iterator[str]:
    """The straight piece of a price that a counter keeps must be that of its table: holds are decided by it."""
    for number, metric, _, lo, hi, a, b, *_ in values.counters:
        if lo > hi:
            continue
        table = account.subscriptions[number - 1].prices.get(metric)
        if table is None:
            yield f"{metric} keeps a piece of a price that it does not have"
        elif not _is_piece(table, lo, hi, a, b):
            yield f"{metric} keeps another piece than its price has: {lo} to {hi}, {a} and {b} each"


def _is_piece(table: PackedTable, lo: int, hi: int, a: int, b: int) -> bool:
    return all(cost(table, n) == a + b * (n - lo) for n in {lo, min(lo + 1, hi), hi})


def _settled(
    where: str,
    account: AccountState,
    subscription: SubscriptionState,
    usage: Usage,
    hours: Sequence[HourCount],
    taken: Counter[tuple[int, str, str]],
) -> Iterator[Difference]:
    """Settled units against the hours since the period began.

    A load may end a period at an instant at which units of it were counted already. Then the sum of both periods is
    that of their hours, and so with more of them.
    """
    named = subscription.name, usage.metric
    ended = [each for each in account.closed if (each.subscription, each.metric) == named]
    begun = sorted({subscription.start_ms, *(e.start_ms for e in ended if e.start_ms < subscription.start_ms)})
    of_hours = [count for count in hours if count.metric == usage.metric and count.subscription in ("", named[0])]
    for start_ms in reversed(begun):
        # A subscription that left and came back within the period has been counted before.
        settled = usage.settled + sum(each.units for each in ended if each.start_ms >= start_ms)
        settled -= sum(units for (at_ms, *of), units in taken.items() if tuple(of) == named and at_ms >= start_ms)
        least, most = _bounds(of_hours, start_ms, named[0], subscription is account.first)
        if least <= settled <= most:
            return
        if start_ms == subscription.start_ms:
            expected, found = str(least) if least == most else f"{least} to {most}", str(settled)
    yield Difference(Check.HOURS, where, "settled units are not those of the period's hours", expected, found)


def _bounds(hours: Sequence[HourCount], start_ms: int, subscription: str, is_first: bool) -> tuple[int, int]:
    """The sum of the hours since then. The hour in which it lies may be of both periods."""
    certain = possible = 0
    for count in hours:
        if count.subscription != subscription:
            # Before an account is loaded its counts have no name; they are the first subscription's from then on.
            possible += count.units if is_first else 0
        elif count.hour * HOUR_MS >= start_ms:
            certain += count.units
        elif (count.hour + count.length) * HOUR_MS > start_ms:
            possible += count.units
    # What an operator took away counts less than nothing.
    return min(certain, certain + possible), max(certain, certain + possible)


def _events(place: str, hours: Sequence[HourCount], charged: ChargedUnits, account: str) -> Iterator[Difference]:
    of_hours: defaultdict[tuple[int, str], int] = defaultdict(int)
    compacted = set()
    for count in hours:
        if count.length > 1:
            compacted.add((count.hour * HOUR_MS // DAY_MS, count.metric))
        elif count.hour in charged.hours:
            of_hours[count.hour, count.metric] += count.units
    of_events = charged.of(account)
    for hour, metric in sorted(of_hours.keys() | of_events.keys()):
        counted, sent = of_hours.get((hour, metric), 0), of_events.get((hour, metric), 0)
        if counted != sent and (hour // HOURS_OF_DAY, metric) not in compacted:
            where = f"{place}, {metric}, hour {hour}"
            yield Difference(
                Check.EVENTS, where, "the units of an hour are not those of its events", str(sent), str(counted)
            )
