"""Who pays for a request, and whether: identify, hold, then settle or release, once.

Nothing here knows how bytes travel. A subclass carries them: it calls `charge` when it knows the route, goes on with
`granted` or ends with `refuse`, and calls `settle_or_release` with the API's status, or `release` when there is none.
"""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import Final

from sidecar.gateway import errors
from sidecar.gateway.client import Client
from sidecar.gateway.context import GatewayContext
from sidecar.gateway.errors import Refusal
from sidecar.gateway.exchange.credit_fields import granted_fields, refusal_of, uncharged
from sidecar.gateway.http1.heads import RequestHead
from sidecar.gateway.idempotency import KeyRefused, call_key, named_method, read_key
from sidecar.gateway.interaction_id import WHOLE, id_text
from sidecar.gateway.methods import METHOD_LABELS, OTHER_METHOD
from sidecar.gateway.relay import Relay
from sidecar.gateway.routes import Route, is_charged
from sidecar.gateway.trace_context import TRACEPARENT
from sidecar.identity.types import Identity, IdentityUnavailable, Outcome, Unidentified
from sidecar.ledger.client.outcomes import Code, Event, Hold
from sidecar.ledger.client.unknown_accounts import AccountLookup

_LABELS: Final = METHOD_LABELS
_GRANTED: Final = int(Code.GRANTED)
_REPEAT: Final = int(Code.REPEAT)
_LASTING: Final = frozenset({
    int(Code.CREDIT), int(Code.SUSPENDED), int(Code.CLOSED), int(Code.UNKNOWN), int(Code.UNPRICED)
})  # fmt: skip
"""Refusals that the account's next call is likely to meet as well."""
RETRY: Final = (("Retry-After", "1"),)
_clock: Final = monotonic


