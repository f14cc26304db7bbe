"""Errors to responses: the only place that knows what a refusal looks like on the wire.

Three dialects: RFC 9457 problem details (default), UK Open Banking's OBErrorResponse1 (Read/Write API v3.1), and the
Berlin Group's tppMessages (NextGenPSD2 1.3 section 4.13).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus

import orjson

from sidecar.gateway.interaction_id import InteractionIds, interaction_field


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of refusal. ``obie`` and ``berlin`` are its codes in those dialects."""

    name: str
    status: int
    title: str
    obie: str
    berlin: str


BAD_REQUEST = Kind("bad-request", 400, "The request is malformed", "UK.OBIE.Field.Invalid", "FORMAT_ERROR")
UNIDENTIFIED = Kind(
    "unidentified", 401, "The gateway does not know the caller", "UK.OBIE.Header.Invalid", "CERTIFICATE_MISSING"
)
OUT_OF_CREDIT = Kind("out-of-credit", 402, "Out of credit", "UK.OBIE.Rules.FailsControlParameters", "ACCESS_EXCEEDED")
SUSPENDED = Kind(
    "account-suspended", 403, "The account is suspended", "UK.OBIE.Rules.AfterCutOffDateTime", "SERVICE_BLOCKED"
)
CLOSED = Kind("account-closed", 403, "The account is closed", "UK.OBIE.Rules.AfterCutOffDateTime", "SERVICE_BLOCKED")
NOT_SUBSCRIBED = Kind(
    "not-subscribed", 403, "The plan does not include this call", "UK.OBIE.Resource.NotFound", "SERVICE_INVALID"
)
NOT_FOUND = Kind("no-route", 404, "The API has no such resource", "UK.OBIE.Resource.NotFound", "RESOURCE_UNKNOWN")
METHOD_NOT_ALLOWED = Kind(
    "method-not-allowed", 405, "The API does not have this method for the resource", "UK.OBIE.Resource.NotFound",
    "SERVICE_INVALID",
)  # fmt: skip
TIMEOUT_CLIENT = Kind(
    "request-timeout", 408, "The request took too long to arrive", "UK.OBIE.Field.Invalid", "FORMAT_ERROR"
)
TOO_FAST = Kind(
    "too-many-requests", 429, "Too many requests", "UK.OBIE.Rules.FailsControlParameters", "ACCESS_EXCEEDED"
)
KEY_MISSING = Kind(
    "idempotency-key-missing", 400, "The call needs an idempotency key", "UK.OBIE.Header.Missing", "FORMAT_ERROR"
)
KEY_INVALID = Kind(
    "idempotency-key-invalid", 400, "The idempotency key is malformed", "UK.OBIE.Header.Invalid", "FORMAT_ERROR"
)
CALL_UNDER_WAY = Kind(
    "call-under-way", 409, "A call under this idempotency key is under way", "UK.OBIE.Rules.DuplicateReference",
    "STATUS_INVALID",
)  # fmt: skip
KEY_REUSED = Kind(
    "idempotency-key-reused", 422, "The idempotency key was used for another call", "UK.OBIE.Header.Invalid",
    "FORMAT_ERROR",
)  # fmt: skip
INTERNAL = Kind("internal-error", 500, "The gateway failed", "UK.OBIE.UnexpectedError", "INTERNAL_SERVER_ERROR")
_SERVER_ERROR = ("UK.OBIE.UnexpectedError", "INTERNAL_SERVER_ERROR")
UPSTREAM_FAILED = Kind("upstream-failed", 502, "The API is unreachable or sent an invalid response", *_SERVER_ERROR)
LEDGER_UNAVAILABLE = Kind("ledger-unavailable", 503, "The gateway cannot check credits now", *_SERVER_ERROR)
IDENTITY_UNAVAILABLE = Kind("identity-unavailable", 503, "The gateway cannot verify the caller now", *_SERVER_ERROR)
OVERLOADED = Kind("overloaded", 503, "The gateway is overloaded", *_SERVER_ERROR)
LOOP = Kind("loop-detected", 508, "The request came back to the gateway", *_SERVER_ERROR)
UPSTREAM_TIMEOUT = Kind("upstream-timeout", 504, "The API did not answer in time", *_SERVER_ERROR)

