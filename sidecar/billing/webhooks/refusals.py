"""The answers of the receiver that are not 200. One place decides status and words."""

from __future__ import annotations

import math
from enum import Enum
from typing import Final

import orjson
from aiohttp import web


class Refusal(Enum):
    """Why a request is refused: the label in the metrics."""

    NOT_CONFIGURED = "not_configured"
    TOO_MANY = "too_many"
    BUSY = "busy"
    ENCODED = "encoded"
    TOO_LARGE = "too_large"
    TOO_SLOW = "too_slow"
    CUT_SHORT = "cut_short"
    HEADERS = "headers"
    SIGNATURE = "signature"
    NO_KEY = "no_key"
    ENVELOPE = "envelope"
    LEDGER = "ledger"


# A sender that cannot sign learns no more than that: not which algorithm, key or part of the signature is at fault.
_ANSWERS: Final = {
    Refusal.NOT_CONFIGURED: (404, "Webhooks are not configured: set lago.webhooks.hmac_key or lago.webhooks.jwt."),
    Refusal.TOO_MANY: (429, "Too many webhooks."),
    Refusal.BUSY: (503, "Too many webhooks at once."),
    Refusal.ENCODED: (415, "The body must not be encoded."),
    Refusal.TOO_LARGE: (413, "The body is too large."),
    Refusal.TOO_SLOW: (408, "The body took too long."),
    Refusal.CUT_SHORT: (400, "The body did not arrive as announced."),
    Refusal.HEADERS: (400, "The X-Lago headers are not as Lago sends them."),
    Refusal.SIGNATURE: (401, "The signature is missing or not valid."),
    Refusal.NO_KEY: (503, "The signature cannot be checked now."),
    Refusal.ENVELOPE: (400, "The body is not a webhook."),
    Refusal.LEDGER: (503, "The webhook cannot be kept now."),
}
_TRY_AGAIN: Final = {429, 503}


class Refused(Exception):
    """Ends the handling of a request. ``detail`` only for those who have signed."""

    def __init__(self, refusal: Refusal, detail: str | None = None, *, retry_after_s: float = 1.0) -> None:
        super().__init__(refusal.value)
        self.refusal = refusal
        self._detail = detail
        self._retry_after_s = retry_after_s

    def response(self) -> web.Response:
        """The answer, as ``application/problem+json`` (RFC 9457)."""
        status, detail = _ANSWERS[self.refusal]
        headers = {}
        if status in _TRY_AGAIN:
            headers["Retry-After"] = str(max(1, math.ceil(self._retry_after_s)))
        if status == 401:
            headers["WWW-Authenticate"] = "X-Lago-Signature"
        body = orjson.dumps({"type": "about:blank", "status": status, "detail": self._detail or detail})
        answer = web.Response(body=body, status=status, content_type="application/problem+json", headers=headers)
        if self.refusal in (Refusal.TOO_MANY, Refusal.BUSY, Refusal.TOO_LARGE, Refusal.TOO_SLOW):
            answer.force_close()  # what was not read would have to be
        return answer
