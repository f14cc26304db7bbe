"""What all connections of one gateway process share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic
from typing import Final, Protocol

from sidecar.basics.logger import get_logger
from sidecar.gateway.body_budget import BodyBudget
from sidecar.gateway.counters import ProxyCounters
from sidecar.gateway.destinations import Destinations
from sidecar.gateway.errors import ErrorWriter
from sidecar.gateway.http1.framing import HeadParser
from sidecar.gateway.parameters import ProxySettings
from sidecar.gateway.relay import Relay
from sidecar.gateway.routes import Route, RouteTable
from sidecar.identity.chain import IdentityChain
from sidecar.identity.types import Peer
from sidecar.ledger.client.ledger_client import LedgerClient
from sidecar.ledger.client.outcomes import Event, Hold
from sidecar.ledger.client.unknown_accounts import AccountLookup

log = get_logger("sidecar.gateway")

INTERACTION_ID: Final = b"x-fapi-interaction-id"
TRACEPARENT: Final = b"traceparent"
FORWARDED: Final = (b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host")
REFUSED_ACCOUNTS_MAX: Final = 10_000


class Spool(Protocol):
    """Where charges go while the ledger is away (`on_ledger_failure: open`)."""

    def admit(self, account: str, units: int) -> bool: ...
    def charge(self, hold: Hold, event: Event) -> None: ...
    def give_back(self, account: str, units: int) -> None: ...
    def take_repeat(self, hold: Hold) -> bool: ...
    def note_charged(self, hold: Hold) -> None: ...
    def note_repeat(self, hold: Hold) -> None: ...


class UnknownAccounts(Protocol):
    """Where accounts are asked for that the ledger does not know (``sidecar.ledger.client``)."""

    def ask(self, account: str, done: Callable[[AccountLookup], None]) -> None: ...


class GatewayContext:
    """The parts that requests use, and what they count.

    Args:
        trusts: whether the identity fields of a peer's address are used.
        spool: None when the gateway fails closed.
        unknown_accounts: None when no control plane loads accounts.
        access_log: takes one JSON line a request.
    """

    def __init__(
        self,
        *,
        settings: ProxySettings,
        routes: RouteTable,
        identity: IdentityChain,
        ledger: LedgerClient,
        trusts: Callable[[str], bool],
        spool: Spool | None = None,
        unknown_accounts: UnknownAccounts | None = None,
        access_log: Callable[[bytes], None] | None = None,
    ) -> None:
        self.settings = settings
        self.routes = routes
        self.identity = identity
        self.ledger = ledger
        self.trusts = trusts
        self.spool = spool
        self.unknown_accounts = unknown_accounts
        self.access_log = access_log
        self.loop = asyncio.get_running_loop()
        self.counters = ProxyCounters()
        self.errors = ErrorWriter(settings.error_format, settings.error_documentation_url)
        self.destinations = Destinations(settings, self.counters)
        self.no_route = Route("-", free=True)
        self.unknown_peer = Peer("", False)
        self.detached: set[Relay] = set()
        """Exchanges that go on without their client, until the API's answer decides whether they are charged."""
        self.bodies = BodyBudget(settings.request_buffers_bytes)
        self.refused_accounts: set[str] = set()
        """Accounts whose last call was refused. Their next one asks before its body is read."""
        self.draining = False
        """No connection is kept for another request."""
        interesting = {INTERACTION_ID, TRACEPARENT, *routes.key_fields} | identity.reads
        drop = identity.consumes | identity.spoofable | (set(FORWARDED) if settings.forwarded_headers else set())
        self.request_parser = HeadParser(interesting, drop, settings.limits)
        self.response_parser = HeadParser((), (), settings.limits)
        self.via = tuple(b"Via: 1.%d %b\r\n" % (minor, settings.via) if settings.via else b"" for minor in (0, 1))
        """Field lines for a message that was received in HTTP/1.0, and in HTTP/1.1 (RFC 9110 section 7.6.3)."""
        self._restored = identity.spoofable - identity.consumes
        self._upstream_warned = 0.0

    def forwarded_prefix(self, peer: Peer, *, secure: bool) -> bytes:
        """X-Forwarded-* of every request of an untrusted peer, but for the host."""
        if not self.settings.forwarded_headers:
            return b""
        address = peer.address.encode() or b"unknown"
        scheme = b"https" if secure else b"http"
        return b"X-Forwarded-For: %b\r\nX-Forwarded-Proto: %b\r\n" % (address, scheme)

    def forwarded_by_trusted(self, peer: Peer, fields: dict[bytes, bytes], *, secure: bool) -> bytes:
        """The same for a trusted peer: its own fields are extended, and its identity fields go on."""
        lines = b""
        if self.settings.forwarded_headers:
            address = peer.address.encode() or b"unknown"
            before = fields.get(b"x-forwarded-for")
            chain = before + b", " + address if before else address
            scheme = fields.get(b"x-forwarded-proto") or (b"https" if secure else b"http")
            lines = b"X-Forwarded-For: %b\r\nX-Forwarded-Proto: %b\r\n" % (chain, scheme)
            if b"x-forwarded-host" in fields:
                lines += b"X-Forwarded-Host: %b\r\n" % fields[b"x-forwarded-host"]
        for name in self._restored:
            if name in fields:
                lines += b"%b: %b\r\n" % (name, fields[name])
        return lines

    def note_refused_account(self, account: str) -> None:
        """Its next call is likely to be refused as well."""
        if len(self.refused_accounts) >= REFUSED_ACCOUNTS_MAX:
            self.refused_accounts.clear()
        self.refused_accounts.add(account)

    def note_upstream_failure(self, message: str) -> None:
        """Logs it, at most once a second."""
        now = monotonic()
        if now - self._upstream_warned > 1.0:
            self._upstream_warned = now
            log.warning("upstream failed", error=message)
