"""Which route a request takes, and what that costs. Routes stand in order; the first that matches decides."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

_MEMORY_MAX = 4096
"""Paths remembered. Paths hold ids, so the memory is emptied when it is full rather than left to grow."""

_PARAMETER = re.compile(r"\{[A-Za-z_][A-Za-z0-9_]*\}")


@dataclass(frozen=True, slots=True)
class Route:
    """What a request costs and how its outcome is charged.

    Attributes:
        name: the path template; label of metrics, ``endpoint`` of events.
        metric, units: what is debited. A free route debits nothing.
        deny: nothing is forwarded; 404.
        charged: statuses that are charged, as a lookup by status.
        idempotent_methods: methods of which a repetition under one idempotency key is charged once.
    """

    name: str
    metric: str = "api_calls"
    units: int = 1
    free: bool = False
    deny: bool = False
    charged: frozenset[int] = field(default_factory=lambda: frozenset(range(100, 500)), repr=False)
    idempotent_methods: frozenset[bytes] = frozenset({b"POST", b"PUT", b"PATCH"})
    pattern: re.Pattern[bytes] | None = field(default=None, repr=False)
    methods: frozenset[bytes] | None = None


def compile_template(template: str) -> re.Pattern[bytes]:
    """``/accounts/{AccountId}/**`` as an expression over routing paths. ``{x}`` is one segment, a last ``**`` any number of them.

    Raises:
        ValueError: the template is malformed; the message says how.
    """
    if not template.startswith("/"):
        raise ValueError(f"path {template!r} does not begin with a slash")
    parts = []
    segments = template.split("/")[1:]
    for number, segment in enumerate(segments, start=1):
        if segment == "**":
            if number != len(segments):
                raise ValueError(f"path {template!r} has ** before its end")
            parts.append("(?:/.*)?")
            break
        if _PARAMETER.fullmatch(segment):
            parts.append("/[^/]+")
        elif re.search(r"[{}*?#\s%]", segment):
            raise ValueError(f"path {template!r}: segment {segment!r} is neither text nor one {{Parameter}}")
        else:
            parts.append("/" + re.escape(segment))
    return re.compile("".join(parts).encode() or b"/")


class RouteTable:
    """Finds routes. What a path was last found to be is remembered, up to a bound."""

    def __init__(self, routes: Sequence[Route], default: Route) -> None:
        self.routes: tuple[Route, ...] = (*routes, default)
        self._default = default
        self._memory: dict[tuple[bytes, bytes], Route] = {}

    def find(self, method: bytes, path: bytes) -> Route:
        """``path`` is a routing path (:func:`sidecar.proxy.target.routing_path`)."""
        key = (method, path)
        route = self._memory.get(key)
        if route is None:
            route = self._search(method, path)
            if len(path) <= 256:
                if len(self._memory) >= _MEMORY_MAX:
                    self._memory.clear()
                self._memory[key] = route
        return route

    def _search(self, method: bytes, path: bytes) -> Route:
        bare = path[:-1] if len(path) > 1 and path.endswith(b"/") else path
        for route in self.routes:
            if route.methods is not None and method not in route.methods:
                continue
            if route.pattern is not None and route.pattern.fullmatch(bare):
                return route
        return self._default


def parse_statuses(ranges: Iterable[str]) -> frozenset[int]:
    """``2xx``, ``200-499`` and ``404`` as the set of statuses they mean.

    Raises:
        ValueError: a range is malformed or outside of 100–599.
    """
    found: set[int] = set()
    for text in ranges:
        if match := re.fullmatch(r"([1-5])xx", text):
            low = int(match[1]) * 100
            found.update(range(low, low + 100))
        elif match := re.fullmatch(r"([1-5]\d\d)(?:-([1-5]\d\d))?", text):
            low, high = int(match[1]), int(match[2] or match[1])
            if low > high:
                raise ValueError(f"status range {text!r} runs backwards")
            found.update(range(low, high + 1))
        else:
            raise ValueError(f"{text!r} is not a status, a range like 200-499, or a class like 2xx")
    return frozenset(found)
