"""What the proxy counts. Plain numbers and dictionaries: a labelled Prometheus counter costs several of these."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

LATENCY_BOUNDS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
ACCOUNTS_MAX = 1000
"""Accounts with a label of their own; the rest counts as ``other``, so that a scrape stays bounded."""

SHED_PLACES: Final = "places"
SHED_QUEUE: Final = "queue"
SHED_STREAMS: Final = "streams"
SHED_BODIES: Final = "bodies"
SHED_FREE: Final = "free_routes"
SHED_HANDSHAKES: Final = "handshakes"
SHED_IDLE: Final = "idle"
SHED_HEADS: Final = "heads"
SHED_UNIDENTIFIED: Final = "unidentified"
SHED_SHARE: Final = "peer_share"
SHED_CONNECTIONS: Final = "connections"
SHED_REASONS: Final = (
    SHED_PLACES, SHED_QUEUE, SHED_STREAMS, SHED_BODIES, SHED_FREE, SHED_HANDSHAKES, SHED_IDLE, SHED_HEADS,
    SHED_UNIDENTIFIED, SHED_SHARE, SHED_CONNECTIONS,
)  # fmt: skip
"""For want of what something is refused although nothing is wrong with it: no connection to the API became free in
time; too many calls wait for one; the account has too many tunnels and streams; bodies take too much memory; the peer
asks free routes too often; too many handshakes are under way. A connection gave way to others: it was idle; it had
begun to send a request; its caller was not identified; its peer had more than its share. None gave way, and the limit
is reached."""

HANDSHAKE_FAILURES: Final = ("tls", "timeout", "proxy_header", "untrusted_proxy")
"""Why a connection ended before it could have a request: its TLS handshake failed; that, or its PROXY header, took too
long; the header is invalid; the peer may not send one."""


@dataclass(slots=True)
class Histogram:
    bounds: tuple[float, ...]
    counts: list[int] = field(default_factory=list)
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def observe(self, value: float) -> None:
        at = 0
        for bound in self.bounds:
            if value <= bound:
                break
            at += 1
        counts = self.counts
        counts[at] = counts[at] + 1
        self.total += value


class ProxyCounters:
    """Totals since the start."""

    def __init__(self, accounts_max: int = ACCOUNTS_MAX) -> None:
        self.accounts_max = accounts_max
        self.requests: dict[tuple[str, str, str, int], int] = {}
        self.remaining: dict[str, tuple[int, int]] = {}
        self.latency = Histogram(LATENCY_BOUNDS_S)
        self.hold = Histogram(LATENCY_BOUNDS_S)
        self.refusals: dict[str, int] = {}
        self.sheds: dict[str, int] = {}
        self.charged_units: dict[str, int] = {}
        self.released = 0
        self.repeats: dict[str, int] = {}
        self.client_aborts = 0
        self.upstream_aborts = 0
        self.upstream_connects = 0
        self.upstream_retries = 0
        self.connections_accepted = 0
        self.connections_refused = 0
        self.handshake_failures: dict[str, int] = {}
        self.tunnels = 0
        self._accounts: set[str] = set()

    def label(self, account: str, *, known: bool = True) -> str:
        """``account``, or ``other`` once the bound is reached. One that is not ``known`` to the ledger takes up no
        room, so that callers cannot fill it with names that they invent: it counts as nobody's."""
        if account in self._accounts:
            return account
        if not known:
            return "-"
        if len(self._accounts) < self.accounts_max:
            self._accounts.add(account)
            return account
        return "other"

    def count(self, account: str, method: str, endpoint: str, status: int) -> None:
        """``account``: its `label`, or - for nobody's."""
        key = (account, method, endpoint, status)
        requests = self.requests
        requests[key] = requests.get(key, 0) + 1

    def shed(self, reason: str) -> None:
        """Something was refused for want of room."""
        self.sheds[reason] = self.sheds.get(reason, 0) + 1

    def fail_handshake(self, reason: str) -> None:
        """A connection ended before it could have a request."""
        self.handshake_failures[reason] = self.handshake_failures.get(reason, 0) + 1

    def count_repeat(self, account: str) -> None:
        """A free repeat of a charged call."""
        label = self.label(account)
        self.repeats[label] = self.repeats.get(label, 0) + 1

    def refuse(self, kind: str) -> None:
        self.refusals[kind] = self.refusals.get(kind, 0) + 1
