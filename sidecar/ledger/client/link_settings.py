"""How a link behaves, and what an instance's links have counted."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

ROUND_TRIP_BOUNDS_S = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)


@dataclass(frozen=True, slots=True)
class LinkSettings:
    """Times in seconds. ``operations_max``: operations in one batch, which bounds how long a script runs.

    ``settle_delay_s``: how long settles and releases wait for a hold to go with, since nobody waits for them.
    """

    hold_budget_s: float = 0.25
    settle_delay_s: float = 0.002
    breaker_failures: int = 5
    breaker_open_s: float = 1.0
    operations_max: int = 512
    idempotency_ttl_ms: int = 86_400_000
    unpaid_per_second: float = 50.0
    """Answers of the API to one account that may cost nothing, a second; 0: any number."""
    unpaid_burst: int = 500
    create: bool = True
    """Whether a partition that has nothing becomes a new ledger's. Off where a ledger must exist."""
    create_again: bool = False
    """The same for a partition that this process has used before, so that its data was lost: only where somebody fills
    it again (Lago)."""
    no_reply_s: float = 2.0
    """A connection without a reply, or with nothing but refusals of the same batch, for so long is closed."""
    window_bytes: int = 33_554_432
    """Confirmed batches that are kept in memory, to be offered again to a server whose data went back."""
    chain_key: bytes = field(default=b"", repr=False)
    """Key of the chain through the outbox entries; b"": there is no chain (``ledger/proof``)."""

    @property
    def unpaid_interval_us(self) -> int:
        """Time in which one more unpaid answer is allowed; 0: any number."""
        return max(1, round(1_000_000 / self.unpaid_per_second)) if self.unpaid_per_second > 0 else 0


@dataclass(slots=True)
class LedgerCounters:
    """Totals since the start, shared by an instance's links."""

    batches: int = 0
    operations: int = 0
    holds: int = 0
    settles: int = 0
    releases: int = 0
    timeouts: int = 0
    reconnects: int = 0
    resent: int = 0
    late_grants: int = 0
    registrations: int = 0
    script_errors: int = 0
    refusals: Counter[str] = field(default_factory=Counter)
    """Error replies to batches, by their first word (server_answers.py)."""
    refused_settles: int = 0
    """Settles that no account could take, kept in the ledger as refused."""
    lost_settles: int = 0
    """Settles that not even that could be done with. They are in the log alone."""
    clock_steps: int = 0
    generations: int = 0
    """How often the ledger was found to be another one than before."""
    losses: int = 0
    """How often a partition's data was found to have gone back, or to be gone."""
    lost_operations: int = 0
    """Confirmed charges that a server lost. They are offered again, but for the unrecovered ones."""
    unrecovered_operations: int = 0
    """Those of them that were not in memory any more. They are lost."""
    round_trip_s: float = 0.0
    round_trip_buckets: list[int] = field(default_factory=lambda: [0] * (len(ROUND_TRIP_BOUNDS_S) + 1))


def round_trip_bucket(elapsed_s: float) -> int:
    for index, bound in enumerate(ROUND_TRIP_BOUNDS_S):
        if elapsed_s <= bound:
            return index
    return len(ROUND_TRIP_BOUNDS_S)
