"""What all connections of one gateway process share."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from time import monotonic
from typing import Final, Protocol

from sidecar.basics.logger import get_logger
from sidecar.gateway.admission.body_budget import BodyBudget
from sidecar.gateway.admission.free_rates import FreeRates
from sidecar.gateway.admission.log_sampling import WINDOW_S, LogSampling
from sidecar.gateway.admission.shed_log import ShedLog
from sidecar.gateway.counters import ProxyCounters
from sidecar.gateway.destinations import Destinations
from sidecar.gateway.errors import OVERLOADED, ErrorWriter, Kind, Refusal
from sidecar.gateway.http1.framing import HeadParser
from sidecar.gateway.http1.grammar import fold
from sidecar.gateway.http1.limits import Limits
from sidecar.gateway.http1.name_patterns import NamePatterns
from sidecar.gateway.interaction_id import FAPI_INTERACTION_ID, InteractionIds, interaction_field
from sidecar.gateway.methods import METHOD_OVERRIDES, PATH_OVERRIDES, PREFLIGHT
from sidecar.gateway.parameters import ProxySettings
from sidecar.gateway.relay import Relay
from sidecar.gateway.routes import Route, RouteTable
from sidecar.gateway.trace_context import TRACEPARENT, TRACESTATE
from sidecar.identity.chain import IdentityChain
from sidecar.identity.field_names import TPP_ID, TPP_ORGANISATION_ID, TPP_RESOLVER, spellings
from sidecar.identity.types import Peer
from sidecar.ledger.client.ledger_client import LedgerClient
from sidecar.ledger.client.outcomes import Event, Hold
from sidecar.ledger.client.unknown_accounts import AccountLookup

log = get_logger("sidecar.gateway")

MAX_FORWARDS: Final = b"max-forwards"
EXPECT: Final = b"expect"
KEEP_ALIVE: Final = b"keep-alive"
HOPS: Final = b"x-quota-sidecar-hops"
"""The gateways that a request came through, each with an id of its own; `exchange.marks` looks at it."""
FORWARDED: Final = (b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host")
REFUSED_ACCOUNTS_MAX: Final = 10_000


UNTRUSTED_FIELDS: Final = (
    b"forwarded", b"x-forwarded", b"x-forwarded-*", b"x-real-ip", b"true-client-ip", b"client-cert",
    b"client-cert-chain", b"ssl-client-*", b"x-consumer-*",
    b"script-name", b"x-script-name", b"path-info", b"daphne-root-path",
)  # fmt: skip
"""Fields by which proxies tell servers who a client is, and (the last line) how much of the path is not the API's:
gunicorn believes ``SCRIPT_NAME`` of any peer on its own host. From a peer that is not trusted they say nothing."""


def answer_limits(limits: Limits, head_bytes_max: int = 0) -> Limits:
    """Limits of answers, for ``limits`` of requests: larger than whatever an API repeats of a request.

    A head may come back whole, in several fields, with every byte escaped as three (in ``Location``) or with the text
    of a field for every word (a cookie that is deleted). ``head_bytes_max`` says otherwise; 0 for 16 heads and 64 KiB.
    The shortest field line has three bytes and its CRLF, so no number of fields is refused before their bytes are.
    """
    bytes_max = max(head_bytes_max or 16 * limits.head_bytes_max + 65_536, limits.head_bytes_max)
    return Limits(
        method_bytes_max=limits.method_bytes_max,
        target_bytes_max=limits.target_bytes_max,
        head_bytes_max=bytes_max,
        fields_max=bytes_max // 5,
        body_bytes_max=None,
        chunk_extension_bytes_max=limits.chunk_extension_bytes_max,
        trailer_bytes_max=bytes_max,
        trailer_fields_max=bytes_max // 5,
    )


class Spool(Protocol):
    """Where charges go while the ledger is away (`on_ledger_failure: open`)."""

    def note(self, hold: Hold) -> None: ...
    def admit(self, hold: Hold) -> bool: ...
    def charge(self, hold: Hold, event: Event) -> None: ...
    def give_back(self, hold: Hold) -> None: ...
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
        self.log_sampling = LogSampling(0 if settings.access_log == "all" else settings.log_lines_max)
        self._log_window: asyncio.TimerHandle | None = None
        self.loop = asyncio.get_running_loop()
        self.counters = ProxyCounters()
        self.errors = ErrorWriter(settings.error_format, settings.error_documentation_url)
        self.destinations = Destinations(settings, self.counters)
        self.no_route = Route("-", free=True)
        self.unknown_peer = Peer("", False)
        self.detached: set[Relay] = set()
        """Exchanges that go on without their client, until the API's answer decides whether they are charged."""
        self.bodies = BodyBudget(settings.request_buffers_bytes)
        self.head_bytes = 0
        """What clients have sent of heads that are not complete, and of requests after the one under way."""
        self.head_bytes_high = settings.head_buffers_bytes // 5 * 4
        """At which some of them give way."""
        rate = settings.free_per_second
        self.free_rates = FreeRates(rate, settings.free_burst) if rate else None
        self._shed_log = ShedLog()
        self.refused_accounts: set[str] = set()
        """Accounts whose last call was refused. Their next one asks before its body is read."""
        self.draining = False
        """No connection is kept for another request."""
        self.interaction_ids = InteractionIds(interaction_field(settings.error_format))
        self._make_parsers(settings, identity)
        via = tuple(b"Via: 1.%d %b\r\n" % (minor, settings.via) if settings.via else b"" for minor in (0, 1))
        self.via = via if settings.via_on_answers else (b"", b"")
        """Field lines for an answer that was received in HTTP/1.0, and in HTTP/1.1 (RFC 9110 section 7.6.3)."""
        self.request_via = via if settings.via_on_requests else (b"", b"")
        """The same for a request."""
        self.gateway_id = os.urandom(8).hex().encode()
        """Of this process, in `HOPS`."""
        self.hop_line = b"X-Quota-Sidecar-Hops: %b\r\n" % self.gateway_id
        self._upstream_warned = 0.0

    def logs(self, status: int, reason: str, client: str) -> bool:
        """Whether a line about a refusal, or a failure, is to be logged."""
        if self._log_window is None:
            self._log_window = self.loop.call_later(WINDOW_S, self.end_log_window)
        return self.log_sampling.admits(status, reason, client)

    def end_log_window(self) -> None:
        """Log how many lines were left out, and begin anew."""
        if self._log_window is not None:
            self._log_window.cancel()
            self._log_window = None
        for left_out in self.log_sampling.end_window():
            status, reason = left_out.kind
            log.warning("requests not logged", count=left_out.count, status=status, reason=reason,
                        clients=left_out.clients, most_from=left_out.client)  # fmt: skip

    def _make_parsers(self, settings: ProxySettings, identity: IdentityChain) -> None:
        name = self.interaction_ids.name
        marks = {name, FAPI_INTERACTION_ID, TRACEPARENT, HOPS, MAX_FORWARDS, EXPECT, *METHOD_OVERRIDES}
        rare = {TRACESTATE, *self.routes.key_fields, *PREFLIGHT}
        interesting = identity.reads | marks | rare
        always = {*identity.consumes, *PATH_OVERRIDES}
        if settings.forward_identity:
            for own_field in (TPP_ID, TPP_ORGANISATION_ID, TPP_RESOLVER):
                always |= spellings(own_field)
        forwarded = set(FORWARDED) if settings.forwarded_headers else set[bytes]()
        own = NamePatterns(settings.drop_fields)
        like = NamePatterns((*UNTRUSTED_FIELDS, *settings.drop_fields))
        drop = always | forwarded | identity.spoofable | {each for each in interesting if own.match(fold(each))}
        limits = settings.limits
        self.request_parser = HeadParser(interesting, drop, limits, like=like, marks=marks, https=False)
        """For requests of peers that are not trusted, without TLS."""
        self._tls_parser = HeadParser(interesting, drop, limits, like=like, marks=marks)
        # A trusted peer's fields go on, but for spellings that nobody sends who means well.
        plain = {fold(read) for read in identity.reads}
        imitations = {
            spelled for spelled in identity.spoofable - identity.reads if fold(spelled) != spelled or spelled in plain
        }
        self._trusted_parser = HeadParser(
            interesting | {FORWARDED[0]},
            always | forwarded | imitations,
            limits,
            like=like,
            plain_passes=True,
            marks=marks,
        )
        self.response_parser = HeadParser(
            (name,),
            (),
            answer_limits(limits, settings.answer_head_bytes_max),
            like=NamePatterns((name,)),
            marks=(name, KEEP_ALIVE),
        )

    def parser_for(self, peer: Peer, *, secure: bool) -> HeadParser:
        """What reads the requests of a connection. ``secure``: it has TLS. A trusted peer may have taken TLS off."""
        if peer.trusted:
            return self._trusted_parser
        return self._tls_parser if secure else self.request_parser

    def forwarded_prefix(self, peer: Peer, *, secure: bool) -> bytes:
        """X-Forwarded-* of every request of an untrusted peer, but for the host."""
        if not self.settings.forwarded_headers:
            return b""
        address = peer.address.encode() or b"unknown"
        scheme = b"https" if secure else b"http"
        return b"X-Forwarded-For: %b\r\nX-Forwarded-Proto: %b\r\n" % (address, scheme)

    def forwarded_by_trusted(self, peer: Peer, fields: dict[bytes, bytes], *, secure: bool) -> bytes:
        """The same for a trusted peer: its own fields are extended."""
        lines = b""
        if self.settings.forwarded_headers:
            address = peer.address.encode() or b"unknown"
            before = fields.get(b"x-forwarded-for")
            chain = before + b", " + address if before else address
            scheme = fields.get(b"x-forwarded-proto") or (b"https" if secure else b"http")
            lines = b"X-Forwarded-For: %b\r\nX-Forwarded-Proto: %b\r\n" % (chain, scheme)
            if b"x-forwarded-host" in fields:
                lines += b"X-Forwarded-Host: %b\r\n" % fields[b"x-forwarded-host"]
        return lines

    def note_refused_account(self, account: str) -> None:
        """Its next call is likely to be refused as well."""
        if len(self.refused_accounts) >= REFUSED_ACCOUNTS_MAX:
            self.refused_accounts.clear()
        self.refused_accounts.add(account)

    def shed(self, reason: str, peer: str, account: str) -> None:
        """Counts and logs what is refused or closed for want of room."""
        self.counters.shed(reason)
        self._shed_log.note(reason, peer, account, monotonic())

    def refuse_unread(self, kind: Kind) -> bytes:
        """The answer to what was not read as a request."""
        ids = self.interaction_ids
        headers = (("Retry-After", "1"),) if kind is OVERLOADED else ()
        return self.errors.response(Refusal(kind, headers=headers), keep_alive=False, interaction_id=ids.make_text())

    def note_upstream_failure(self, message: str) -> None:
        """Logs it, at most once a second."""
        now = monotonic()
        if now - self._upstream_warned > 1.0:
            self._upstream_warned = now
            log.warning("upstream failed", error=message)
