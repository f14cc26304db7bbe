"""No spelling that a router takes for a route is charged less than that route.

The routers are written from what real ones do, without the gateway's code: each turns templates into regular
expressions and paths into text, by its own options. The spellings are made from a route of the table, by whatever an
attacker can do to a path.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import unquote

from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from sidecar.config.path_template import parse_template
from sidecar.gateway.http1.grammar import ProtocolError
from sidecar.gateway.routes import Route, RouteTable

EXTENSIONS = ("json", "xml")
prop = settings(max_examples=800, deadline=None, suppress_health_check=[HealthCheck.too_slow])

# Tables

LITERALS = (
    "accounts",
    "Accounts",
    "transactions",
    "v1",
    "V1",
    "kiosk",
    "a:export",
    "status.json",
    "x",
    "$batch",
    "p;q",
)
segment = st.one_of(st.sampled_from(LITERALS), st.just("{}"))


@dataclass(frozen=True)
class Row:
    """A route as its operator wrote it."""

    path: str
    methods: tuple[str, ...]
    units: int
    free: bool
    metric: str = "api_calls"


@st.composite
def paths(draw: st.DrawFn) -> str:
    parts = draw(st.lists(segment, min_size=1, max_size=3))
    named = [f"{{p{number}}}" if part == "{}" else part for number, part in enumerate(parts)]
    return "/" + "/".join(named) + draw(st.sampled_from(("", "", "", "/", "/**")))


def rows(*metrics: str) -> st.SearchStrategy[list[Row]]:
    row = st.builds(
        Row, paths(), st.sampled_from(((), (), ("GET",), ("POST",), ("GET", "POST"))), st.integers(1, 9),
        st.sampled_from((False, False, False, True)), st.sampled_from(metrics),
    )  # fmt: skip
    return st.lists(row, min_size=1, max_size=6)


def table_of(
    table: list[Row], default: Row | None, *, exact: bool = False, weights: dict[str, int] | None = None
) -> RouteTable:
    routes = [
        Route(
            row.path, metric=row.metric, units=row.units, free=row.free, template=parse_template(row.path),
            methods=frozenset(m.encode() for m in row.methods) or None,
        )
        for row in table
    ]  # fmt: skip
    other = Route("(other)", deny=True) if default is None else Route("(other)", units=default.units, free=default.free)
    return RouteTable(routes, other, exact=exact, extensions=() if exact else EXTENSIONS, weights=weights)


defaults = st.one_of(st.none(), st.builds(Row, st.just("/"), st.just(()), st.integers(1, 3), st.booleans()))

# Routers


@dataclass(frozen=True)
class Router:
    """What a server does to a path before and while it matches."""

    fold: str = ""
    slash: bool = False
    merge: bool = False
    decodes: int = 1
    extension: bool = False
    cut: str = ""
    upper: bool = False

    def takes(self, table: list[Row], method: str, path: str) -> Row | None:
        """The row that this server serves for the request."""
        method = method.upper() if self.upper else method
        folded = FOLDS[self.fold]
        path = self.read(path)
        for row in table:
            served = not row.methods or method in row.methods or (method == "HEAD" and "GET" in row.methods)
            if served and re.fullmatch(self._expression(row.path, folded), folded(path)):
                return row
        return None

    def read(self, path: str) -> str:
        """What is left of the path when it is matched, but for letter case."""
        for _ in range(self.decodes):
            path = unquote(path, errors="replace")
        if self.cut == ";":
            path = re.sub(";[^/]*", "", path)
        elif self.cut:
            path = re.split("[?#]", path)[0]
        path = re.sub("/+", "/", path) if self.merge else path
        if self.slash and len(path) > 1:
            path = path.removesuffix("/")
        if self.extension:
            path = re.sub(r"\.(json|xml)$", "", path, flags=re.IGNORECASE)
        if self.slash and len(path) > 1:
            path = path.removesuffix("/")
        return path

    def _expression(self, template: str, folded: Callable[[str], str]) -> str:
        rest = template.endswith("/**")
        parts = template.removesuffix("/**").split("/")[1:]
        if self.slash and len(parts) > 1 and not parts[-1]:
            parts.pop()
        made = "".join("/[^/]+" if part.startswith("{") else "/" + re.escape(folded(part)) for part in parts)
        return made + ("(?:/.*)?" if rest else "")


def _nfkc(text: str) -> str:
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())


FOLDS: dict[str, Callable[[str], str]] = {
    "": lambda text: text,
    "ascii": lambda text: re.sub("[A-Z]", lambda match: match[0].lower(), text),
    "lower": str.lower,
    "upper": str.upper,
    "upper lower": lambda text: text.upper().lower(),
    "casefold": str.casefold,
    "nfkc": _nfkc,
}
EXPRESS = Router(fold="ascii", slash=True)
FLASK = Router(merge=True, upper=True)
KNOWN = (
    EXPRESS, FLASK, Router(), Router(decodes=2), Router(fold="casefold"), Router(fold="ascii", slash=True, decodes=2),
    Router(extension=True), Router(fold="lower", slash=True, extension=True), Router(cut=";"), Router(cut="?"),
)  # fmt: skip
routers = st.one_of(
    st.sampled_from(KNOWN),
    st.builds(
        Router, st.sampled_from(tuple(FOLDS)), st.booleans(), st.booleans(), st.sampled_from((1, 1, 2)), st.booleans(),
        st.sampled_from(("", "", ";", "?")), st.booleans(),
    ),
)  # fmt: skip

# Spellings

LOOKALIKES = {"k": ("\u212a", "\uff4b"), "s": ("\u017f", "\uff53"), "i": ("\u0131", "\u0130"), "x": ("\uff58",)}
VALUES = ("7", "Ab", "export", *LITERALS)


def escaped(text: str) -> str:
    return "".join(f"%{octet:02x}" for octet in text.encode())


@st.composite
def spelled(draw: st.DrawFn, template: str, router: Router, values: tuple[str, ...] = VALUES) -> str:
    """A path for the template, and then what the router undoes; now and then something that it does not undo."""
    path = template.replace("/**", draw(st.sampled_from(("", "/more", "/transactions")))) or "/"
    path = re.sub(r"\{\w+\}", lambda _: draw(st.sampled_from(values)), path)
    whim = draw(st.sampled_from(("", "", "case", "slash", "extension", "cut", "lookalike", "twice")))
    if router.slash and len(path) > 1 and path.endswith("/") and draw(st.booleans()):
        path = path[:-1]
    if (router.fold or whim == "case") and draw(st.booleans()):
        path = "".join(draw(st.sampled_from((c, c.swapcase()))) for c in path)
    if (router.fold not in ("", "ascii") or whim == "lookalike") and draw(st.booleans()):
        path = "".join(draw(st.sampled_from((c, *LOOKALIKES.get(c.lower(), ())))) for c in path)
    if (router.extension or whim == "extension") and draw(st.booleans()):
        path += draw(st.sampled_from((".json", ".XML")))
    if (router.slash or whim == "slash") and draw(st.booleans()):
        path += "/"
    if (router.cut or whim == "cut") and draw(st.booleans()):
        path += draw(st.sampled_from((";x", ";x/"))) if router.cut == ";" else draw(st.sampled_from(("?x", "#x", ";")))
    if router.merge and draw(st.booleans()):
        path = path.replace("/", "//", 1)
    return "".join(draw(_written(char, twice=router.decodes == 2 or whim == "twice")) for char in path)


@st.composite
def _written(draw: st.DrawFn, char: str, *, twice: bool) -> str:
    """The character, or an escape of it, or an escape of that."""
    often = 1 if char == "/" else 3
    if (
        not (ord(char) > 126 or char in "?#" or (char == ";" and draw(st.booleans())))
        and draw(st.integers(0, 15)) >= often
    ):
        return char
    text = escaped(char)
    if twice and draw(st.booleans()):
        text = draw(st.sampled_from((text.replace("%", "%25"), "".join(map(escaped, text)))))
    return draw(st.sampled_from((text, text.upper())))


@dataclass(frozen=True)
class Request:
    """A request to a gateway with this table, before this server."""

    table: list[Row]
    router: Router
    method: str
    path: str


@st.composite
def requests(draw: st.DrawFn, tables: st.SearchStrategy[list[Row]], servers: st.SearchStrategy[Router]) -> Request:
    table, router = draw(tables), draw(servers)
    row = draw(st.sampled_from(table))
    if draw(st.booleans()):  # something cheap takes whatever the others do not
        table = [*table, Row("/**", (), 1, False)]
    usual = row.methods[0] if row.methods else "GET"
    others = ("HEAD", "POST", usual.lower()) if router.upper else ("HEAD", "POST")
    method = draw(st.sampled_from((usual, usual, usual, *others)))
    return Request(table, router, method, draw(spelled(row.path, router)))


def found_by(gateway: RouteTable, method: str, path: str) -> Route | None:
    """None: refused."""
    try:
        route = gateway.find(method.encode(), path.encode())
    except ProtocolError:
        return None
    return None if route.deny else route


# What must hold


@prop
@given(requests(rows("api_calls"), routers), defaults)
def test_no_spelling_is_charged_less_than_the_route_that_a_router_takes_it_for(
    request: Request, default: Row | None
) -> None:
    found = found_by(table_of(request.table, default), request.method, request.path)
    taken = request.router.takes(request.table, request.method, request.path)
    if found is None or taken is None:
        event("refused" if found is None else "not served")
        return
    event("compared")
    assert (0 if found.free else found.units) >= (0 if taken.free else taken.units), (found.name, taken.path)


@prop
@given(st.data(), rows("api_calls"), routers, defaults)
def test_no_spelling_of_a_route_is_charged_less_than_the_route_as_its_operator_wrote_it(
    data: st.DataObject, table: list[Row], router: Router, default: Row | None
) -> None:
    row = data.draw(st.sampled_from(table))
    written = re.sub(r"\{\w+\}", "7", row.path.removesuffix("/**")) or "/"
    path = data.draw(spelled(written, router))
    folded = FOLDS[router.fold]
    if folded(router.read(path)) != folded(router.read(written)) or ";" in written:
        return
    event("compared")
    method = row.methods[0] if row.methods else "GET"
    found = found_by(table_of(table, default), method, path)
    named = found_by(table_of(table, default, exact=True), method, written)
    if found is not None and named is not None:
        assert (0 if found.free else found.units) >= (0 if named.free else named.units), (found.name, written, path)


@prop
@given(requests(rows("api_calls", "payments"), routers), defaults, st.sampled_from((None, (1, 3), (20, 1))))
def test_nor_is_it_charged_for_a_metric_that_is_worth_less(
    request: Request, default: Row | None, worth: tuple[int, int] | None
) -> None:
    weights = dict(zip(("api_calls", "payments"), worth, strict=True)) if worth else {}
    found = found_by(table_of(request.table, default, weights=weights), request.method, request.path)
    taken = request.router.takes(request.table, request.method, request.path)
    if found is None or taken is None or taken.free:
        return
    assert not found.free
    if not weights:
        assert found.metric == taken.metric
    assert found.units * weights.get(found.metric, 1) >= taken.units * weights.get(taken.metric, 1)


@prop
@given(requests(rows("api_calls"), st.sampled_from((Router(), Router(upper=True)))), defaults)
def test_a_strict_router_is_met_by_exact_matching(request: Request, default: Row | None) -> None:
    found = found_by(table_of(request.table, default, exact=True), request.method, request.path)
    taken = request.router.takes(request.table, request.method, request.path)
    if found is not None and taken is not None:
        assert (found.free, found.units) == (taken.free, taken.units)


@prop
@given(rows("api_calls"))
def test_a_path_that_is_spelled_as_a_route_is_not_refused(table: list[Row]) -> None:
    for row in table:
        path = re.sub(r"\{\w+\}", "7", row.path).replace("/**", "/7")
        if ";" in path or ".json" in path:  # refused as parameters; and read without its extension
            continue
        assert found_by(table_of(table, None), row.methods[0] if row.methods else "GET", path) is not None, path
