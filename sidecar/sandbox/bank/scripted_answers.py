"""Faults on request: what a caller of the sample API may ask for by header, for one request."""

from __future__ import annotations

from dataclasses import dataclass

from aiohttp import web

from sidecar.sandbox.bank.bank_wire import (
    Detail,
    ObieError,
    bad_request,
    error_answer,
    json_answer,
    reason_phrase,
)
from sidecar.sandbox.bank.diagnostics import hang_up

STATUS = "x-sandbox-status"
DELAY_MS = "x-sandbox-delay-ms"
ABORT = "x-sandbox-abort"
#: A minute outlasts every timeout that a test wants to see expire.
DELAY_MS_MAX = 60_000


@dataclass(frozen=True, slots=True)
class ScriptedAnswer:
    """What one request asks for.

    ``x-sandbox-status: 503`` answers with that status, ``x-sandbox-delay-ms: 250`` waits first,
    ``x-sandbox-abort: 1`` cuts the connection in the middle of the answer's body,
    ``x-sandbox-abort: before`` ahead of its first byte.
    """

    status: int = 0
    delay_ms: int = 0
    abort: str = ""

    @classmethod
    def of(cls, request: web.Request) -> ScriptedAnswer:
        """Raises :class:`ObieError` 400 that names the header which cannot be read."""
        abort = request.headers.get(ABORT, "0")
        if abort not in ("0", "1", "before"):
            raise bad_request("UK.OBIE.Header.Invalid", f'{ABORT} is not "1" or "before"', ABORT)
        return cls(
            status=_number(request, STATUS, 200, 599),
            delay_ms=_number(request, DELAY_MS, 0, DELAY_MS_MAX),
            abort="" if abort == "0" else abort,
        )


def status_answer(status: int) -> web.Response:
    """An answer of that status without any work done for it."""
    if status >= 400:
        detail = Detail("UK.OBIE.UnexpectedError", "asked for by header, or drawn by chance")
        return error_answer(ObieError(status, detail))
    if status in (204, 205, 304):
        return web.Response(status=status)
    return json_answer({"status": status, "reason": reason_phrase(status)}, status)


async def cut(request: web.Request, response: web.Response, where: str) -> web.StreamResponse:
    """Announces all of ``response`` and sends half of it; with ``where`` "before", sends nothing."""
    body = response.body if isinstance(response.body, bytes) else b""
    half = web.StreamResponse(status=response.status, headers=response.headers)
    if where == "1":
        half.content_length = len(body)
        await half.prepare(request)
        if request.method != "HEAD":
            await half.write(body[: len(body) // 2])
    hang_up(request)
    return half


def _number(request: web.Request, name: str, low: int, high: int) -> int:
    """A header field's value as a number; 0 when the field is absent."""
    text = request.headers.get(name)
    if text is None:
        return 0
    if text.isascii() and text.isdigit() and len(text) <= 9 and low <= int(text) <= high:
        return int(text)
    raise bad_request("UK.OBIE.Header.Invalid", f"{name} is not a number from {low} to {high}", name)
