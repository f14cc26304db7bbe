"""Routes of which a spelling costs something else than what takes it as spelled."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from sidecar.app import assemble
from sidecar.app.configuration import Config
from sidecar.cli.checks.finding import Finding
from sidecar.gateway.http1.grammar import ProtocolError
from sidecar.gateway.routes import Route, RouteTable

FINDINGS_MAX = 20


@dataclass(frozen=True, slots=True)
class Difference:
    """``charged`` is None where the gateway refuses the spelling, since the metrics differ."""

    spelling: str
    method: str
    as_spelled: Route
    charged: Route | None
    as_written: bool


async def routes(config: Config) -> list[Finding]:
    """Names the routes. A spelling that is charged as a dearer route is what `matching: variants` is for; a route that
    is charged as another although it is spelled as in the configuration, or that is refused, may not be what is wanted.
    """
    table = assemble.route_table(config)
    free = len(config.free_paths)
    names = {id(route): f"routes[{index - free}]" for index, route in enumerate(table.routes[:-1]) if index >= free}
    names |= {id(route): f"free_paths[{index}]" for index, route in enumerate(table.routes[:free])}
    names[id(table.routes[-1])] = "default_route"
    findings = []
    for route in table.routes[:-1]:
        difference = difference_of(table, route, config.path_extensions)
        if difference is None:
            continue
        spelled = f"{difference.method} {difference.spelling} matches {names[id(difference.as_spelled)]} as spelled"
        spelled += f" ({_cost(difference.as_spelled)})"
        if difference.charged is None:
            detail = f"{spelled}, and a route with another metric in another reading; the gateway refuses it with 400 "
            detail += "unless metric_weights has both metrics"
        else:
            detail = f"{spelled}; it is charged as {names[id(difference.charged)]} ({_cost(difference.charged)})"
        odd = difference.charged is None or difference.as_written
        findings.append(Finding(f"{names[id(route)]} {route.name}", None if odd else True, detail))
    findings.sort(key=lambda finding: finding.ok is not None)  # those that may not be what is wanted first
    more = len(findings) - FINDINGS_MAX
    if more > 0:
        return [*findings[:FINDINGS_MAX], Finding("routes", True, f"{more} more routes have spellings that differ")]
    return findings


def difference_of(table: RouteTable, route: Route, extensions: tuple[str, ...]) -> Difference | None:
    """The first spelling of the route that costs something else in another reading; None if all readings agree."""
    method = b"GET" if not route.methods or b"GET" in route.methods else min(route.methods)
    written = re.sub(r"\{[^}]*\}", "7", route.name.removesuffix("/**")) or "/"
    for spelling in _spellings(written, extensions):
        try:
            readings = [reading.route for reading in table.readings(method, spelling.encode())]
        except ProtocolError:
            continue  # refused for its characters
        if readings[0].deny:
            continue
        try:
            charged = table.dearest(readings)
        except ProtocolError:
            return Difference(spelling, method.decode(), readings[0], None, spelling == written)
        if _cost(charged) != _cost(readings[0]):
            return Difference(spelling, method.decode(), readings[0], charged, spelling == written)
    return None


def _spellings(written: str, extensions: tuple[str, ...]) -> Iterator[str]:
    yield written
    yield written.swapcase()
    head, _, last = written.rpartition("/")
    yield f"{head}/{last.swapcase()}"
    yield written.removesuffix("/") if written.endswith("/") and len(written) > 1 else f"{written}/"
    for extension in extensions:
        yield f"{written.removesuffix('/')}.{extension}"


def _cost(route: Route) -> str:
    return "denied" if route.deny else "free" if route.free else f"{route.units} {route.metric}"
