"""What is counted and logged of a request that is over."""

from __future__ import annotations

from typing import Final

import orjson

from sidecar.gateway.client import Client
from sidecar.gateway.context import INTERACTION_ID, TRACEPARENT, GatewayContext
from sidecar.gateway.exchange.charging import METHODS, ChargedRelay
from sidecar.gateway.http1.framing import ProtocolError
from sidecar.ledger.client.outcomes import Code

_GRANTED: Final = int(Code.GRANTED)
_REPEAT: Final = int(Code.REPEAT)


def record(relay: ChargedRelay, status: int, now: float, *, refused: bool, reason: str = "") -> None:
    """Counts and logs a request that is over. ``now``: the monotonic clock's time."""
    context = relay.context
    counters = context.counters
    elapsed = now - relay.started
    method = relay.head.method
    endpoint = relay.route.name
    hold = relay.hold
    account = relay.account
    counters.latency.observe(elapsed)
    label = counters.label(account) if account else "-"
    counters.count(label, METHODS.get(method) or "OTHER", endpoint, status)
    if (
        hold is not None
        and hold.code == _GRANTED
        and hold.available >= 0
        and hold.view is not None
        and label is account
    ):
        counters.remaining[label] = (hold.available, hold.view.digits)
    if context.access_log is not None and (context.settings.access_log == "all" or status >= 500 or refused):
        fields = relay.head.fields
        interaction_id, traceparent = fields.get(INTERACTION_ID), fields.get(TRACEPARENT)
        client = relay.connection
        context.access_log(
            orjson.dumps(
                {
                    "event": "request",
                    "method": method.decode("latin-1"),
                    "endpoint": endpoint,
                    "path": relay.head.path[:512].decode("latin-1"),
                    "status": status,
                    "account": account or None,
                    "reason": reason or None,
                    "duration_ms": round(elapsed * 1000, 3),
                    "units": relay.charged_units,
                    "repeat": hold is not None and hold.code == _REPEAT,
                    "client": client.peer.address if client is not None else None,
                    "interaction_id": interaction_id[:128].decode("latin-1") if interaction_id else None,
                    "traceparent": traceparent[:128].decode("latin-1") if traceparent else None,
                }
            )
        )


def record_refused_head(context: GatewayContext, client: Client, error: ProtocolError) -> None:
    """Counts and logs bytes that are no request."""
    context.counters.count("-", "OTHER", "-", error.status)
    if context.access_log is not None:
        context.access_log(
            orjson.dumps(
                {
                    "event": "refused",
                    "status": error.status,
                    "reason": error.reason,
                    "client": client.peer.address,
                }
            )
        )
