"""How much more an account may spend, so that its wallets pay all of it, whichever of its metrics is called. No I/O.

Lago pays an invoice from the wallets in their order (priority, then age); each pays the fees that it matches, the
largest first, as far as its balance goes (lago-api ``app/services/credits/allocate_prepaid_credits_by_wallets_
service.rb``). Which fees are the largest when an invoice becomes final, and on which invoice a fee comes, is not known
before. So nothing here depends on it: a wallet that comes to its turn may pay its fees in any order. What remains of a
set of fees after a wallet is then at most

    remains(Q after w) = min(remains(Q), max(remains(Q without w's fees), remains(Q and w's fees) − balance of w))

for the money that goes from ``w`` to other fees than those of Q is at most what those others are. Several invoices, one
after another, are one case of this: a wallet pays as much in all, only the earlier invoice first. A wallet that the
rule leaves out makes the result smaller, never larger.

The room is the largest growth of the fees that may grow, in whatever shares, for which nothing of the goal remains. The
rule above has only minima and maxima in it, so the room comes out of the same recursion, exactly.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Final

USAGE: Final = "charge"
"""Lago's kind of a fee for usage. As a key: usage of a metric that has no key of its own."""

WALLETS_MAX: Final = 6
"""Scopes of wallets looked at, after neighbours of one scope are joined. Lago allows six active wallets (lago-api
``app/services/wallets/validate_service.rb``). Those beyond are left out, the last ones first.
"""

UNITS_MIN: Final = 10
SHARE_MIN: Final = Decimal("0.1")
"""A metric does not hold the others back if its wallets do not even pay for one more unit, or for fewer than
``UNITS_MIN`` and have less than ``SHARE_MIN`` of what another metric may use.
"""

INFINITE: Final = Decimal("Infinity")
NONE: Final = Decimal(0)


def usage_key(metric: str) -> str:
    """The key of the fees for a metric."""
    return f"{USAGE}:{metric}"


@dataclass(frozen=True, slots=True)
class ScopedBalance:
    """A wallet as far as it matters here. ``keys``: the fees that it pays; None: all of them."""

    balance: Decimal
    keys: frozenset[str] | None = None


@dataclass(frozen=True, slots=True)
class Owed:
    """Money that invoices will ask for: ``total``, and at most ``caps[key]`` of it in fees of a key."""

    total: Decimal
    caps: Mapping[str, Decimal]

    @classmethod
    def on(cls, key: str, amount: Decimal) -> Owed:
        """An amount of which the fee is known."""
        return cls(amount, {key: amount})

    @classmethod
    def on_any(cls, keys: Iterable[str], amount: Decimal) -> Owed:
        """An amount that may be on any of these fees."""
        return cls(amount, dict.fromkeys(keys, amount))


@dataclass(frozen=True, slots=True)
class Allocation:
    """``available``: what may be spent in all. ``served``: metrics that a wallet pays for, and has money for.

    ``rooms``: how much more of each metric alone the wallets would pay; metrics that no wallet pays for have none.
    ``held_back``: how much more may become available, as scoped wallets pay for what is used; never below 0.
    """

    available: Decimal
    served: frozenset[str]
    rooms: Mapping[str, Decimal]
    held_back: Decimal = NONE


@dataclass(frozen=True, slots=True)
class Claims:
    """What the wallets are to pay. ``owed``: by now. ``prices``: the metrics, each with the least that a unit costs.

    ``credit`` makes the sum of all invoices smaller before wallets pay: then ``owed`` has everything that is on them.
    ``falls``: by how much the cost of a metric may fall while it is used (volume prices). ``served_before``: metrics
    without a price now, of which something is owed.
    """

    owed: Sequence[Owed]
    prices: Mapping[str, Decimal]
    credit: Decimal = NONE
    falls: Mapping[str, Decimal] = field(default_factory=dict)
    served_before: Collection[str] = ()


def allocate(wallets: Sequence[ScopedBalance], claims: Claims, *, keeps_all: bool = False) -> Allocation:
    """What may be spent, and on which metrics. ``wallets`` in Lago's order. ``keeps_all``: no metric is left out for
    having little left, as for an account that the ledger does not know yet.
    """
    rule = _Worst(wallets, claims)
    if not claims.prices:
        return Allocation(rule.pool([USAGE]), frozenset(), {})
    metrics = [*claims.prices, *(metric for metric in claims.served_before if metric not in claims.prices)]
    covered = [metric for metric in metrics if rule.is_paid(usage_key(metric))]
    if not any(metric in claims.prices for metric in covered):
        if not claims.credit:
            return Allocation(-sum((each.total for each in claims.owed), NONE), frozenset(claims.prices), {})
        # Without a wallet credit pays for all. Beside one it is no wallet: Lago spreads it over all fees.
        covered = metrics
    paid = [metric for metric in covered if metric in claims.prices]
    rooms = {metric: rule.room([usage_key(metric)], [usage_key(metric)]) for metric in paid}
    is_one_pool = rule.is_one_pool(map(usage_key, claims.prices))
    keeps_all = keeps_all or is_one_pool
    most = max(rooms.values())

    def has_enough(metric: str) -> bool:
        room, price = rooms[metric], claims.prices[metric]
        return room >= price and room > 0 and (room >= UNITS_MIN * price or room >= SHARE_MIN * most)

    served = paid if keeps_all else [metric for metric in paid if has_enough(metric)] or paid
    goal = [usage_key(metric) for metric in covered]
    growing = [usage_key(metric) for metric in served]
    lost = {key for key in goal if key not in growing and rule.unpaid([key]) > 0}
    available = rule.room([key for key in goal if key not in lost], growing)
    if lost:
        # What cannot be paid any more must not become more.
        available = min(available, rule.room(goal, growing, rule.unpaid(goal)))
    if is_one_pool:
        # All wallets pay for every metric: their sum decides, even where fees beside usage exceed it.
        available = min(available, rule.pool(growing))
    attainable = max(rule.pool(growing), *(rooms[metric] for metric in served))
    return Allocation(available, frozenset(served), rooms, max(NONE, attainable - available))


