"""Lines about what was refused or closed for want of room: at most one for each reason in ten seconds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sidecar.basics.logger import get_logger

EVERY_S: Final = 10.0
log = get_logger("sidecar.gateway")


@dataclass(slots=True)
class _Reason:
    logged_at: float = -EVERY_S
    count: int = 0


class ShedLog:
    """Counts what happens between two lines."""

    def __init__(self) -> None:
        self._reasons: dict[str, _Reason] = {}

    def note(self, reason: str, peer: str, account: str, now: float) -> None:
        """Something was shed at the time ``now`` of the monotonic clock. ``peer`` and ``account`` are of the one that
        is logged; "" if it is not known."""
        state = self._reasons.setdefault(reason, _Reason(now - EVERY_S))
        state.count += 1
        if now - state.logged_at >= EVERY_S:
            known = {name: value for name, value in (("peer", peer), ("account", account)) if value}
            log.warning("shed for want of room", reason=reason, count=state.count, **known)
            state.logged_at, state.count = now, 0
