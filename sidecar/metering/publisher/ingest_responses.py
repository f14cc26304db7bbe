"""Classifies OpenMeter's responses to batches, without I/O (facts: OpenMeter's ingest handler and what stands before
it).

| response | class |
| --- | --- |
| 2xx | accepted: v1 says 204, v3 202 |
| no response, 408, 425, 429, 5xx | retry: the batch may or may not have been stored; its ids make sending it again safe
|
| 3xx, 401, 403, 404, 407 | pause: the publisher's own configuration is at fault, no event is |
| 413 | divide: some proxy's limit |
| any other 4xx | refused: none of the batch was stored |

A refusal does not say whether an event or the server is at fault: 402, 409, 412, 422, 431 and 451 come from proxies and
gateways in front. ``refused_batches`` tells them apart.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

import orjson

REASON_CHARS_MAX = 500
_RETRY = frozenset((408, 425, 429))
_PAUSE = frozenset((401, 403, 404, 407))
_INDEX = re.compile(r'Error at "/([0-9]{1,6})[/"]')


class ResponseClass(Enum):
    """The value is the ``outcome`` label of ``sidecar_publisher_requests_total``."""

    ACCEPTED = "accepted"
    RETRY = "retry"
    PAUSE = "pause"
    TOO_LARGE = "too_large"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class IngestResponse:
    """How one request ended. ``status`` is None when there was no response.

    ``position``: which event of the batch the server blames first, if it said so; a hint, never a proof.
    """

    response_class: ResponseClass
    status: int | None
    reason: str
    position: int | None = None
    retry_after_s: float | None = None


def response_class_of(status: int) -> ResponseClass:
    """The class of an HTTP status."""
    if 200 <= status < 300:
        return ResponseClass.ACCEPTED
    if status == 413:
        return ResponseClass.TOO_LARGE
    if status in _PAUSE or 300 <= status < 400:
        return ResponseClass.PAUSE
    if 400 <= status < 500 and status not in _RETRY:
        return ResponseClass.REFUSED
    return ResponseClass.RETRY


def ingest_response(status: int, body: bytes, retry_after_s: float | None = None) -> IngestResponse:
    """The response that a status and the beginning of a problem document (RFC 9457) make."""
    response_class = response_class_of(status)
    if response_class is ResponseClass.ACCEPTED:
        return IngestResponse(response_class, status, "")
    detail = _detail(body)
    match = _INDEX.search(detail) if response_class is ResponseClass.REFUSED else None
    reason = f"{status} {detail}".rstrip()[:REASON_CHARS_MAX]
    return IngestResponse(response_class, status, reason, int(match[1]) if match else None, retry_after_s)


def _detail(body: bytes) -> str:
    try:
        problem = orjson.loads(body)
    except orjson.JSONDecodeError:
        return ""
    detail = problem.get("detail") if isinstance(problem, dict) else None
    return " ".join(detail.split()) if isinstance(detail, str) else ""
