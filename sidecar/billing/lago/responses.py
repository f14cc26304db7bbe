"""Reads Lago's responses: JSON, or an error (lago-api ``app/controllers/concerns/api_errors.rb``)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final, NoReturn

from sidecar.basics.backoff import retry_after_s
from sidecar.billing.lago.errors import (
    LagoError,
    LagoMalformed,
    LagoRejected,
    LagoUnauthorized,
    LagoUnavailable,
    excerpt,
)

PAUSE_S_MAX: Final = 60.0
"""Longest pause that Lago is granted; its windows are of one second."""

SECRET_CHARS_MIN: Final = 16
MESSAGE_CHARS_MAX: Final = 400
CODES_MAX: Final = 1_000
_BODY_BYTES_SHOWN: Final = 4_096
_RESET_DIGITS_MAX: Final = 12
_EPOCH_S_MIN: Final = 1_000_000_000
"""X-RateLimit-Reset is in seconds from now; so large a number can only be a date, as other servers send it."""

_RETRY: Final = frozenset((408, 409, 425))
"""Passing ones below 500. 409: somebody else wrote the same row (Rails: ``ActiveRecord::StaleObjectError``)."""


@dataclass(frozen=True, slots=True)
class LagoResponse:
    """``headers`` with names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def result_of(endpoint: str, answer: LagoResponse, secret: str, now_s: float) -> dict[str, Any]:
    """The JSON object of an answer that is one of success; decimals in it are ``Decimal``.

    ``secret`` is taken out of what errors show, should somebody have echoed it.

    Raises:
        LagoError: everything else.
    """
    status = answer.status
    shown = answer.body.replace(secret.encode(), b"***")
    if not 200 <= status < 300:
        # A very short secret would be found in Lago's own words.
        content = _json(shown if len(secret) >= SECRET_CHARS_MIN else answer.body)
        raise _error(endpoint, status, content, shown, _after_s(answer.headers, now_s))
    content = _json(answer.body)
    if not isinstance(content, dict):
        raise LagoMalformed(f"{endpoint}: {status}, but not a JSON object: {_shown(shown)}", transient=True)
    return content


def _error(endpoint: str, status: int, content: object, body: bytes, after_s: float | None) -> LagoError:
    if status == 429:
        # It has not been looked at, so it may be sent again whatever it was.
        return LagoUnavailable(f"{endpoint}: 429, too many requests", kind="throttled", unsent=True, after_s=after_s)
    if status >= 500 or status in _RETRY:
        return LagoUnavailable(f"{endpoint}: {status}: {_shown(body)}", after_s=after_s)
    if 300 <= status < 400:
        return LagoMalformed(f"{endpoint}: {status}, a redirect, is not followed: check lago.url", transient=True)
    if status in (401, 403):
        code = _text(content.get("code")) if isinstance(content, dict) else ""
        return LagoUnauthorized(f"{endpoint}: {status} {code or _shown(body)}".rstrip(), status=status)
    if isinstance(content, dict):
        return _rejected(endpoint, status, content)
    if status == 413:
        return LagoRejected(f"{endpoint}: 413, the request is too large", status=status)
    return LagoMalformed(f"{endpoint}: {status}, but not of Lago: {_shown(body)}", transient=True)


def _rejected(endpoint: str, status: int, content: dict[str, Any]) -> LagoRejected:
    code = _text(content.get("code"))
    details = content.get("error_details")
    by_event: dict[int, Mapping[str, tuple[str, ...]]] = {}
    if isinstance(details, dict):
        numbers = [key for key in details if key.isascii() and key.isdigit() and len(key) <= 6]
        by_event = {int(key): _codes(details[key]) for key in numbers[:CODES_MAX]}
        details = {key: value for key, value in details.items() if key not in set(numbers)}
    codes = _codes(details)
    parts = [f"{field}: {', '.join(words)}" if field else ", ".join(words) for field, words in codes.items()]
    parts += [
        f"event {position}: {field}: {', '.join(words)}"
        for position, found in by_event.items()
        for field, words in found.items()
    ]
    what = code or _text(content.get("error"))
    message = f"{endpoint}: {status} {what}" + (f" ({'; '.join(parts[:20])})" if parts else "")
    return LagoRejected(excerpt(message, MESSAGE_CHARS_MAX), status=status, code=code, codes=codes, events=by_event)


def _codes(details: object) -> dict[str, tuple[str, ...]]:
    """Words by field; fields within fields are joined by dots."""
    found: dict[str, tuple[str, ...]] = {}
    for number, (field, word) in enumerate(_leaves(details, "", 4)):
        if number == CODES_MAX:
            break
        found[field] = (*found.get(field, ()), word)
    return found


def _leaves(details: object, field: str, levels: int) -> Iterator[tuple[str, str]]:
    if isinstance(details, dict) and levels:
        for key, below in details.items():
            yield from _leaves(below, excerpt(f"{field}.{key}" if field else key), levels - 1)
    elif isinstance(details, list) and levels:
        for below in details:
            yield from _leaves(below, field, levels - 1)
    elif details is not None:
        yield field, _text(details)


def _after_s(headers: Mapping[str, str], now_s: float) -> float | None:
    """Seconds that Lago asks to be left alone for: Retry-After, else X-RateLimit-Reset; at most PAUSE_S_MAX."""
    asked = retry_after_s(headers.get("retry-after"), now_s)
    if asked is None:
        reset = headers.get("x-ratelimit-reset", "").strip()
        if reset.isascii() and reset.isdigit() and len(reset) <= _RESET_DIGITS_MAX:
            asked = float(reset) if int(reset) < _EPOCH_S_MIN else max(0.0, int(reset) - now_s)
    return None if asked is None else min(asked, PAUSE_S_MAX)


def _json(body: bytes) -> object:
    """The body as JSON, None if it is none. No number becomes a float."""
    try:
        content: object = json.loads(body.decode(), parse_float=Decimal, parse_constant=_no_number)
    except (ValueError, ArithmeticError, RecursionError):
        return None
    return content


def _no_number(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a number of JSON")


def _text(value: object) -> str:
    return excerpt(value) if isinstance(value, str) else "" if value is None else excerpt(str(value))


def _shown(body: bytes) -> str:
    return excerpt(body[:_BODY_BYTES_SHOWN].decode("utf-8", "replace")) or "an empty body"
