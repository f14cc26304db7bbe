"""Which route a request takes, and what that costs.

Routes stand in order; the first that matches decides. Servers read one path in several ways (`spellings`), so the first
match is run once for each reading, and the dearest result is charged. `RouteTable.dearest` is the only place that says
what is dearer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from sidecar.config.path_template import Template
from sidecar.gateway.http1.body import BodyKind
from sidecar.gateway.http1.grammar import ProtocolError
from sidecar.gateway.http1.heads import RequestHead
from sidecar.gateway.http1.target import decoded_slashes, routing_path
from sidecar.gateway.methods import METHOD_OVERRIDES, METHODS, NEVER_FORWARDED
from sidecar.gateway.spellings import CASE, CUT, EXACT, SLASH, Abridgement, Spelling, fold, has_one_spelling, spellings

SAFE_METHODS: Final = frozenset({b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PROPFIND", b"QUERY", b"REPORT", b"SEARCH"})
"""Methods that ask the API for nothing but an answer (RFC 9110 section 9.2.1 and IANA's registry)."""

CHARGED: Final = frozenset(range(200, 400)) | {101}
"""Statuses that are charged unless a route says otherwise: success."""

PROVOKED: Final = frozenset({406, 412, 416, 417})
"""Statuses that a caller's own fields can provoke after the API did the work (Accept, If-Match, Range, Expect)."""

_MEMORY_MAX = 4096
"""Paths remembered. Paths hold ids, so the memory is emptied when it is full rather than left to grow."""
_PATH_BYTES_REMEMBERED_MAX = 256

_REGISTERED: Final = frozenset(method.encode() for method in METHODS)
_FORWARDED: Final = _REGISTERED - frozenset(method.encode() for method in NEVER_FORWARDED)
_NO_BODY = BodyKind.NONE  # a look into an enumeration takes as long as a method call
ENCODED_SLASH: Final = "encoded slash"
AS_ROUTE: Final = "as a route has it"


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
        deny: nothing is forwarded; 404, or 405 with ``allow``.
        charged: statuses that are charged, as a lookup by status.
        charged_if_unsafe: statuses that are charged besides, on methods that are not `SAFE_METHODS`.
        timeout_charged: on such methods an API that does not answer in time is charged.
        broken_charged: an answer that the API breaks off is charged. None: if it was a stream of which the client got
            something, and not if its length was known.
        buffered: the body is gathered before a connection to the API is taken.
        idempotency: which calls are free repeats. None: none.
        encoded_slash: paths with ``%2F`` are let through, at the dearer price of both readings.
        cors: preflights pass free.
        method_override: a field that names another method is let through, at the dearer price of both methods.
        allow: of a denied request, the methods that are known for its path.
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

    encoded_slash: bool = False
    cors: bool = False
    method_override: bool = False
    allow: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Reading:
    """One reading of a path and the route that takes it; ``how`` names what was done to the path."""

    how: str
    path: str
    route: Route


class _Matcher:
    """Finds the first match in one table. ``folded`` and ``slashless``: the templates are in lower case, and have no
    final slash.

    A path has many readings, and a table up to a thousand routes. So the routes are told apart by the segment in which
    they differ most: a path is compared with those that have its literal there, or none.
    """

    def __init__(self, routes: Sequence[Route], *, folded: bool, slashless: bool) -> None:
        entries: list[tuple[tuple[str | None, ...], bool, Route]] = []
        for route in routes:
            template = route.template
            if template is None:
                continue
            segments = template.segments
            if folded:
                segments = tuple(fold(each) if each is not None else None for each in segments)
            if slashless and len(segments) > 1 and segments[-1] == "":
                segments = segments[:-1]
            entries.append((segments, template.rest, route))
        literals: dict[int, set[str]] = {}
        for segments, _, _ in entries:
            for index, segment in enumerate(segments):
                if segment is not None:
                    literals.setdefault(index, set()).add(segment)
        self._at = max(literals, key=lambda index: len(literals[index])) if literals else 0
        places: dict[str | None, list[int]] = {None: []}
        for place, (segments, _, _) in enumerate(entries):
            places.setdefault(segments[self._at] if len(segments) > self._at else None, []).append(place)
        self._other = [entries[place] for place in places[None]]
        self._by_literal = {
            literal: [entries[place] for place in sorted([*found, *places[None]])]
            for literal, found in places.items()
            if literal is not None
        }

    def _candidates(self, parts: list[str]) -> list[tuple[tuple[str | None, ...], bool, Route]]:
        if len(parts) <= self._at:
            return self._other
        return self._by_literal.get(parts[self._at], self._other)

    def matching(self, path: str) -> list[Route]:
        """Routes of the path, whatever their methods."""
        parts = path[1:].split("/")
        return [route for segments, rest, route in self._candidates(parts) if _fits(segments, rest, parts)]

    def first(self, method: bytes, path: str) -> Route | None:
        if method == b"HEAD":
            return _first_of_head(self.matching(path))
        parts = path[1:].split("/")
        for segments, rest, route in self._candidates(parts):
            methods = route.methods
            if (methods is None or method in methods) and _fits(segments, rest, parts):
                return route
        return None


def _fits(segments: tuple[str | None, ...], rest: bool, parts: list[str]) -> bool:
    """As `Template.matches`, with the path split once for all templates."""
    size = len(segments)
    if len(parts) != size and not (rest and len(parts) > size):
        return False
    for index in range(size):
        want = segments[index]
        if want is None:
            if not parts[index]:
                return False
        elif want != parts[index]:
            return False
    return True


def _first_of_head(matching: list[Route]) -> Route | None:
    """HEAD takes the route of GET (RFC 9110 section 9.3.2) unless one of the routes names HEAD."""
    named = any(route.methods is not None and b"HEAD" in route.methods for route in matching)
    method = b"HEAD" if named else b"GET"
    for route in matching:
        if route.methods is None or method in route.methods:
            return route
    return None


def is_charged(route: Route, method: bytes, status: int) -> bool:
    """Whether an answer of the API with this status is charged."""
    return status in route.charged or (status in route.charged_if_unsafe and method not in SAFE_METHODS)


class RouteTable:
    """Finds routes. What a path was last found to be is remembered, up to a bound.

    Args:
        routes, default: the default takes what no route takes.
        exact: the API tells spellings apart: the first match for the path as spelled decides alone.
        extensions: that the API cuts off, in lower case, without their dot.
        weights: what a unit of a metric is worth beside a unit of another.
    """

    def __init__(
        self,
        routes: Sequence[Route],
        default: Route,
        *,
        exact: bool = False,
        extensions: Sequence[str] = (),
        weights: Mapping[str, int] | None = None,
    ) -> None:
        self.routes: tuple[Route, ...] = (*routes, default)
        self._default = default
        self._memory: dict[tuple[bytes, bytes], Route] = {}
        self._exact = exact
        self._extensions = tuple(extensions)
        self._weights: dict[str, int] = dict(weights or {})
        self._denials: dict[tuple[str, ...], Route] = {}
        literals = [each for route in routes if route.template for each in route.template.segments if each is not None]
        self._plain = _Matcher(routes, folded=False, slashless=False)
        folds = any(fold(each) != each for each in literals)
        slashes = any(r.template.segments[-1:] == ("",) and len(r.template.segments) > 1 for r in routes if r.template)
        # A table whose templates are in lower case, or have no final slash, needs no second copy of them.
        self._folded = _Matcher(routes, folded=True, slashless=False) if folds else None
        self._slashless = _Matcher(routes, folded=False, slashless=True) if slashes else None
        self._both = _Matcher(routes, folded=True, slashless=True) if folds and slashes else None
        self._loose = self._both or self._folded or self._slashless or self._plain
        depth = max((len(each.template.segments) for each in routes if each.template), default=0)
        self._abridge = Abridgement(literals, depth, self._extensions)
        self.key_fields = frozenset(each.idempotency.header for each in self.routes if each.idempotency is not None)
        """Names of the fields that have idempotency keys."""

    def find(self, method: bytes, path: bytes) -> Route:
        """``path`` as received. A denied request's route has ``allow`` where other methods are known for the path.

        Raises:
            ProtocolError: 400, servers read such a path or method in different ways; 501, the method is not registered.
        """
        key = (method, path)
        route = self._memory.get(key)
        if route is None:
            _check_method(method)
            readings = self.readings(method, path)
            route = self.dearest([reading.route for reading in readings])
            if route is self._default and route.deny:
                route = self._denial(readings[0].path)
            self._remember(key, route)
        return route

    def find_for(self, head: RequestHead) -> Route:
        """The route of a request: `find`, and what fields say of its method. The parser has to mark heads that have one
        of `METHOD_OVERRIDES`.

        Raises:
            ProtocolError: as `find`; 400, a field names another method, and the route does not price that.
        """
        method = head.method
        route = self.find(method, head.path)
        if head.marked:
            named = _named_methods(head)
            if named:  # so it is no preflight either, whatever else it says
                return route if route.deny else self._overridden(route, named, head.path)
        if method == b"OPTIONS":
            return self._preflight(head, route)
        return route

    def readings(self, method: bytes, path: bytes) -> list[Reading]:
        """What servers can take the path for, the reading as spelled first. One at least.

        Raises:
            ProtocolError: 400, as `routing_path`; or ``%2F`` where the route does not allow it.
        """
        text = routing_path(path, encoded_slash=True).decode("latin-1")
        found = self._readings(method, text, "")
        if "%2F" in text:
            if not found[0].route.encoded_slash:
                raise ProtocolError(400, "The path has an escaped slash.")
            decoded = decoded_slashes(text.encode("latin-1")).decode("latin-1")
            # The operator vouches that the API keeps %2F as data, so the other reading denies nothing by default.
            others = self._readings(method, decoded, ENCODED_SLASH)
            found += [each for each in others if each.route is not self._default or not self._default.deny]
        return found

    def dearest(self, found: Sequence[Route]) -> Route:
        """The one that is charged: a denied one before all, a free one only if all are free; among charged ones the
        most units, of as many the one that charges more statuses, and of these one whose repeats cost something. The
        first of equals.

        Raises:
            ProtocolError: 400, the metrics differ, and there is no weight by which to compare them.
        """
        best = found[0]
        for route in found:
            if route is not best and _standing(route) > _standing(best):
                best = route
        if best.deny or best.free:
            return best
        for route in found:
            if route is not best and not route.free and self._worth(route, best) > self._worth(best, route):
                best = route
        return best

    def _worth(self, route: Route, other: Route) -> tuple[int, int, int]:
        units = route.units
        if route.metric != other.metric:
            if route.metric not in self._weights or other.metric not in self._weights:
                raise ProtocolError(
                    400,
                    "The call can be read as one that has another price. Send it as the API documents it.",
                )
            units *= self._weights[route.metric]
        return units, len(route.charged), -(route.idempotency.repeats_max if route.idempotency is not None else 0)

    def _readings(self, method: bytes, text: str, how: str) -> list[Reading]:
        plain = self._plain
        found = [Reading(how or EXACT, text, plain.first(method, text) or self._default)]
        if self._exact:
            return found
        one = has_one_spelling(text, self._extensions)
        for way in (Spelling(text),) if one else spellings(self._abridge(text), self._extensions):
            path = way.path
            if way.steps:
                # What is cut off is honest data to most servers, so this reading denies nothing by default.
                by_default = way.decides and not (self._default.deny and CUT in way.steps)
                route = plain.first(method, path) or (self._default if by_default else None)
                _add(found, how, way.steps, path, route)
            folded = fold(path) == path
            slashless = path == "/" or not path.endswith("/")
            if folded and self._folded is not None:
                _add(found, how, (*way.steps, CASE), path, self._folded.first(method, path))
            if slashless and self._slashless is not None:
                _add(found, how, (*way.steps, SLASH), path, self._slashless.first(method, path))
            if folded and slashless and self._both is not None:
                _add(found, how, (*way.steps, CASE, SLASH), path, self._both.first(method, path))
            if slashless and not (one and self._loose is plain):
                for route in self._loose.matching(fold(path)):
                    spelled = _spelled_as(route.template, path)
                    if spelled != path:
                        _add(found, how, (*way.steps, AS_ROUTE), spelled, plain.first(method, spelled))
        return found

    def _denial(self, path: str) -> Route:
        """The default route, with the methods that are known for the canonical path."""
        known: set[bytes] = set()
        for route in self._plain.matching(path):
            if not route.deny:
                known |= _FORWARDED if route.methods is None else route.methods & _FORWARDED
        if b"GET" in known:
            known.add(b"HEAD")
        allow = tuple(method for method in METHODS if method.encode() in known)
        denial = self._denials.get(allow)
        if denial is None:
            denial = self._denials[allow] = replace(self._default, allow=allow) if allow else self._default
        return denial

    def _overridden(self, route: Route, named: frozenset[bytes], path: bytes) -> Route:
        if not route.method_override:
            raise ProtocolError(400, "A header field names another method than the request line.")
        return self.dearest([route, *(self.find(each, path) for each in sorted(named))])

    def _preflight(self, head: RequestHead, route: Route) -> Route:
        """The route of an OPTIONS request. A CORS preflight is free where every reading has a route with ``cors``."""
        asked = head.fields.get(b"access-control-request-method")
        if asked is None or asked not in _REGISTERED or head.body is not _NO_BODY or not head.fields.get(b"origin"):
            return route
        key = (b"preflight " + asked, head.path)
        decided = self._memory.get(key)
        if decided is None:
            found = [each.route for each in self.readings(b"OPTIONS", head.path)]
            if not any(each.methods is not None and b"OPTIONS" in each.methods for each in found):
                found = [each.route for each in self.readings(asked, head.path)]
            passes = all(each.cors and not each.deny for each in found)
            decided = replace(found[0], free=True) if passes else route
            self._remember(key, decided)
        return decided

    def _remember(self, key: tuple[bytes, bytes], route: Route) -> None:
        if len(key[1]) <= _PATH_BYTES_REMEMBERED_MAX:
            if len(self._memory) >= _MEMORY_MAX:
                self._memory.clear()
            self._memory[key] = route


def _spelled_as(template: Template | None, path: str) -> str:
    """The path with the literals of a template that matches it but for letter case and final slash. A server that
    ignores these serves the same for both."""
    if template is None:
        return path
    parts = path[1:].split("/")
    for index, want in enumerate(template.segments[: len(parts)]):
        if want:
            parts[index] = want
    ends = template.segments[-1:] == ("",) and len(template.segments) > len(parts)
    return "/" + "/".join(parts) + ("/" if ends else "")


def _standing(route: Route) -> int:
    return 2 if route.deny else 0 if route.free else 1


def _add(found: list[Reading], how: str, steps: tuple[str, ...], path: str, route: Route | None) -> None:
    if route is not None:
        names = [how, *steps] if how else list(steps)
        found.append(Reading(" and ".join(dict.fromkeys(names)), path, route))


def _check_method(method: bytes) -> None:
    if method not in _REGISTERED:
        if method.upper() in _REGISTERED:
            raise ProtocolError(400, "The method is not in upper case.")
        raise ProtocolError(501, "The method is not implemented.")


def _named_methods(head: RequestHead) -> frozenset[bytes]:
    """Other methods that fields name. Frameworks ignore their letter case, and take the first or the last of several.

    Raises:
        ProtocolError: 400, a field names what is no method that could be forwarded.
    """
    named: set[bytes] = set()
    for name in METHOD_OVERRIDES:
        for part in head.fields.get(name, b"").split(b","):
            method = part.strip(b" \t").upper()
            if method and method not in _FORWARDED:
                raise ProtocolError(400, f"{name.decode()} names no registered method.")
            if method:
                named.add(method)
    named.discard(head.method)
    return frozenset(named)
