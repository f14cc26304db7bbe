"""What accounts may use while nobody can ask the ledger (``on_ledger_failure: open``). No I/O.

**The most that an account can overspend** is ``allowance_units`` for each process in any ten minutes (``refill_s``),
over all metrics, however many outages there are in them:

* An account has one allowance. It is full again when the ledger has every charge that was made on it, and ``refill_s``
  after the last unit was taken from it. So it does not refill while the ledger is merely slow: then each call passes by
  the allowance, and the charges of others are always on their way.
* Nothing is served beyond the funds that the account was last known to have. The last hold that the ledger granted says
  what was left; charges that it could not know of count against that, until a later hold does. So a process alone
  overdraws nobody. Several processes can: each knows what was left before the others' charges. A price per unit is what
  the last hold of the metric cost; a plan of which prices rise in between is bounded by the units alone.
* Nobody is served of whom the ledger last said something else than granted (out of credit, suspended, closed, unknown,
  without a price, over a limit), nor of whom this process has had no answer. An account with a limit is not served for
  a metric of which it has had no price here.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from sidecar.ledger.client.outcomes import Code, Hold

METRICS_MAX: Final = 64
"""Metrics of one account whose price is remembered beside that of its last hold."""
_GRANTED: Final = int(Code.GRANTED)
_REFUSED: Final = frozenset(
    map(int, (Code.CREDIT, Code.RATE, Code.DAILY, Code.SUSPENDED, Code.CLOSED, Code.UNKNOWN, Code.UNPRICED))
)
"""The others say nothing of the account: they are about an idempotency key, an answer without charge, the instance."""


class _Use:
    """What an account has used of its allowance. Costs are scaled money, 0 for an account without a limit."""

    __slots__ = ("basis", "cheapest", "last_s", "open", "open_cost", "settled_cost", "used")

    def __init__(self) -> None:
        self.used = 0
        """Units taken since it was last full."""
        self.open = 0
        """Those of them that the ledger does not have yet."""
        self.last_s = 0.0
        self.open_cost = 0
        """At least what the open ones cost."""
        self.cheapest: int | None = None
        """The lowest price of a unit among them: what leaves may have been one of these."""
        self.settled_cost = 0
        """Of units that the ledger has, but had not when it granted ``basis``."""
        self.basis: Hold | None = None

    def leave(self, units: int, *, settled: bool) -> None:
        """Units that are no longer open. Which they are is not said, so the cheapest go."""
        units = min(units, self.open)
        self.open -= units
        cost = self.open_cost if not self.open else min(self.open_cost, units * (self.cheapest or 0))
        self.open_cost -= cost
        if settled:
            self.settled_cost += cost
        if not self.open:
            self.cheapest = None


class Allowances:
    """The allowances of one process.

    Args:
        allowance_units: the most that an account can overspend, see above.
        refill_s: how long nothing must have been taken from an allowance before it is full again.
        accounts_max: accounts that are remembered. One that is dropped is not served until the ledger grants it a hold.
    """

    def __init__(
        self,
        allowance_units: int,
        *,
        refill_s: float = 600.0,
        accounts_max: int = 100_000,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.allowance_units = allowance_units
        self._refill_s = refill_s
        self._accounts_max = accounts_max
        self._monotonic = monotonic
        self._granted: dict[str, Hold] = {}
        """The last hold of each account, if it was granted."""
        self._prices: dict[str, dict[str, int]] = {}
        """Prices of a unit by account and metric, of accounts that use several metrics."""
        self._uses: dict[str, _Use] = {}
        self._sweep_s = 0.0

    def __repr__(self) -> str:
        return f"<Allowances of {self.allowance_units} known={len(self._granted)} in_use={len(self._uses)}>"

    # what the ledger says

    def note(self, hold: Hold) -> None:
        """A hold that the ledger decided. Called for every one, so a grant costs a look-up and a store."""
        if hold.code == _GRANTED:
            before = self._granted.get(hold.account)
            self._granted[hold.account] = hold
            if before is None or before.metric != hold.metric:
                self._note_change(before)
        elif hold.code in _REFUSED:
            self._forget(hold.account)

    def note_late(self, account: str, code: int) -> None:
        """What the ledger answered to a hold for which nobody waited any more: a refusal counts, a grant (which is
        given back) says nothing new."""
        if code in _REFUSED:
            self._forget(account)

    def _note_change(self, before: Hold | None) -> None:
        if before is not None:
            prices = self._prices.setdefault(before.account, {})
            prices.pop(before.metric, None)
            prices[before.metric] = _unit_price(before)
            if len(prices) > METRICS_MAX:
                del prices[next(iter(prices))]
        elif len(self._granted) > self._accounts_max:
            self._forget(next(iter(self._granted)))

    def _forget(self, account: str) -> None:
        self._granted.pop(account, None)
        self._prices.pop(account, None)

    # what is used

    def admit(self, account: str, metric: str, units: int) -> bool:
        """Whether the account may use ``units`` now. They are taken from its allowance then, and each must be given
        back or settled."""
        last = self._granted.get(account)
        if last is None or units > self.allowance_units:
            return False
        now = self._monotonic()
        use = self._uses.get(account)
        if use is None:
            if len(self._uses) >= self._accounts_max and not self._sweep(now):
                return False
            use = _Use()
        elif self._is_due(use, now):
            use.used = 0
        if use.used + units > self.allowance_units:
            return False
        unit_price = 0
        if last.available >= 0:
            known = self._price(last, metric)
            if known is None:
                return False
            unit_price = known
            _take_note_of(last, use)
            if use.settled_cost + use.open_cost + units * unit_price > last.available:
                return False
        self._uses[account] = use
        use.used += units
        use.open += units
        use.open_cost += units * unit_price
        use.cheapest = unit_price if use.cheapest is None else min(use.cheapest, unit_price)
        use.last_s = now
        return True

    def give_back(self, account: str, units: int) -> None:
        """Units that were admitted and are not charged."""
        use = self._uses.get(account)
        if use is not None:
            use.used -= min(units, use.open)
            use.leave(units, settled=False)

    def settled(self, account: str, units: int) -> None:
        """Units that this process admitted, and the ledger has now. Those of another process's journal do not count."""
        use = self._uses.get(account)
        if use is not None:
            last = self._granted.get(account)
            if last is not None:
                _take_note_of(last, use)
            use.leave(units, settled=True)

    def _price(self, last: Hold, metric: str) -> int | None:
        if last.metric == metric:
            return _unit_price(last)
        return self._prices.get(last.account, {}).get(metric)

    def _is_due(self, use: _Use, now: float) -> bool:
        return not use.open and now - use.last_s >= self._refill_s

    def _sweep(self, now: float) -> bool:
        """Drops allowances that are full again, at most once in a tenth of ``refill_s``. Whether there is room then."""
        if now < self._sweep_s:
            return False
        self._sweep_s = now + self._refill_s / 10
        for account in [account for account, use in self._uses.items() if self._is_due(use, now)]:
            use = self._uses.pop(account)
            if use.settled_cost and self._granted.get(account) is use.basis:
                self._forget(account)  # what it has left is known no more
        return len(self._uses) < self._accounts_max


def _take_note_of(last: Hold, use: _Use) -> None:
    """A hold that came after units were settled was granted with them in the ledger."""
    if use.basis is not last:
        use.basis = last
        use.settled_cost = 0


def _unit_price(hold: Hold) -> int:
    return -(-hold.price // hold.units)
