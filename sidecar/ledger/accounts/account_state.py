"""An account as the ledger stores it, decoded, and rolled over to an instant as lua/lib/account.lua would."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any, Final

import msgpack

from sidecar.ledger.accounts.account_about import About, view_terms
from sidecar.ledger.accounts.account_spec import Status
from sidecar.ledger.accounts.load_errors import MalformedAccount
from sidecar.ledger.accounts.state_values import StateValues, unpack_ends, unpack_state
from sidecar.ledger.pricing.price_tables import DIGITS_MAX, MAX_INT, PackedTable
from sidecar.ledger.pricing.rating import bounded, cost, worst

FIELDS: Final = ("prices", "periods", "closed", "digits", "view", "about", "fence")
"""What is read of an account's hash. Its other fields are hours and idempotency keys: any number of them."""

_CLOSED: Final = 5


@dataclass(frozen=True, slots=True)
class Share:
    """Held units of a counter that belong to one gateway process, by its epoch."""

    epoch: int
    units: int


@dataclass(frozen=True, slots=True)
class Usage:
    """A counter: one metric in one period of a subscription, with units settled and units held.

    ``adjusted``: settled units that an operator added. ``hour``: the one that was counted last, from the Unix epoch on,
    and ``hour_units`` what was settled in it. ``held`` is the sum of ``shares``.
    """

    metric: str
    settled: int
    held: int
    adjusted: int = 0
    hour: int = 0
    hour_units: int = 0
    shares: tuple[Share, ...] = ()


@dataclass(frozen=True, slots=True)
class ClosedUsage:
    """Units and cost of one metric in a closed period of a subscription; ``cost`` is scaled."""

    start_ms: int
    metric: str
    units: int
    cost: int
    subscription: str = ""


