"""The errors of Lago's client. ``transient`` says whether a later try may help; nobody needs to parse a message."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

EXCERPT_CHARS_MAX: Final = 200

LagoErrorKind = Literal["network", "timeout", "status", "throttled", "unauthorized", "rejected", "malformed"]


class LagoSetupError(Exception):
    """The client cannot start as configured. The message names the setting."""


class LagoError(Exception):
    """A request to Lago had no result. The message names the endpoint, and never holds the API key.

    ``kind`` is the label under which the client counts it. ``unsent``: the request certainly had no effect in Lago.
    ``after_s``: seconds that Lago asked to be left alone for.
    """

    kind: LagoErrorKind = "status"

    def __init__(self, message: str, *, transient: bool, unsent: bool = False, after_s: float | None = None) -> None:
        super().__init__(message)
        self.transient = transient
        self.unsent = unsent
        self.after_s = after_s


class LagoUnavailable(LagoError):
    """No connection, no answer in time, a 5xx, a 408, 409, 425 or 429."""

    def __init__(
        self, message: str, *, kind: LagoErrorKind = "status", unsent: bool = False, after_s: float | None = None
    ) -> None:
        super().__init__(message, transient=True, unsent=unsent, after_s=after_s)
        self.kind = kind


class LagoUnauthorized(LagoError):
    """401 or 403: the API key is wrong, or not allowed to do this."""

    kind: LagoErrorKind = "unauthorized"

    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message, transient=False, unsent=True)
        self.status = status


class LagoRejected(LagoError):
    """Lago understood, and refuses: 400, 404, 405, 422, ….

    ``code`` is Lago's, such as ``validation_errors`` or ``wallet_not_found``. ``codes`` are its ``error_details`` by
    field. ``events``: the same by the position of an event in a batch; one entry means that all were refused.
    """

    kind: LagoErrorKind = "rejected"

    def __init__(
        self,
        message: str,
        *,
        status: int,
        code: str = "",
        codes: Mapping[str, tuple[str, ...]] | None = None,
        events: Mapping[int, Mapping[str, tuple[str, ...]]] | None = None,
    ) -> None:
        super().__init__(message, transient=False, unsent=True)
        self.status = status
        self.code = code
        self.codes = dict(codes or {})
        self.events = {position: dict(found) for position, found in (events or {}).items()}


class LagoMalformed(LagoError):
    """An answer that is not Lago's, or not what Lago's documents promise. The message names endpoint and field.

    Transient where something in between has answered or cut it (a page of HTML, half an answer); a field of the wrong
    type will be wrong again.
    """

    kind: LagoErrorKind = "malformed"

    def __init__(self, message: str, *, transient: bool = False) -> None:
        super().__init__(message, transient=transient)


class LagoTooOld(LagoMalformed):
    """Lago is older than the oldest version that works (``versions.OLDEST``). The message names it."""


def excerpt(text: str, chars_max: int = EXCERPT_CHARS_MAX) -> str:
    """Text of others, fit for a message: on one line, printable, bounded."""
    line = " ".join(text[: 4 * chars_max].split())
    line = "".join(char if char.isprintable() else "?" for char in line)
    return line if len(line) <= chars_max else line[: chars_max - 1] + "…"
