"""Faults for requests to the Lago stand-in, scripted or drawn by chance, by path: for tests and outages in a demo."""

from __future__ import annotations

from dataclasses import dataclass

from sidecar.sandbox.faults import FaultError, FaultPlan, parse_fault

__all__ = ["FaultError", "LagoFault", "LagoFaults"]

DELAY_MS_MAX = 60_000
PATH_CHARS_MAX = 256
HEADER_CHARS_MAX = 64


@dataclass(frozen=True, slots=True)
class LagoFault:
    """What happens to one request. Raises :class:`FaultError` for a value out of range.

    * ``path``: a prefix, ``/api/v1/wallets``; requests of other paths pass. ``method``: likewise, "" for any.
    * ``delay_ms``: wait first.
    * ``status``: answer with it and do nothing. Its body is Lago's error; ``retry_after`` is that header field.
    * ``body``: "html" or "garbage" answers with such a body, with ``status`` or 200, and does nothing.
    * ``drop``: cut the connection, "before" or "after" doing what was asked.
    """

    path: str = ""
    method: str = ""
    delay_ms: int = 0
    status: int = 0
    body: str = ""
    drop: str = ""
    retry_after: str = ""

    def __post_init__(self) -> None:
        if len(self.path) > PATH_CHARS_MAX or (self.path and not self.path.startswith("/")):
            raise FaultError(f"path: must be a path of at most {PATH_CHARS_MAX} characters")
        if self.method not in ("", "GET", "POST", "PUT", "DELETE"):
            raise FaultError("method: must be GET, POST, PUT or DELETE")
        if self.status and not 200 <= self.status <= 599:
            raise FaultError(f"status: {self.status} is not from 200 to 599")
        if not 0 <= self.delay_ms <= DELAY_MS_MAX:
            raise FaultError(f"delay_ms: {self.delay_ms} is not from 0 to {DELAY_MS_MAX}")
        if self.body not in ("", "html", "garbage"):
            raise FaultError('body: must be "", "html" or "garbage"')
        if self.drop not in ("", "before", "after"):
            raise FaultError('drop: must be "", "before" or "after"')
        if len(self.retry_after) > HEADER_CHARS_MAX or not self.retry_after.isprintable():
            raise FaultError(f"retry_after: must be at most {HEADER_CHARS_MAX} printable characters")

    @classmethod
    def parse(cls, value: object) -> LagoFault:
        """A fault from JSON. Raises :class:`FaultError` for unknown keys and values of the wrong type."""
        return parse_fault(cls, value)

    def meets(self, method: str, path: str) -> bool:
        return path.startswith(self.path) and self.method in ("", method)


class LagoFaults(FaultPlan[LagoFault]):
    """The faults to come of one stand-in."""

    def __init__(self, seed: int = 1) -> None:
        super().__init__(LagoFault, seed)

    def next(self, method: str, path: str) -> LagoFault | None:
        """The fault for a request, if any."""
        return self.take(lambda fault: fault.meets(method, path))
