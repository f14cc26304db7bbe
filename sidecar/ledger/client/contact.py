"""Since when a server could be reached without a gap. No I/O."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class _Window:
    run_id: str
    since_s: float
    last_s: float
    clock_s: float
    """How far the server's clock is ahead of the monotonic one."""


class Contact:
    """What is known of one server's being reachable.

    A window begins with an answer, and ends with a failure, with a gap of more than ``gap_s`` between two answers (the
    server stood still, or this process did), with another process of the server (``run_id``), or with a step of more
    than ``gap_s`` of its clock: in each case others may not have been able to say that they live, or seem older than
    they are.
    """

    def __init__(self, gap_s: float) -> None:
        self._gap_s = gap_s
        self._window: _Window | None = None

    def __repr__(self) -> str:
        return f"Contact({self._window!r})"

    def note_answer(self, now_s: float, run_id: str, server_s: float) -> None:
        """``now_s``: the monotonic clock when the answer came; ``server_s``: the server's clock."""
        window, clock_s = self._window, server_s - now_s
        if (
            window is None
            or window.run_id != run_id
            or now_s - window.last_s > self._gap_s
            or clock_s - window.clock_s > self._gap_s
        ):
            self._window = _Window(run_id, now_s, now_s, clock_s)
        else:
            window.last_s, window.clock_s = now_s, clock_s

    def touch(self, now_s: float) -> None:
        """Another answer of the same connection, between two of :meth:`note_answer`."""
        if self._window is not None and now_s - self._window.last_s <= self._gap_s:
            self._window.last_s = now_s

    def note_failure(self) -> None:
        self._window = None

    def reachable_s(self, now_s: float) -> float:
        """For how long it has been reachable; -1 if it is not."""
        return now_s - self._window.since_s if self._window is not None else -1.0
