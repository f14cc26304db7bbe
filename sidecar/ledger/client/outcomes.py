"""What the ledger answers to a hold, and the hold itself (docs/ledger.md, "batch.lua")."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum

import msgpack

Event = tuple[str, str, int, str, str, int, float, str | None, str | None]
"""account, metric, units, route, method, status, response time in ms, interaction id, traceparent."""


class Code(IntEnum):
    """Outcome of a hold. UNAVAILABLE and REFUSED are the client's own: no answer in time; a settle that no account can
    take, which the ledger keeps as refused. The others are the script's."""

    GRANTED = 0
    CREDIT = 1
    RATE = 2
    DAILY = 3
    SUSPENDED = 4
    CLOSED = 5
    UNKNOWN = 6
    UNPRICED = 7
    UNREGISTERED = 8
    REPEAT = 9
    UNAVAILABLE = 10
    REFUSED = 11
    UNPAID = 12
    MISMATCH = 13
    UNDER_WAY = 14


@dataclass(frozen=True, slots=True)
class AccountView:
    """What a gateway shows of an account in headers and bodies. ``digits``: decimals of its scaled money."""

    version: int
    digits: int
    currency: str
    mode: str
    rate_per_second: float
    burst: int
    day_limit: int
    ceiling: int = 0
    """What the account may cost in all, scaled; 0 if unlimited or unknown."""
    constant_prices: bool = True
    """Whether the next call of a kind costs what this one costs: no price has tiers, packages or volumes."""
    lines: dict[int, str] = field(default_factory=dict, compare=False, repr=False)
    """Room for what a reader derives from the view and a price, so that it need not be made for every request."""

    @classmethod
    def from_view(cls, version: int, packed: bytes) -> AccountView:
        """Out of the account's field ``view`` (``sidecar.ledger.accounts.account_about``).

        Raises:
            ValueError, TypeError: it cannot be read.
        """
        # A later release may have more to say.
        digits, currency, mode, rate, burst, day_limit, ceiling, constant_prices, *_ = msgpack.unpackb(
            packed, raw=False
        )
        return cls(
            version=int(version),
            digits=int(digits),
            currency=str(currency),
            mode=str(mode),
            rate_per_second=float(rate),
            burst=int(burst),
            day_limit=int(day_limit),
            ceiling=max(0, int(ceiling)),
            constant_prices=bool(constant_prices),
        )

    def money(self, scaled: int) -> str:
        """Scaled money as a plain decimal, e.g. 1234 with 3 digits: ``1.234``."""
        if not self.digits:
            return str(scaled)
        sign, scaled = ("-", -scaled) if scaled < 0 else ("", scaled)
        whole, part = divmod(scaled, 10**self.digits)
        return f"{sign}{whole}.{part:0{self.digits}d}"


@dataclass(frozen=True, slots=True)
class IdempotencyKey:
    """What tells that a call is one that was made before.

    Attributes:
        digest: 16 bytes of account and scope (``sidecar.ledger.keys.idempotency_digest``).
        fingerprint: 16 bytes of what was sent. A call with another one is no repeat.
        repeats_max: repeats of a charged call that are free.
        refuse_conflicts: another fingerprint, or a first call that is still under way, is refused; else it is charged.
    """

    digest: bytes
    fingerprint: bytes
    repeats_max: int = 3
    refuse_conflicts: bool = False


class Hold:
    """Units reserved, or asked for. Ends in exactly one settle or release, or in a refusal.

    Attributes:
        available: scaled money that is left, -1 for no limit; for CREDIT what there is. For RATE and DAILY it is the
            wait, see `retry_us` (of UNPAID too): the script answers two integers whose meaning depends on the code
            (docs/ledger.md).
        price: scaled money that the call costs.
        rate_left, day_left: requests that would pass now by the rate, and today; -1 without such a limit.
        epoch: the instance's when it was granted.
        mark: a number that tells that the idempotency key is this hold's until it ends; 0: it has none, or the key is
            another call's.
        record: 16 bytes that name a charge of a spool, which is made once.
    """

    # What is set later, or seldom, stands in the class until then.
    code: int = Code.UNAVAILABLE
    available = 0
    price = 0
    rate_left = -1
    day_left = -1
    view: AccountView | None = None
    epoch = 0
    mark = 0
    record: bytes | None = None
    open = False

    def __init__(
        self,
        account: str,
        metric: str,
        units: int,
        key: IdempotencyKey | None,
        callback: Callable[[Hold], None] | None,
    ) -> None:
        self.account = account
        self.metric = metric
        self.units = units
        self.key = key
        self.callback = callback

    @property
    def retry_us(self) -> int:
        """Microseconds until a call would pass. For RATE, DAILY and UNPAID."""
        return self.available

    def __repr__(self) -> str:
        return f"<Hold {self.account} {self.metric}x{self.units} {Code(self.code).name} open={self.open}>"
