"""What OpenMeter's answer to a batch means, without I/O (facts: OpenMeter's ingest handler and what stands before it).

| answer | verdict |
| --- | --- |
| 2xx | accepted: v1 says 204, v3 202 |
| no answer, 408, 425, 429, 5xx | retry: the batch may or may not have been stored; its ids make sending it again safe |
| 3xx, 401, 403, 404 | pause: the publisher's own configuration is at fault, no event is |
| 413 | divide: some proxy's limit |
| any other 4xx | refused: at least one event of the batch is at fault, none was stored |
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


class Verdict(Enum):
    """The value is the ``outcome`` label of ``sidecar_publisher_requests_total``."""

    ACCEPTED = "accepted"
    RETRY = "retry"
    PAUSE = "pause"
    TOO_LARGE = "too_large"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Answer:
    """How one request ended. ``status`` is None when there was no answer.

    ``position``: which event of the batch the server blames first, if it said so; a hint, never a proof.
    """

    verdict: Verdict
    status: int | None
    reason: str
    position: int | None = None
    retry_after_s: float | None = None


def verdict_of(status: int) -> Verdict:
    """The class of an HTTP status."""
    if 200 <= status < 300:
        return Verdict.ACCEPTED
    if status == 413:
        return Verdict.TOO_LARGE
    if status in _PAUSE or 300 <= status < 400:
        return Verdict.PAUSE
    if 400 <= status < 500 and status not in _RETRY:
        return Verdict.REFUSED
    return Verdict.RETRY


def answer_of(status: int, body: bytes, retry_after_s: float | None = None) -> Answer:
    """The answer that a status and the beginning of a problem document (RFC 9457) make."""
    verdict = verdict_of(status)
    if verdict is Verdict.ACCEPTED:
        return Answer(verdict, status, "")
    detail = _detail(body)
    match = _INDEX.search(detail) if verdict is Verdict.REFUSED else None
    reason = f"{status} {detail}".rstrip()[:REASON_CHARS_MAX]
    return Answer(verdict, status, reason, int(match[1]) if match else None, retry_after_s)


def _detail(body: bytes) -> str:
    try:
        problem = orjson.loads(body)
    except orjson.JSONDecodeError:
        return ""
    detail = problem.get("detail") if isinstance(problem, dict) else None
    return " ".join(detail.split()) if isinstance(detail, str) else ""
