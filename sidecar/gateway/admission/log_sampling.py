"""Decides which lines about refusals are logged. Without I/O.

Who is refused can be refused again by the thousand. Each kind of refusal (status and reason) gets its first lines in
a window of time, a few for each client; of the rest the log has the number.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Final

WINDOW_S: Final = 10.0
CLIENTS_MAX: Final = 20
"""Of one kind in one window: so many clients have lines of their own."""
KINDS_MAX: Final = 200
"""In one window. Reasons are the gateway's own words, so there are fewer; the rest is not logged, and counted."""

Kind = tuple[int, str]
"""Status and reason."""
OTHER: Final[Kind] = (0, "other")


@dataclass(frozen=True, slots=True)
class Unlogged:
    """Lines of one kind that were left out. ``clients``: of at least so many; ``client`` of the most of them."""

    kind: Kind
    count: int
    clients: int
    client: str


@dataclass(slots=True)
class _Seen:
    logged: Counter[str] = field(default_factory=Counter)
    unlogged: Counter[str] = field(default_factory=Counter)


class LogSampling:
    """``lines_max``: of one kind and one client in a window; 0: all. ``unlogged``: how many were left out so far."""

    def __init__(self, lines_max: int) -> None:
        self.unlogged = 0
        self._lines_max = lines_max
        self._kinds: dict[Kind, _Seen] = {}

    def __repr__(self) -> str:
        return f"LogSampling({self._lines_max}, {self.unlogged} not logged)"

    def admits(self, status: int, reason: str, client: str) -> bool:
        """Whether this line is logged."""
        if not self._lines_max:
            return True
        kind = status, reason
        seen = self._kinds.get(kind)
        if seen is None:
            if len(self._kinds) >= KINDS_MAX:
                kind = OTHER
            seen = self._kinds.setdefault(kind, _Seen())
        has_room = client in seen.logged or len(seen.logged) < CLIENTS_MAX
        if kind is not OTHER and has_room and seen.logged[client] < self._lines_max:
            seen.logged[client] += 1
            return True
        self.unlogged += 1
        seen.unlogged[client if client in seen.unlogged or len(seen.unlogged) < CLIENTS_MAX else "others"] += 1
        return False

    def end_window(self) -> list[Unlogged]:
        """What was left out in the window that ends now, most first."""
        found = [
            Unlogged(kind, seen.unlogged.total(), len(seen.unlogged), seen.unlogged.most_common(1)[0][0])
            for kind, seen in self._kinds.items()
            if seen.unlogged
        ]
        self._kinds = {}
        return sorted(found, key=lambda each: -each.count)
