"""How the OpenMeter stand-in answers: problem documents (RFC 7807), times, JSON.

Source: openmeterio/openmeter ``pkg/models/problem.go``, ``api/v3/apierrors``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from functools import lru_cache
from http import HTTPStatus

import orjson
from aiohttp import web

PROBLEM_TYPE = "application/problem+json"
V3_BAD_REQUEST = "https://kongapi.info/konnect/bad-request"

_RFC3339 = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]+)?(?:Z|[+-][0-9]{2}:[0-9]{2})")
_EXPONENT = re.compile(r"e([+-])0*([1-9][0-9]*)")


@dataclass(frozen=True, slots=True)
class InvalidParameter:
    """An entry of v3's ``invalid_parameters``: ``field`` is a path such as ``3.subject``."""

    field: str
    rule: str
    reason: str


class Problem(Exception):
    """A request is answered with a problem document. ``invalid`` makes it one of the v3 API."""

    def __init__(self, status: int, detail: str, *, invalid: Sequence[InvalidParameter] | None = None) -> None:
        super().__init__(f"{status} {detail}")
        self.status = status
        self.detail = detail
        self.invalid = invalid


def problem_answer(problem: Problem, instance: str) -> web.Response:
    try:
        title = HTTPStatus(problem.status).phrase
    except ValueError:
        title = "Unknown"
    body: dict[str, object] = {
        "type": "about:blank" if problem.invalid is None else V3_BAD_REQUEST,
        "title": title,
        "status": problem.status,
        # What was quoted from a header field may hold bytes that are no UTF-8.
        "detail": problem.detail.encode("utf-8", "replace").decode(),
        "instance": instance,
    }
    if problem.invalid:
        body["invalid_parameters"] = [
            {"field": item.field, "rule": item.rule, "reason": item.reason, "source": "body"}
            for item in problem.invalid
        ]
    return web.Response(body=orjson.dumps(body), status=problem.status, content_type=PROBLEM_TYPE)


def json_answer(value: object, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(value), status=status, content_type="application/json")


@lru_cache(maxsize=1024)  # the events of a batch are of few instants
def parse_time(text: str) -> datetime | None:
    """An RFC 3339 date-time with its offset; None if it is not one. Digits beyond microseconds are dropped."""
    if not _RFC3339.fullmatch(text):
        return None
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return None


def format_time(when: datetime) -> str:
    """RFC 3339 as Go writes it: ``Z`` for UTC, no fraction when it is zero."""
    text = when.isoformat(timespec="auto" if when.microsecond else "seconds")
    return f"{text[:-6]}Z" if text.endswith("+00:00") else text


def go_number(value: float) -> orjson.Fragment:
    """A number as Go's encoding/json writes a float64: ``1``, not ``1.0``; exponents below 1e-6 and from 1e21."""
    if not math.isfinite(value):
        return orjson.Fragment(b"null")
    if value.is_integer() and abs(value) < 2**53:
        return orjson.Fragment(str(int(value)))  # nearly every value, and much faster
    if 1e-6 <= abs(value) < 1e21:
        text = f"{Decimal(repr(value)):f}"
        return orjson.Fragment(text.rstrip("0").rstrip(".") if "." in text else text)
    return orjson.Fragment(_EXPONENT.sub(r"e\1\2", repr(value)))


def from_unix(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
