"""What is counted and logged of a request that is over."""

from __future__ import annotations

from typing import Final

import orjson

from sidecar.gateway.client import Client
from sidecar.gateway.context import GatewayContext
from sidecar.gateway.exchange.charging import ChargedRelay
from sidecar.gateway.http1.framing import ProtocolError
from sidecar.gateway.methods import OTHER_METHOD
from sidecar.gateway.trace_context import TRACEPARENT
from sidecar.ledger.client.outcomes import Code

_GRANTED: Final = int(Code.GRANTED)
_REPEAT: Final = int(Code.REPEAT)


def record(relay: ChargedRelay, status: int, now: float, *, refused: bool, reason: str = "") -> None:
    """Counts and logs a request that is over. ``now``: the monotonic clock's time."""
    context = relay.context
    counters = context.counters
    elapsed = now - relay.started
    method = relay.method
    endpoint = relay.route.name
    hold = relay.hold
    account = relay.account
    counters.latency.observe(elapsed)
    # The ledger knows an account of which it has said more than that it does not.
    known = hold is not None and (hold.view is not None or hold.code == _GRANTED)
    label = counters.label(account, known=known) if account else "-"
    counters.count(label, method, endpoint, status)
    if (
        hold is not None
        and hold.code == _GRANTED
        and hold.available >= 0
        and hold.view is not None
        and label is account
    ):
        counters.remaining[label] = (hold.available, hold.view.digits)
    if context.access_log is None:
        return
    is_trouble = status >= 500 or refused
    if context.logs(status, reason, relay.peer.address) if is_trouble else context.settings.access_log == "all":
        traceparent = relay.head.fields.get(TRACEPARENT)
        context.access_log(
            orjson.dumps(
                {
                    "event": "request",
                    "method": method,
                    "endpoint": endpoint,
                    "path": relay.head.path[:512].decode("latin-1"),
                    "status": status,
                    "account": account or None,
                    "reason": reason or None,
                    "shed": relay.shed_for or None,
                    "policy": relay.policy or None,
                    "duration_ms": round(elapsed * 1000, 3),
                    "units": relay.charged_units,
                    "repeat": hold is not None and hold.code == _REPEAT,
                    "client": relay.peer.address,
                    "interaction_id": relay.interaction_id,
                    "traceparent": traceparent[:128].decode("latin-1") if traceparent else None,
                }
            )
        )


def record_refused_head(context: GatewayContext, client: Client, error: ProtocolError, interaction_id: str) -> None:
    """Counts and logs bytes that are no request. ``interaction_id`` is that of the answer."""
    context.counters.count("-", OTHER_METHOD, "-", error.status)
    if context.access_log is not None and context.logs(error.status, error.reason, client.peer.address):
        context.access_log(
            orjson.dumps(
                {
                    "event": "refused",
                    "status": error.status,
                    "reason": error.reason,
                    "client": client.peer.address,
                    "interaction_id": interaction_id,
                }
            )
        )
