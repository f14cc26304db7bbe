"""JSON over HTTP for what surrounds a run: admin side, OpenMeter, Lago. Nothing here makes load."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from loadtests.scenarios.target import CannotRun, Secret

TIMEOUT_S = 10.0
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Asks directly, as the load does, whatever proxy the environment names."""


class NoAnswer(CannotRun):
    """Nobody answers, or not with what was asked for. ``status``: 0 without an answer."""

    def __init__(self, text: str, status: int = 0) -> None:
        super().__init__(text)
        self.status = status


def ask(what: str, method: str, url: str, *, token: Secret | None = None, body: Mapping[str, Any] | None = None) -> Any:
    """The JSON of an answer with a status of 2xx, None where it is empty. ``what``: who is asked, for the message.

    Raises:
        NoAnswer: anything else.
    """
    fields = {"Content-Type": "application/json"} if body is not None else {}
    if token is not None and token.value:
        fields["Authorization"] = f"Bearer {token.value}"
    data = None if body is None else json.dumps(body).encode()
    try:
        request = urllib.request.Request(url, data, fields, method=method)
        with _OPENER.open(request, timeout=TIMEOUT_S) as answer:
            content = answer.read()
            return json.loads(content) if content.strip() else None
    except urllib.error.HTTPError as error:
        reason = "the token or key is wrong" if error.code in (401, 403) else error.reason
        raise NoAnswer(f"{what} at {place(url)} answers {error.code}: {reason}", error.code) from None
    except ValueError:
        raise NoAnswer(f"{what} at {place(url)} does not answer with JSON") from None
    except OSError as error:
        cause: object = getattr(error, "reason", error)
        why = getattr(cause, "strerror", None) or cause
        raise NoAnswer(f"{what} at {place(url)} cannot be reached: {why}") from None


def place(url: str) -> str:
    """A URL without what may be secret: user, password, query."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path if parts.scheme.endswith('unix') else ''}"