class _Worst:
    """The rule above, with sets of keys as bits of an integer."""

    def __init__(self, wallets: Sequence[ScopedBalance], claims: Claims) -> None:
        named = {usage_key(metric) for metric in (*claims.prices, *claims.served_before)}
        keys = sorted(
            named.union([USAGE], *(each.caps for each in claims.owed), *(each.keys or () for each in wallets))
        )
        self._bits = {key: 1 << place for place, key in enumerate(keys)}
        self._all = (1 << len(keys)) - 1
        self._wallets = _joined([(self._set(each.keys), each.balance) for each in wallets])[:WALLETS_MAX]
        self._owed = [(each.total, [(self._bits[key], cap) for key, cap in each.caps.items()]) for each in claims.owed]
        self._falls = [(self._set([usage_key(metric)]), fall) for metric, fall in claims.falls.items()]
        self._credit = claims.credit
        self._sums: dict[int, Decimal] = {}
        self._whole = sum((total for total, _ in self._owed), NONE) - claims.credit

    def is_paid(self, key: str) -> bool:
        """Whether a wallet pays this fee, if it has money."""
        return any(keys & self._bits[key] for keys, _ in self._wallets)

    def is_one_pool(self, keys: Iterable[str]) -> bool:
        """Whether each wallet pays all of these fees."""
        wanted = self._set(keys)
        return all(scope & wanted == wanted for scope, _ in self._wallets)

    def pool(self, keys: Iterable[str]) -> Decimal:
        """The balances of all wallets that pay one of these fees, less what is owed that one of them pays."""
        wanted, scopes, balances = self._set(keys), 0, NONE
        for scope, balance in self._wallets:
            if scope & wanted:
                scopes |= scope
                balances += balance
        claimed = min(self._whole, self._owed_on(scopes)) if self._credit else self._owed_on(scopes)
        return balances - claimed

    def room(self, goal: Collection[str], growing: Collection[str], unpaid: Decimal = NONE) -> Decimal:
        """The largest growth of ``growing`` for which no more than ``unpaid`` of the goal remains; below 0 if more
        does already, and infinite if nothing of the goal grows.
        """
        return self._room(len(self._wallets), self._set(goal), self._set(growing), unpaid)

    def unpaid(self, goal: Collection[str]) -> Decimal:
        """The most that remains of these fees if nothing grows."""
        return self._remains(len(self._wallets), self._set(goal))

    def _set(self, keys: Iterable[str] | None) -> int:
        if keys is None:
            return self._all
        found = 0
        for key in keys:
            found |= self._bits.get(key, 0)
        return found

    def _room(self, count: int, goal: int, growing: int, unpaid: Decimal) -> Decimal:
        if not goal:
            return INFINITE
        if not count:
            return self._room_without_wallets(goal, growing, unpaid)
        scope, balance = self._wallets[count - 1]
        if not scope & goal:
            return self._room(count - 1, goal, growing, unpaid)
        room = self._room(count - 1, goal | scope, growing, unpaid + balance)
        if goal & ~scope:
            room = min(room, self._room(count - 1, goal & ~scope, growing, unpaid))
        if scope & ~goal:
            room = max(room, self._room(count - 1, goal, growing, unpaid))
        return room

    def _room_without_wallets(self, goal: int, growing: int, unpaid: Decimal) -> Decimal:
        whole = unpaid - self._whole
        if goal & growing:
            # What falls in price outside of the goal leaves the ledger's pool that much more for what is in it.
            fallen = sum((fall for key, fall in self._falls if not key & goal), NONE)
            return max(whole, unpaid - self._owed_on(goal) - fallen)
        return INFINITE if self._owed_on(goal) <= unpaid else whole

    def _remains(self, count: int, goal: int) -> Decimal:
        if not goal:
            return NONE
        if not count:
            return max(NONE, min(self._whole, self._owed_on(goal)))
        scope, balance = self._wallets[count - 1]
        if not scope & goal:
            return self._remains(count - 1, goal)
        remains = max(self._remains(count - 1, goal & ~scope), self._remains(count - 1, goal | scope) - balance)
        return min(remains, self._remains(count - 1, goal)) if scope & ~goal else remains

    def _owed_on(self, goal: int) -> Decimal:
        found = self._sums.get(goal)
        if found is None:
            found = sum(
                (min(total, sum((cap for key, cap in caps if key & goal), NONE)) for total, caps in self._owed), NONE
            )
            self._sums[goal] = found
        return found


def _joined(wallets: Iterable[tuple[int, Decimal]]) -> list[tuple[int, Decimal]]:
    """Neighbours of one scope pay as one."""
    joined: list[tuple[int, Decimal]] = []
    for scope, balance in wallets:
        if joined and joined[-1][0] == scope:
            joined[-1] = scope, joined[-1][1] + balance
        else:
            joined.append((scope, balance))
    return joined