KINDS = (
    BAD_REQUEST, UNIDENTIFIED, OUT_OF_CREDIT, SUSPENDED, CLOSED, NOT_SUBSCRIBED, NOT_FOUND, METHOD_NOT_ALLOWED,
    TIMEOUT_CLIENT, TOO_FAST, INTERNAL, UPSTREAM_FAILED, LEDGER_UNAVAILABLE, IDENTITY_UNAVAILABLE, OVERLOADED,
    UPSTREAM_TIMEOUT, LOOP,
    KEY_MISSING, KEY_INVALID, CALL_UNDER_WAY, KEY_REUSED,
)  # fmt: skip
"""All of them."""


CANNOT_CONNECT = "The gateway cannot connect to the API."
NO_ANSWER = "The API closed the connection without an answer."
INVALID_RESPONSE = "The API sent an invalid response."
"""Details, for clients: without names of hosts and the texts of libraries."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A kind with what is particular to this case. ``extra`` goes into the body, ``headers`` before it."""

    kind: Kind
    detail: str = ""
    status: int = 0
    extra: Mapping[str, object] = field(default_factory=dict)
    headers: tuple[tuple[str, str], ...] = ()


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


def _safe(value: str) -> str:
    return "".join(c if " " <= c <= "~" else "?" for c in value)


class ErrorWriter:
    """Writes refusals in one dialect.

    Args:
        dialect: ``problem``, ``obie`` or ``berlin_group``.
        documentation_url: where kinds are explained; types of problems are ``<url>#<kind>``, or without one
            ``urn:quota-sidecar:<kind>``.
    """

    def __init__(self, dialect: str = "problem", documentation_url: str = "") -> None:
        if dialect not in ("problem", "obie", "berlin_group"):
            raise ValueError(f"unknown error format {dialect!r}")
        self._dialect = dialect
        self._interaction_label = InteractionIds(interaction_field(dialect)).label
        self._base = documentation_url.rstrip("#") + "#" if documentation_url else "urn:quota-sidecar:"

    def body(self, refusal: Refusal, interaction_id: str | None) -> tuple[bytes, bytes]:
        """Content type and body."""
        kind = refusal.kind
        status = refusal.status or kind.status
        detail = _sentence(refusal.detail or kind.title)
        if self._dialect == "obie":
            error = {"ErrorCode": kind.obie, "Message": detail, "Url": self._base + kind.name}
            document: dict[str, object] = {
                "Code": f"{status} {_phrase(status)}",
                "Message": kind.title,
                "Errors": [error],
            }
            if interaction_id:
                document["Id"] = interaction_id
            return b"application/json; charset=utf-8", orjson.dumps(document)
        if self._dialect == "berlin_group":
            message = {"category": "ERROR", "code": kind.berlin, "text": detail[:500]}
            return b"application/json", orjson.dumps({"tppMessages": [message]})
        problem: dict[str, object] = {
            "type": self._base + kind.name,
            "title": kind.title,
            "status": status,
            "detail": detail,
        }
        problem.update(refusal.extra)
        return b"application/problem+json", orjson.dumps(problem)

    def response(
        self,
        refusal: Refusal,
        *,
        keep_alive: bool,
        head_only: bool = False,
        interaction_id: str | None = None,
        version_minor: int = 1,
        field_lines: bytes = b"",
    ) -> bytes:
        """The whole response. ``head_only``: the request was HEAD (RFC 9110 section 9.3.2). ``field_lines``: more of
        them, each with its CRLF."""
        status = refusal.status or refusal.kind.status
        content_type, body = self.body(refusal, interaction_id)
        lines = [
            b"HTTP/1.1 %d %b" % (status, _phrase(status).encode()),
            b"Content-Type: " + content_type,
            b"Content-Length: %d" % len(body),
            b"Cache-Control: no-store",
        ]
        lines += [f"{name}: {_safe(value)}".encode() for name, value in refusal.headers]
        if interaction_id:
            lines.append(self._interaction_label + _safe(interaction_id).encode())
        if not keep_alive:
            lines.append(b"Connection: close")
        elif version_minor == 0:
            lines.append(b"Connection: keep-alive")
        return b"\r\n".join(lines) + b"\r\n" + field_lines + b"\r\n" + (b"" if head_only else body)


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Error"