class ChargedRelay(Relay):
    """A relay whose request may cost something. ``connection`` is None once the client has gone."""

    # What most exchanges never change stands in the class, not in each of them: an object is made for every request.
    account = ""
    identity: Identity | None = None
    _method = ""
    id_number = WHOLE
    id_is_new = False
    """The gateway made the interaction id, as the request had none."""
    hold: Hold | None = None
    asked_for_hold = False
    charged_units = 0
    policy = ""
    """The limit of the account that refused the call: ``rate``, ``daily`` or ``unpaid``."""
    shed_for = ""
    """What there was no room for, one of ``counters.SHED_REASONS``."""
    caller_key: bytes | None = None
    _asked = False
    _spooled = False

    def __init__(self, context: GatewayContext, connection: Client, head: RequestHead, started: float) -> None:
        self.context = context
        self.connection: Client | None = connection
        self.peer = connection.peer
        self.head = head
        self.started = started
        self.route: Route = context.no_route
        self.id_block = context.interaction_ids.block
        """With ``id_number``: the id by which caller, gateway and API know this call, see `interaction_id`."""

    @property
    def interaction_id(self) -> str:
        """The id by which caller, gateway and API know this call: the API's as soon as it has named one."""
        return id_text(self.id_block, self.id_number)

    @property
    def method(self) -> str:
        """What metrics, events and logs call the method."""
        method = self._method
        if not method:
            method = self._method = _LABELS.get(self.head.method) or OTHER_METHOD
        return method

    def granted(self, now: float = 0.0) -> None:
        """The request may go to the API. ``now``: the clock's time if it was just read."""
        raise NotImplementedError

    def refuse(self, refusal: Refusal) -> None:
        """Answers with an error. Only while nothing of another response was written."""
        raise NotImplementedError

    def content(self) -> bytes | None:
        """The request's content, None if it is not there as a whole. Asked for before anything goes to the API."""
        raise NotImplementedError

    def identified(self) -> None:
        """``account`` is known, and ``caller_key`` if there is one that counts. Ends in `take_hold`, now or when enough
        of the request's body is there."""
        raise NotImplementedError

    # identify

    def charge(self) -> None:
        """Finds out whose request it is."""
        assert self.connection is not None
        outcome = self.context.identity.identify(self.head.fields, self.connection.peer)
        if isinstance(outcome, Identity):
            self._identified(outcome)
        elif isinstance(outcome, Unidentified):
            self._unidentified(outcome)
        else:
            outcome.add_done_callback(self._identified_later)

    def _identified_later(self, future: asyncio.Future[Outcome]) -> None:
        if self.finished:
            if not future.cancelled():
                future.exception()  # looked at, so that it is not reported as lost
            return
        try:
            outcome = future.result()
        except IdentityUnavailable as error:
            self.refuse(Refusal(errors.IDENTITY_UNAVAILABLE, str(error), headers=RETRY))
        except asyncio.CancelledError:
            self.refuse(Refusal(errors.IDENTITY_UNAVAILABLE, headers=RETRY))
        else:
            if isinstance(outcome, Identity):
                self._identified(outcome)
            else:
                self._unidentified(outcome)

    def _identified(self, identity: Identity) -> None:
        self.identity = identity
        self.account = identity.account
        if self.route.idempotency is not None:
            try:
                self.caller_key = read_key(self.route.idempotency, self.head.method, self.head.fields)
            except KeyRefused as refused:
                self.refuse(Refusal(refused.kind, refused.reason))
                return
        self.identified()

    def _unidentified(self, outcome: Unidentified) -> None:
        headers = (("WWW-Authenticate", outcome.challenge),) if outcome.challenge else ()
        self.refuse(Refusal(errors.UNIDENTIFIED, outcome.reason, headers=headers))

    # hold

    def take_hold(self) -> None:
        """Asks the ledger for what the call costs."""
        self.asked_for_hold = True
        route = self.route
        key, rule, head = None, route.idempotency, self.head
        if self.caller_key is not None and rule is not None:
            method = named_method(head.method, head.fields)
            key = call_key(rule, self.caller_key, self.account, method, head.target, self.content())
        hold = self.context.ledger.hold(self.account, route.metric, route.units, self._held, key)
        if self.hold is None:  # else it was decided at once, and _held has it
            self.hold = hold

    def _held(self, hold: Hold) -> None:
        self.hold = hold
        context = self.context
        now = _clock()
        context.counters.hold.observe(now - self.started)
        code = hold.code
        if context.spool is not None:
            context.spool.note(hold)
        if code == _REPEAT:
            self._note_repeat(hold)
        if code in (_GRANTED, _REPEAT):
            if context.refused_accounts:
                context.refused_accounts.discard(self.account)
            self.granted(now)
        elif code == Code.UNAVAILABLE and context.spool is not None and context.spool.take_repeat(hold):
            hold.code = _REPEAT
            context.counters.count_repeat(self.account)
            self.granted()
        elif code == Code.UNAVAILABLE and context.spool is not None and context.spool.admit(hold):
            self._spooled = True
            self.granted()
        elif code == Code.UNKNOWN and context.unknown_accounts is not None and not self._asked:
            self._asked = True
            context.unknown_accounts.ask(self.account, self._account_looked_up)
        else:
            if code in _LASTING:
                context.note_refused_account(self.account)
            self.refuse(refusal_of(hold))

    def _note_repeat(self, hold: Hold) -> None:
        """The ledger says that the call is a free repeat."""
        self.context.counters.count_repeat(self.account)
        if self.context.spool is not None:
            self.context.spool.note_repeat(hold)

    def _account_looked_up(self, lookup: AccountLookup) -> None:
        """The account was not in the ledger; whoever knows it was asked to bring it."""
        hold = self.hold
        if self.finished or hold is None:
            return
        if lookup is AccountLookup.KNOWN:
            self.hold = None
            self.take_hold()
        elif lookup is AccountLookup.ABSENT:
            self.refuse(refusal_of(hold))
        else:
            self.refuse(Refusal(errors.LEDGER_UNAVAILABLE, "The account is being looked up.", headers=RETRY))

    def credit_fields(self, hold: Hold, *, charged: bool) -> bytes:
        """Field lines for the answer: what the call costs and what is left. ``charged``: by the answer's status."""
        if not (hold.open or hold.code == _REPEAT):
            return b""
        if not charged and hold.code == _GRANTED:
            hold = uncharged(hold)
        settings = self.context.settings
        return granted_fields(hold, credits=settings.credit_headers, rate_limit=settings.rate_limit_headers)

    def charged_fields(self) -> bytes:
        """The same for an answer of the gateway's own; none if the call is not charged."""
        hold = self.hold
        if hold is None or not self.charged_units or not self.context.settings.credit_headers:
            return b""
        return granted_fields(hold, credits=True, rate_limit=False)

    # settle, release

    def settle_or_release(self, decisive_status: int, reported_status: int, now: float) -> None:
        """``decisive_status`` is the API's answer, and the route says whether it is charged; the event carries
        ``reported_status``."""
        if self.hold is None:
            return
        if is_charged(self.route, self.head.method, decisive_status):
            self.settle(reported_status, now)
        else:
            self.release(reached=True)

    def settle(self, reported_status: int, now: float) -> None:
        """Charges what is held."""
        hold = self.hold
        if hold is None:
            return
        context = self.context
        hold.callback = None
        if hold.open:
            context.ledger.settle(hold, self._event(reported_status, now))
            self.charged_units = hold.units
            charged_units = context.counters.charged_units
            charged_units[hold.metric] = charged_units.get(hold.metric, 0) + hold.units
            if hold.key is not None and context.spool is not None:
                context.spool.note_charged(hold)
        elif self._spooled and context.spool is not None:
            self._spooled = False
            context.spool.charge(hold, self._event(reported_status, now))
            self.charged_units = hold.units

    def release(self, *, reached: bool = False) -> None:
        """Ends the hold without a charge. ``reached``: the request had gone to the API. An account has so many of
        those a second, since they cost the API its work and the caller nothing."""
        hold = self.hold
        if hold is None:
            return
        hold.callback = None
        if hold.open:
            self.context.counters.released += 1
            self.context.ledger.release(hold, reached)
        elif self._spooled and self.context.spool is not None:
            self._spooled = False
            self.context.spool.give_back(hold)

    def _event(self, status: int, now: float) -> Event:
        head = self.head
        traceparent = head.fields.get(TRACEPARENT) if head.marked else None
        elapsed_ms = int((now - self.started) * 1_000_000) / 1000  # round() to digits takes ten times as long
        hold = self.hold
        assert hold is not None
        return (
            hold.account, hold.metric, hold.units, self.route.name, self.method, status,
            elapsed_ms,
            self.interaction_id,
            traceparent[:128].decode("latin-1") if traceparent else None,
        )  # fmt: skip
