"""Which route a request takes, and what that costs. Routes stand in order; the first that matches decides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from sidecar.config.path_template import Template
from sidecar.gateway.http1.target import routing_path

SAFE_METHODS: Final = frozenset({b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PROPFIND", b"QUERY", b"REPORT", b"SEARCH"})
"""Methods that ask the API for nothing but an answer (RFC 9110 section 9.2.1 and IANA's registry)."""

CHARGED: Final = frozenset(range(200, 400)) | {101}
"""Statuses that are charged unless a route says otherwise: success."""

PROVOKED: Final = frozenset({406, 412, 416, 417})
"""Statuses that a caller's own fields can provoke after the API did the work (Accept, If-Match, Range, Expect)."""

_MEMORY_MAX = 4096
"""Paths remembered. Paths hold ids, so the memory is emptied when it is full rather than left to grow."""


@dataclass(frozen=True, slots=True)
class IdempotencyRule:
    """Which calls of a route are free repeats. It concerns methods that are not `SAFE_METHODS`.

    Attributes:
        header: the field that has the key, in lower case.
        required: a call without a key is refused.
        repeats_max: repeats of a charged call that are free.
        refuse_conflicts: another body under the key, or a first call that is still under way, is refused; else such a
            call is charged like any.
    """

    header: bytes = b"idempotency-key"
    required: bool = False
    repeats_max: int = 3
    refuse_conflicts: bool = False


@dataclass(frozen=True, slots=True)
class Route:
    """What a request costs and how its outcome is charged.

    Attributes:
        name: the path template; label of metrics, ``endpoint`` of events.
        metric, units: what is debited. A free route debits nothing.
        deny: nothing is forwarded; 404.
        charged: statuses that are charged, as a lookup by status.
        charged_if_unsafe: statuses that are charged besides, on methods that are not `SAFE_METHODS`.
        timeout_charged: on such methods an API that does not answer in time is charged.
        broken_charged: an answer that the API breaks off is charged. None: if it was a stream of which the client got
            something, and not if its length was known.
        buffered: the body is gathered before a connection to the API is taken.
        idempotency: which calls are free repeats. None: none.
    """

    name: str
    metric: str = "api_calls"
    units: int = 1
    free: bool = False
    deny: bool = False
    charged: frozenset[int] = field(default=CHARGED, repr=False)
    charged_if_unsafe: frozenset[int] = field(default=PROVOKED, repr=False)
    timeout_charged: bool = True
    broken_charged: bool | None = None
    buffered: bool = True
    idempotency: IdempotencyRule | None = None
    template: Template | None = field(default=None, repr=False)
    methods: frozenset[bytes] | None = None


def is_charged(route: Route, method: bytes, status: int) -> bool:
    """Whether an answer of the API with this status is charged."""
    return status in route.charged or (status in route.charged_if_unsafe and method not in SAFE_METHODS)


class RouteTable:
    """Finds routes. What a path was last found to be is remembered, up to a bound."""

    def __init__(self, routes: Sequence[Route], default: Route) -> None:
        self.routes: tuple[Route, ...] = (*routes, default)
        self._default = default
        self._memory: dict[tuple[bytes, bytes], Route] = {}
        self.key_fields = frozenset(each.idempotency.header for each in self.routes if each.idempotency is not None)
        """Names of the fields that have idempotency keys."""

    def find(self, method: bytes, path: bytes) -> Route:
        """``path`` as received.

        Raises:
            ProtocolError: 400, servers read such a path in different ways (`routing_path`).
        """
        key = (method, path)
        route = self._memory.get(key)
        if route is None:
            route = self._search(method, routing_path(path))
            if len(path) <= 256:
                if len(self._memory) >= _MEMORY_MAX:
                    self._memory.clear()
                self._memory[key] = route
        return route

    def _search(self, method: bytes, path: bytes) -> Route:
        text = path.decode("latin-1")
        for route in self.routes:
            if route.methods is not None and method not in route.methods:
                continue
            if route.template is not None and route.template.matches(text):
                return route
        return self._default