@dataclass(frozen=True, slots=True)
class SubscriptionState:
    """The current period of one subscription, with its counters and tables. ``next_ends_ms``: of the periods after it.

    ``former_prices``: tables that the plan lacks by now, until the period ends.
    """

    name: str
    start_ms: int
    end_ms: int
    next_ends_ms: tuple[int, ...] = ()
    usages: tuple[Usage, ...] = ()
    prices: Mapping[str, PackedTable] = field(default_factory=dict)
    former_prices: Mapping[str, PackedTable] = field(default_factory=dict)

    def table(self, metric: str) -> PackedTable | None:
        """The table by which a metric is rated in this period."""
        return self.prices.get(metric) or self.former_prices.get(metric)

    def cost_of(self, usage: Usage) -> int:
        """The cost of a metric's settled units."""
        table = self.table(usage.metric)
        return bounded(cost(table, usage.settled)) if table else 0

    def reserved(self) -> int:
        """The most that settled and held units cost: the sum of ``worst`` over the metrics."""
        tables = ((self.table(usage.metric), usage) for usage in self.usages)
        return sum(worst(table, usage.settled, usage.held) for table, usage in tables if table)

    def rolled_over(self, now_ms: int) -> tuple[SubscriptionState, list[ClosedUsage]]:
        """The state after every period that has ended by ``now_ms`` is closed, and the records of those."""
        state, ends, closed = self, list(self.next_ends_ms), list[ClosedUsage]()
        while now_ms >= state.end_ms:
            start, end = state.start_ms, state.end_ms
            state = state._close_period(closed)
            while ends and ends[0] <= end:
                ends.pop(0)
            if ends:
                state = replace(state, end_ms=ends.pop(0))
            else:
                length = end - start
                state = replace(state, end_ms=end + length)._skip_periods((now_ms - end) // length, length, closed)
        return (state if state is self else replace(state, next_ends_ms=tuple(ends))), closed

    def _close_period(self, closed: list[ClosedUsage]) -> SubscriptionState:
        kept, former = [], dict(self.former_prices)
        for usage in self.usages:
            spent = self.cost_of(usage)
            if usage.settled or spent:
                closed.append(ClosedUsage(self.start_ms, usage.metric, usage.settled, spent, self.name))
            if usage.metric in self.prices or usage.held:
                kept.append(replace(usage, settled=0, adjusted=0))
            else:
                former.pop(usage.metric, None)
        return replace(self, start_ms=self.end_ms, usages=tuple(kept), former_prices=former)

    def _skip_periods(self, count: int, length_ms: int, closed: list[ClosedUsage]) -> SubscriptionState:
        """Only what a first tier's flat fee makes due at zero units is added."""
        if count == 0:
            return self
        for usage in self.usages:
            table = self.table(usage.metric)
            spent = bounded(cost(table, 0) * count) if table else 0
            if spent:
                closed.append(ClosedUsage(self.start_ms, usage.metric, 0, spent, self.name))
        moved = count * length_ms
        return replace(self, start_ms=self.start_ms + moved, end_ms=self.end_ms + moved)


@dataclass(frozen=True, slots=True)
class AccountState:
    """Terms, counts and prices, as stored (docs/ledger.md, "Fields of an account"). Money is scaled by ``digits``.

    ``version`` 0 says that the account was never loaded, or lost its terms; it may have counts all the same. There is
    always a first subscription, and properties without a subscription are of that one. ``view`` is as stored; the
    currency, the mode and the rate (a decimal as text) are out of it. ``fence``: the largest token of a leader that
    wrote the account.
    """

    version: int
    status: Status
    ceiling: int | None
    counts_unsettled: bool
    rate_interval_us: int
    burst: int
    day_limit: int
    unsettled: int
    subscriptions: tuple[SubscriptionState, ...]
    closed: tuple[ClosedUsage, ...] = ()
    digits: int = 0
    currency: str = ""
    mode: str = ""
    rate_per_second: str = "0"
    view: bytes = b""
    about: About = field(default_factory=About)
    fence: int = 0

    @property
    def first(self) -> SubscriptionState:
        return self.subscriptions[0]

    @property
    def period_start_ms(self) -> int:
        return self.first.start_ms

    @property
    def period_end_ms(self) -> int:
        return self.first.end_ms

    @property
    def next_ends_ms(self) -> tuple[int, ...]:
        return self.first.next_ends_ms

    @property
    def usages(self) -> tuple[Usage, ...]:
        return self.first.usages

    @property
    def prices(self) -> Mapping[str, PackedTable]:
        return self.first.prices

    @property
    def former_prices(self) -> Mapping[str, PackedTable]:
        return self.first.former_prices

    def table(self, metric: str) -> PackedTable | None:
        """The table by which a metric is rated in the first subscription's period."""
        return self.first.table(metric)

    def cost_of(self, usage: Usage) -> int:
        """The cost of the settled units of a metric of the first subscription."""
        return self.first.cost_of(usage)

    def named(self, subscription: str) -> SubscriptionState | None:
        """The subscription of this name."""
        return next((each for each in self.subscriptions if each.name == subscription), None)

    def reserved(self) -> int:
        """The most that settled and held units cost, over all subscriptions."""
        return sum(each.reserved() for each in self.subscriptions)

    def available(self) -> int | None:
        """The cost that a hold may still add; may be negative; None without a limit."""
        if self.ceiling is None:
            return None
        return self.ceiling - self.reserved() - (self.unsettled if self.counts_unsettled else 0)

    def money(self, scaled: int) -> Decimal:
        """Scaled money in units of the currency."""
        return Decimal(scaled).scaleb(-self.digits)

    def rolled_over(self, now_ms: int) -> AccountState:
        """The state after every period that has ended by ``now_ms`` is closed; itself if none has."""
        # A change of the account happens in or after every period that has begun, whatever the clock says.
        at_ms = max(now_ms, *(each.start_ms for each in self.subscriptions))
        if all(at_ms < each.end_ms for each in self.subscriptions):
            return self
        subscriptions, older, records = [], self.unsettled, list(self.closed)
        for each in self.subscriptions:
            rolled, closed = each.rolled_over(at_ms)
            subscriptions.append(rolled)
            records += closed
            for record in closed:
                older = bounded(older + record.cost)
        return replace(self, unsettled=older, subscriptions=tuple(subscriptions), closed=tuple(records))


def decode_account(account: str, state: bytes | None, values: Sequence[bytes | None]) -> AccountState:
    """Read an account. ``state``: its state as stored; ``values``: of ``FIELDS``, in this order. Without any it is an
    account of version 0.

    Raises:
        MalformedAccount: it cannot be read.
    """
    try:
        stored = StateValues() if state is None else unpack_state(state)
        return _decode(stored, dict(zip(FIELDS, values, strict=True)))
    except (ValueError, TypeError, LookupError, AttributeError, msgpack.UnpackException) as error:
        raise MalformedAccount(f"account {account!r} cannot be read from the ledger: {error}") from error


def decode_closed(packed: bytes | None) -> tuple[ClosedUsage, ...]:
    """The field ``closed`` of an account's hash.

    Raises:
        ValueError: it cannot be read.
    """
    return tuple(
        ClosedUsage(_whole(start_ms), _text(metric), _count(units), _whole(spent), _text(name))
        for start_ms, name, metric, units, spent in _rows(_array(packed), _CLOSED)
    )


def _decode(state: StateValues, fields: Mapping[str, bytes | None]) -> AccountState:
    version, status, ceiling, counts_unsettled, interval_us, burst, day_limit, unsettled = state.terms
    version = _whole(version)
    view, about = fields["view"], fields["about"]
    if version and (view is None or about is None or fields["digits"] is None):
        raise ValueError("it was loaded, and a field of the loader's is missing")
    currency, mode, rate = view_terms(view) if view is not None else ("", "", "0")
    digits = int(fields["digits"] or b"0")
    if not 0 <= digits <= DIGITS_MAX:
        raise ValueError(f"{digits} decimals")
    return AccountState(
        version=version,
        status=Status(status),
        ceiling=None if ceiling is False else _whole(ceiling),
        counts_unsettled=counts_unsettled == 1,
        rate_interval_us=_whole(interval_us),
        burst=_whole(burst),
        day_limit=_whole(day_limit),
        unsettled=_whole(unsettled),
        subscriptions=tuple(_subscriptions(state, _array(fields["prices"]), _array(fields["periods"]))),
        closed=decode_closed(fields["closed"]),
        digits=digits,
        currency=currency,
        mode=mode,
        rate_per_second=rate,
        view=view or b"",
        about=About.unpacked(about) if about is not None else About(),
        fence=int(fields["fence"] or b"0"),
    )


def _subscriptions(state: StateValues, prices: Sequence[Any], periods: Sequence[Any]) -> Iterator[SubscriptionState]:
    subscription_count, counter_count = len(state.subscriptions), len(state.counters)
    shares: list[list[Share]] = [[] for _ in range(counter_count)]
    for epoch, counter, units in state.shares:
        shares[_number(counter, counter_count)].append(Share(_whole(epoch), _count(units)))
    usages: list[list[Usage]] = [[] for _ in range(subscription_count)]
    for row, of_counter in zip(state.counters, shares, strict=True):
        subscription, metric, adjusted, _lo, _hi, _a, _b, hour, settled, held, hour_units = row
        usages[_number(subscription, subscription_count)].append(
            Usage(
                _text(metric), _count(settled), _count(held), _whole(adjusted), _whole(hour), _whole(hour_units),
                tuple(of_counter),
            )
        )  # fmt: skip
    for k, ((name, start_ms, end_ms), of_subscription) in enumerate(zip(state.subscriptions, usages, strict=True)):
        if not 0 <= _whole(start_ms) < _whole(end_ms):
            raise ValueError("a period does not end after its start")
        yield SubscriptionState(
            name=_text(name),
            start_ms=start_ms,
            end_ms=end_ms,
            next_ends_ms=tuple(map(_whole, unpack_ends(list(map(_whole, periods[k]))))) if k < len(periods) else (),
            usages=tuple(of_subscription),
            prices=_tables(prices, 2 * k),
            former_prices=_tables(prices, 2 * k + 1),
        )


def _array(packed: bytes | None) -> list[Any]:
    value = [] if packed is None else msgpack.unpackb(packed, raw=False)
    if not isinstance(value, list):
        raise ValueError(f"{str(value)[:40]!r} where an array of values should be")
    return value


def _rows(values: Sequence[Any], width: int) -> Iterator[Sequence[Any]]:
    if len(values) % width:
        raise ValueError(f"{len(values)} values where there should be {width} of each")
    return (values[at : at + width] for at in range(0, len(values), width))


def _whole(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) > MAX_INT:
        raise ValueError(f"{value!r} is no integer below 2^53")
    return value


def _count(value: object) -> int:
    units = _whole(value)
    if units < 0:
        raise ValueError(f"{units} units")
    return units


def _number(value: object, count: int) -> int:
    """A number from 1, as one from 0."""
    number = _whole(value)
    if not 1 <= number <= count:
        raise ValueError(f"number {number} of {count}")
    return number - 1


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} where a name should be")
    return value


def _tables(prices: Sequence[Any], at: int) -> dict[str, PackedTable]:
    # cmsgpack cannot tell an empty map from an empty list.
    tables = prices[at] if at < len(prices) and prices[at] else {}
    return {_text(name): _table(table) for name, table in tables.items()}


def _table(values: Sequence[Any]) -> PackedTable:
    model, *numbers = values
    whole = [_count(number) for number in numbers]
    tiers = len(whole) > 0 and len(whole) % 3 == 0 and whole[-3] == MAX_INT
    if not {"s": len(whole) == 1, "p": len(whole) == 3 and whole[0] > 0, "g": tiers, "v": tiers}[model]:
        raise ValueError(f"{str(values)[:40]} where a price table should be")
    return [model, *whole]
