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
from sidecar.gateway.context import IDEMPOTENCY_KEYS, GatewayContext
from sidecar.gateway.errors import Refusal
from sidecar.gateway.exchange.credit_fields import granted_fields, refusal_of
from sidecar.gateway.http1.heads import RequestHead
from sidecar.gateway.interaction_id import WHOLE, id_text
from sidecar.gateway.methods import method_label
from sidecar.gateway.relay import Relay
from sidecar.gateway.routes import Route
from sidecar.gateway.trace_context import TRACEPARENT
from sidecar.identity.types import Identity, IdentityUnavailable, Outcome, Unidentified
from sidecar.ledger.client.outcomes import Code, Event, Hold
from sidecar.ledger.client.unknown_accounts import AccountLookup

IDEMPOTENCY_KEY_BYTES_MAX: Final = 255
_GRANTED: Final = int(Code.GRANTED)
_REPEAT: Final = int(Code.REPEAT)
_RETRY: Final = (("Retry-After", "1"),)
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
    charged_units = 0
    _asked = False
    _spooled = False

    def __init__(self, context: GatewayContext, connection: Client, head: RequestHead, started: float) -> None:
        self.context = context
        self.connection: Client | None = connection
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
            method = self._method = method_label(self.head.method)
        return method

    def granted(self, now: float = 0.0) -> None:
        """The request may go to the API. ``now``: the clock's time if it was just read."""
        raise NotImplementedError

    def refuse(self, refusal: Refusal) -> None:
        """Answers with an error. Only while nothing of another response was written."""
        raise NotImplementedError

    # identify

    def charge(self) -> None:
        """Finds out whose request it is, and takes the hold."""
        assert self.connection is not None
        outcome = self.context.identity.identify(self.head.fields, self.connection.peer)
        if isinstance(outcome, Identity):
            self.identity = outcome
            self.account = outcome.account
            self._take_hold()
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
            self.refuse(Refusal(errors.IDENTITY_UNAVAILABLE, str(error), headers=_RETRY))
        except asyncio.CancelledError:
            self.refuse(Refusal(errors.IDENTITY_UNAVAILABLE, headers=_RETRY))
        else:
            if isinstance(outcome, Identity):
                self.identity = outcome
                self.account = outcome.account
                self._take_hold()
            else:
                self._unidentified(outcome)

    def _unidentified(self, outcome: Unidentified) -> None:
        headers = (("WWW-Authenticate", outcome.challenge),) if outcome.challenge else ()
        self.refuse(Refusal(errors.UNIDENTIFIED, outcome.reason, headers=headers))

    # hold

    def _take_hold(self) -> None:
        route = self.route
        scope = self._idempotency_scope()
        hold = self.context.ledger.hold(self.account, route.metric, route.units, self._held, scope)
        if self.hold is None:  # else it was decided at once, and _held has it
            self.hold = hold

    def _idempotency_scope(self) -> bytes | None:
        """What makes two requests one logical call. Method and target are in it, so that one key cannot make every call
        free."""
        head = self.head
        if head.method not in self.route.idempotent_methods:
            return None
        for name in IDEMPOTENCY_KEYS:
            key = head.fields.get(name)
            if key and len(key) <= IDEMPOTENCY_KEY_BYTES_MAX:
                return head.method + b" " + head.target + b"\0" + key
        return None

    def _held(self, hold: Hold) -> None:
        self.hold = hold
        context = self.context
        now = _clock()
        context.counters.hold.observe(now - self.started)
        code = hold.code
        if code in (_GRANTED, _REPEAT):
            self.granted(now)
        elif code == Code.UNAVAILABLE and context.spool is not None and context.spool.admit(self.account, hold.units):
            self._spooled = True
            self.granted()
        elif code == Code.UNKNOWN and context.unknown_accounts is not None and not self._asked:
            self._asked = True
            context.unknown_accounts.ask(self.account, self._account_looked_up)
        else:
            self.refuse(refusal_of(hold))

    def _account_looked_up(self, lookup: AccountLookup) -> None:
        """The account was not in the ledger; whoever knows it was asked to bring it."""
        hold = self.hold
        if self.finished or hold is None:
            return
        if lookup is AccountLookup.KNOWN:
            self.hold = None
            self._take_hold()
        elif lookup is AccountLookup.ABSENT:
            self.refuse(refusal_of(hold))
        else:
            self.refuse(Refusal(errors.LEDGER_UNAVAILABLE, "The account is being looked up.", headers=_RETRY))

    def credit_fields(self, hold: Hold) -> bytes:
        """Field lines for the answer: what the call costs and what is left."""
        if not (hold.open or hold.code == _REPEAT):
            return b""
        settings = self.context.settings
        return granted_fields(hold, credits=settings.credit_headers, rate_limit=settings.rate_limit_headers)

    # settle, release

    def settle_or_release(self, decisive_status: int, reported_status: int, now: float) -> None:
        """``decisive_status`` is the API's answer, and the route says whether it is charged; the event carries
        ``reported_status``."""
        hold = self.hold
        if hold is None:
            return
        context, route = self.context, self.route
        charged = decisive_status in route.charged
        if hold.open:
            if not charged:
                context.counters.released += 1
                context.ledger.release(hold)
                return
            context.ledger.settle(hold, self._event(reported_status, now))
            self.charged_units = hold.units
            charged_units = context.counters.charged_units
            charged_units[hold.metric] = charged_units.get(hold.metric, 0) + hold.units
        elif self._spooled and context.spool is not None:
            self._spooled = False
            if charged:
                context.spool.charge(hold, self._event(reported_status, now))
                self.charged_units = hold.units
            else:
                context.spool.give_back(self.account, hold.units)
        hold.callback = None

    def release(self) -> None:
        """Ends the hold without a charge: the request never reached the API, or the API failed."""
        hold = self.hold
        if hold is None:
            return
        hold.callback = None
        if hold.open:
            self.context.counters.released += 1
            self.context.ledger.release(hold)
        elif self._spooled and self.context.spool is not None:
            self._spooled = False
            self.context.spool.give_back(self.account, hold.units)

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
