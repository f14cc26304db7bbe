"""How many connections the descriptors of a process are enough for."""

from __future__ import annotations

import resource
from dataclasses import dataclass
from typing import Final

RESERVE: Final = 128
"""For Valkey, the admin side, the health port, files, and sockets that are just being opened or closed."""


@dataclass(frozen=True, slots=True)
class Allotment:
    """``connections``: of clients; ``upstream``: to each API."""

    connections: int
    upstream: int


def raise_limit() -> int:
    """Raises the soft limit of descriptors (RLIMIT_NOFILE) to the hard one; returns how many there may be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError):  # macOS has a limit below an infinite hard one
            return _count(soft)
    return _count(hard)


def limit_after_raise() -> int:
    """What `raise_limit` would return."""
    return _count(resource.getrlimit(resource.RLIMIT_NOFILE)[1])


def _count(limit: int) -> int:
    return 2**31 if limit == resource.RLIM_INFINITY else limit


def allot(descriptors: int, connections: int, upstream: int, pools: int) -> Allotment:
    """What there is room for of ``connections`` of clients, and ``upstream`` connections to each of ``pools`` APIs.

    A reserve is kept for all else: `RESERVE`, or a quarter if there are few. The APIs have at most half of the rest: a
    client's connection has at most one call under way.
    """
    free = descriptors - min(RESERVE, descriptors // 4)
    to_apis = min(upstream * pools, free // 2)
    return Allotment(max(1, min(connections, free - to_apis)), max(1, min(upstream, to_apis // pools)))
