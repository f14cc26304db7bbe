"""An account as the ledger stores it, decoded, and rolled over to an instant as lua/lib/account.lua would."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, Final

import msgpack
import orjson

from sidecar.ledger.accounts.account_spec import Status
from sidecar.ledger.accounts.load_errors import MalformedAccount
from sidecar.ledger.pricing.price_tables import MAX_INT, PackedTable
from sidecar.ledger.pricing.rating import bounded, cost, worst

_HEAD: Final = 6
_WIDTH: Final = 7
_CLOSED = re.compile(rb"closed:(\d+):(.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Usage:
    """One metric in one period: units settled and units held."""

    metric: str
    settled: int
    held: int


@dataclass(frozen=True, slots=True)
class ClosedUsage:
    """Units and cost of one metric in a closed period; ``cost`` is scaled."""

    start_ms: int
    metric: str
    units: int
    cost: int


@dataclass(frozen=True, slots=True)
class AccountState:
    """Policy, counts and prices, as stored (docs/ledger.md, "Fields of an account"). Money is scaled by ``digits``.

    ``version`` 0 says that the account was never loaded, or lost its policy; it may have counts all the same.
    """

    version: int
    status: Status
    ceiling: int | None
    counts_unsettled: bool
    rate_interval_us: int
    burst: int
    day_limit: int
    unsettled: int
    period_start_ms: int
    period_end_ms: int
    next_ends_ms: tuple[int, ...]
    usages: tuple[Usage, ...]
    prices: Mapping[str, PackedTable]
    former_prices: Mapping[str, PackedTable]
    closed: tuple[ClosedUsage, ...]
    digits: int
    info: Mapping[str, Any]

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
        state, ends = self, list(self.next_ends_ms)
        while now_ms >= state.period_end_ms:
            start, end = state.period_start_ms, state.period_end_ms
            state = state._close_period()
            while ends and ends[0] <= end:
                ends.pop(0)
            if ends:
                state = replace(state, period_end_ms=ends.pop(0))
            else:
                length = end - start
                missed = (now_ms - end) // length
                state = replace(state, period_end_ms=end + length)._skip_periods(missed, length)
        return state if state is self else replace(state, next_ends_ms=tuple(ends), closed=_in_order(state.closed))

    def _close_period(self) -> AccountState:
        older, kept, former = self.unsettled, [], dict(self.former_prices)
        closed = list(self.closed)
        for usage in self.usages:
            spent = self.cost_of(usage)
            if usage.settled > 0 or spent > 0:
                closed.append(ClosedUsage(self.period_start_ms, usage.metric, usage.settled, spent))
            older = bounded(older + spent)
            if usage.metric in self.prices or usage.held > 0:
                kept.append(Usage(usage.metric, 0, usage.held))
            else:
                former.pop(usage.metric, None)
        return replace(
            self,
            unsettled=older,
            period_start_ms=self.period_end_ms,
            usages=tuple(kept),
            former_prices=former,
            closed=tuple(closed),
        )

    def _skip_periods(self, count: int, length_ms: int) -> AccountState:
        if count == 0:
            return self
        older, closed = self.unsettled, list(self.closed)
        for usage in self.usages:
            table = self.table(usage.metric)
            spent = bounded(cost(table, 0) * count) if table else 0
            if spent > 0:
                closed.append(ClosedUsage(self.period_start_ms, usage.metric, 0, spent))
                older = bounded(older + spent)
        moved = count * length_ms
        return replace(
            self,
            unsettled=older,
            closed=tuple(closed),
            period_start_ms=self.period_start_ms + moved,
            period_end_ms=self.period_end_ms + moved,
        )


def decode_account(account: str, fields: Mapping[bytes, bytes]) -> AccountState:
    """Read an account's hash; an empty one is an account of version 0.

    Raises:
        MalformedAccount: it cannot be read.
    """
    try:
        return _decode(fields)
    except (ValueError, TypeError, LookupError, msgpack.UnpackException) as error:
        raise MalformedAccount(f"account {account!r} cannot be read from the ledger: {error}") from error


def _decode(fields: Mapping[bytes, bytes]) -> AccountState:
    policy = _unpack(fields, b"policy", [0, 0, False, 0, 0, 0, 0])
    state = _unpack(fields, b"state", [0, 0, MAX_INT, 0, 0, 0])
    live, former = _unpack(fields, b"prices", [{}, {}])
    version, status, ceiling, counts_unsettled, interval_us, burst, day_limit = policy
    if not 0 <= state[1] < state[2]:
        raise ValueError("its period does not end after its start")
    closed = [
        ClosedUsage(int(match[1]), match[2].decode(), *map(int, value.split()))
        for name, value in fields.items()
        if (match := _CLOSED.fullmatch(name))
    ]
    return AccountState(
        version=int(version),
        status=Status(status),
        ceiling=None if ceiling is False else int(ceiling),
        counts_unsettled=counts_unsettled == 1,
        rate_interval_us=int(interval_us),
        burst=int(burst),
        day_limit=int(day_limit),
        unsettled=int(state[0]),
        period_start_ms=int(state[1]),
        period_end_ms=int(state[2]),
        next_ends_ms=tuple(int(end) for end in _unpack(fields, b"periods", ())),
        usages=tuple(Usage(state[i], int(state[i + 1]), int(state[i + 2])) for i in range(_HEAD, len(state), _WIDTH)),
        prices=_tables(live),
        former_prices=_tables(former),
        closed=_in_order(closed),
        digits=int(fields.get(b"digits", b"0")),
        info=orjson.loads(fields[b"info"]) if b"info" in fields else {},
    )


def _in_order(closed: Iterable[ClosedUsage]) -> tuple[ClosedUsage, ...]:
    return tuple(sorted(closed, key=lambda each: (each.start_ms, each.metric)))


def _unpack(fields: Mapping[bytes, bytes], name: bytes, absent: Any) -> Any:
    packed = fields.get(name)
    return absent if packed is None else msgpack.unpackb(packed, raw=False)


def _tables(tables: Any) -> dict[str, PackedTable]:
    # cmsgpack cannot tell an empty map from an empty list.
    return {name: [table[0], *map(int, table[1:])] for name, table in tables.items()} if tables else {}
