"""What a request says of its way so far: its interaction id, its trace, the gateways it came through, and how many may
follow."""

from __future__ import annotations

import re
from typing import Final

from sidecar.gateway import errors
from sidecar.gateway.context import HOPS, MAX_FORWARDS, GatewayContext
from sidecar.gateway.errors import Refusal
from sidecar.gateway.http1.fields import without
from sidecar.gateway.http1.heads import RequestHead
from sidecar.gateway.interaction_id import FAPI_INTERACTION_ID, INTERACTION_ID_BYTES_MAX, is_interaction_id
from sidecar.gateway.trace_context import TRACEPARENT, TRACESTATE, is_traceparent, new_traceparent

HOPS_MAX: Final = 8
"""Gateways in a row. Processes of one gateway do not know each other's ids, so a loop among them ends here."""
FORWARDS_MAX: Final = 999_999_999
_HOPS: Final = re.compile(rb"[0-9a-f]{16}(?:, ?[0-9a-f]{16})*+")
_FORWARDS: Final = re.compile(rb"[0-9]{1,18}")
_TRACE: Final = frozenset({TRACEPARENT, TRACESTATE})
_UNFIT: Final = f"is repeated, longer than {INTERACTION_ID_BYTES_MAX} bytes, or not of visible ASCII characters"


def given_interaction_id(context: GatewayContext, head: RequestHead) -> bytes:
    """The id in the request; empty if there is none, and if it is unfit, which `read_marks` refuses. A field without a
    value does not go on."""
    ids = context.interaction_ids
    given = head.fields.get(ids.name)
    if given is None:
        return b""
    if not given:
        head.block = without(head.block, frozenset({ids.name}))
    return given if is_interaction_id(given) else b""


def read_marks(context: GatewayContext, head: RequestHead) -> Refusal | None:
    """Looks at what is there, and mends in ``head`` what is not fit to go on."""
    fields = head.fields
    for name in {FAPI_INTERACTION_ID, context.interaction_ids.name}:
        given = fields.get(name)
        if given and not is_interaction_id(given):
            return Refusal(errors.BAD_REQUEST, f"The field {name.decode()} {_UNFIT}.")
    trace = fields.get(TRACEPARENT)
    if trace is not None and not is_traceparent(trace):
        # W3C Trace Context, sections 3.2.2.5 and 4.3: what cannot be read is left out, with tracestate, and a new trace
        # begins.
        fields[TRACEPARENT] = trace = new_traceparent()
        fields.pop(TRACESTATE, None)
        head.block = without(head.block, _TRACE) + b"traceparent: %b\r\n" % trace
    hops = fields.get(HOPS)
    if hops is not None:
        if not _HOPS.fullmatch(hops):
            head.block = without(head.block, frozenset({HOPS}))
        elif context.gateway_id in hops or hops.count(b",") + 1 >= HOPS_MAX:
            return Refusal(errors.LOOP, "The request came back to the gateway. Its route leads in a circle.")
    forwards = fields.get(MAX_FORWARDS)
    if forwards is not None and head.method == b"OPTIONS":
        if not _FORWARDS.fullmatch(forwards):
            return Refusal(errors.BAD_REQUEST, "Max-Forwards is repeated, or no number of 1 to 18 digits.")
        left = min(int(forwards), FORWARDS_MAX + 1) - 1
        fields[MAX_FORWARDS] = b"%d" % left
        if left >= 0:
            head.block = without(head.block, frozenset({MAX_FORWARDS})) + b"Max-Forwards: %d\r\n" % left
    return None


def ends_here(head: RequestHead) -> bool:
    """Whether the gateway has to answer, as Max-Forwards was used up (RFC 9110 section 7.6.2). After `read_marks`."""
    return head.method == b"OPTIONS" and head.fields.get(MAX_FORWARDS) == b"-1"
