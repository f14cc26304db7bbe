"""Which route a request takes: spellings, methods, override fields, preflights, and what a denial says."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.config.path_template import parse_template
from sidecar.gateway.http1.framing import HeadParser, ProtocolError, RequestHead
from sidecar.gateway.methods import METHOD_OVERRIDES, PATH_OVERRIDES, PREFLIGHT
from sidecar.gateway.routes import Route, RouteTable
from sidecar.gateway.spellings import SPELLINGS_MAX, has_one_spelling, spellings

PARSER = HeadParser({*METHOD_OVERRIDES, *PREFLIGHT}, PATH_OVERRIDES, marks=METHOD_OVERRIDES)
CHEAP = Route("(other)", units=1)
DENIED = Route("(other)", deny=True)


def route(path: str, units: int = 1, *methods: str, **options: Any) -> Route:
    named = frozenset(method.encode() for method in methods) or None
    return Route(path, units=units, template=parse_template(path), methods=named, **options)


def head(method: str, target: str, *fields: str) -> RequestHead:
    lines = [f"{method} {target} HTTP/1.1", "Host: api", *fields, "", ""]
    read = PARSER.request("\r\n".join(lines).encode())
    assert read is not None
    return read[0]


def refused(table: RouteTable, method: str, path: str, *fields: str) -> int:
    with pytest.raises(ProtocolError) as caught:
        table.find_for(head(method, path, *fields))
    return caught.value.status


# Spellings

DEAR = RouteTable(
    [
        route("/v1/accounts:export", 50), route("/v1/{id}/transactions", 20), route("/Kiosk/sales/", 30),
        route("/p;q", 40), route("/reports/{name}", 5), route("/reports", 60),
    ],
    CHEAP, extensions=("json", "tar.gz"),
)  # fmt: skip


@pytest.mark.parametrize(
    ("path", "units"),
    [
        ("/v1/7/transactions", 20),
        ("/v1/7/Transactions", 20),
        ("/V1/7/TRANSACTIONS", 20),
        ("/v1/7/transactions/", 20),
        ("/v1/7/Transactions/", 20),
        ("/v1/7/transactions.json", 20),
        ("/v1/7/TRANSACTIONS.JSON/", 20),
        ("/v1/7/transactions.tar.gz", 20),
        ("/v1/7/transactions/.json", 20),
        ("/v1/7/transactions.xml", 1),
        ("/v1/7/%74ransactions", 20),
        ("/v1/7/%54ransactions", 20),
        ("/v1/accounts%3Aexport", 50),
        ("/v1/accounts%3aEXPORT", 50),
        ("/Kiosk/sales/", 30),
        ("/kiosk/sales", 30),
        ("/%E2%84%AAiosk/sales/", 30),  # KELVIN SIGN
        ("/kiosk/%C5%BFales", 30),  # LATIN SMALL LETTER LONG S
        ("/k%C4%B1osk/sales", 30),  # DOTLESS I
        ("/k%C4%B0osk/sales", 30),  # I WITH DOT ABOVE
        ("/%EF%BD%8Biosk/sales", 30),  # FULLWIDTH K
        ("/%25E2%2584%25AAiosk/sales", 30),  # the same, decoded twice
        ("/kiosk/s%CC%81ales", 30),  # COMBINING ACUTE ACCENT
        ("/kiosk/s%C3%A1les", 30),  # A WITH ACUTE
        ("/ki%C2%ADosk/sales", 30),  # SOFT HYPHEN
        ("/kiosk/sales.", 30),
        ("/kiosk/Sales%20/", 30),
        ("/v1/7/transactions%20.", 20),
        ("/p%3Bq", 40),
        ("/v1/7/transactions%3Bx", 20),
        ("/v1/7/transactions%3Fx", 20),
        ("/v1/7/transactions%23x", 20),
        ("/v1/7/Transactions%3Bx/", 20),
        ("/reports/", 60),
        ("/reports/.json", 60),
        ("/search/a%20b", 1),
        ("/search/caf%C3%A9", 1),
        ("/search/100%25", 1),
    ],
)
def test_a_spelling_costs_what_the_dearest_reading_of_it_costs(path: str, units: int) -> None:
    assert DEAR.find(b"GET", path.encode()).units == units


def test_exact_matching_takes_a_path_as_spelled() -> None:
    table = RouteTable([route("/transactions", 5)], CHEAP, exact=True)
    found = {path: table.find(b"GET", path).units for path in (b"/transactions", b"/Transactions", b"/transactions/")}
    assert found == {b"/transactions": 5, b"/Transactions": 1, b"/transactions/": 1}
    assert table.find(b"GET", b"/%74ransactions").units == 5


def test_two_routes_that_differ_in_letter_case_both_cost_the_dearer() -> None:
    table = RouteTable([route("/Accounts", 1), route("/accounts", 5)], DENIED)
    assert [table.find(b"GET", path).units for path in (b"/Accounts", b"/accounts")] == [5, 5]


def test_a_server_that_ignores_case_or_slash_serves_one_thing_for_two_spellings_of_one_route() -> None:
    table = RouteTable([route("/a/{x}", 1), route("/A/Export", 9), route("/a/b/", 7)], CHEAP)
    assert [table.find(b"GET", path).units for path in (b"/A/Export", b"/a/export", b"/A/EXPORT/")] == [9, 9, 9]
    assert [table.find(b"GET", path).units for path in (b"/a/b/", b"/a/b", b"/A/B")] == [7, 7, 7]


def test_a_reading_that_is_denied_denies() -> None:
    table = RouteTable([route("/open/{x}"), Route("/OPEN/secret", deny=True, template=parse_template("/OPEN/secret"))],
                       CHEAP)  # fmt: skip
    assert table.find(b"GET", b"/open/secret").deny
    assert not table.find(b"GET", b"/open/other").deny
    extension = RouteTable([route("/a.json")], DENIED, extensions=("json",))
    assert extension.find(b"GET", b"/a.json").deny


def test_a_spelling_that_no_route_has_stays_denied() -> None:
    table = RouteTable([route("/accounts")], DENIED)
    assert all(table.find(b"GET", path).deny for path in (b"/Accounts", b"/accounts/", b"/account"))


def test_a_free_route_wins_only_if_every_reading_gives_it() -> None:
    table = RouteTable([route("/status/**", free=True), route("/STATUS/report", 5)], CHEAP)
    assert table.find(b"GET", b"/status/report").units == 5
    assert table.find(b"GET", b"/status/other").free


def test_of_as_many_units_the_route_that_charges_more_statuses_decides() -> None:
    table = RouteTable([route("/A", charged=frozenset({200})), route("/a", charged=frozenset(range(100, 500)))], CHEAP)
    assert table.find(b"GET", b"/A").name == "/a"


def test_readings_with_different_metrics_are_refused_unless_weights_compare_them() -> None:
    routes = [route("/pisp/**", 1, metric="payments"), route("/aisp/**", 4)]
    assert refused(RouteTable(routes, CHEAP), "GET", "/PISP/x") == 400
    assert RouteTable(routes, CHEAP).find(b"GET", b"/pisp/x").metric == "payments"
    weighted = RouteTable(routes, CHEAP, weights={"payments": 20, "api_calls": 1})
    assert weighted.find(b"GET", b"/PISP/x").metric == "payments"
    other = RouteTable(routes, Route("(other)", units=30), weights={"payments": 20, "api_calls": 1})
    assert other.find(b"GET", b"/PISP/x").metric == "api_calls"
    assert refused(RouteTable(routes, CHEAP, weights={"payments": 20}), "GET", "/PISP/x") == 400


def test_a_path_with_more_readings_than_an_honest_one_has_is_refused() -> None:
    table = RouteTable([route("/a", 3)], CHEAP, extensions=("json",))
    assert table.find(b"GET", b"/a" + b".json" * 10).units == 3
    with pytest.raises(ProtocolError, match="too many ways"):
        spellings("/a" + ".json" * SPELLINGS_MAX, ("json",))


@pytest.mark.parametrize("path", ["/a", "/a/b-c/7", "/a%20b", "/A", "/a/", "/a.json", "/a;b", "/", "/a."])
def test_a_path_is_said_to_have_one_spelling_only_if_no_step_changes_it(path: str) -> None:
    if has_one_spelling(path, ("json",)):
        assert len(spellings(path, ("json",))) == 1


# Encoded slashes


def test_an_encoded_slash_is_refused_unless_the_route_allows_it() -> None:
    table = RouteTable([route("/files/{name}"), route("/other/{name}", encoded_slash=True)], DENIED)
    assert refused(table, "GET", "/files/a%2Fb") == 400
    assert table.find(b"GET", b"/other/a%2fb").name == "/other/{name}"
    assert refused(table, "GET", "/nowhere/a%2Fb") == 400


def test_an_encoded_slash_costs_the_dearer_of_both_readings() -> None:
    routes = [route("/files/{name}", 2, encoded_slash=True), route("/files/secret/Export", 9)]
    for exact in (False, True):
        table = RouteTable(routes, CHEAP, exact=exact)
        assert table.find(b"GET", b"/files/secret%2FExport").units == 9
        assert table.find(b"GET", b"/files/a%2Fb").units == 2
    assert RouteTable(routes, CHEAP).find(b"GET", b"/files/Secret%2fexport").units == 9


@pytest.mark.parametrize("path", ["/files/..%2Fadmin", "/files/%2Fa", "/files/a%252Fb", "/files/a%5Cb"])
def test_an_encoded_slash_hides_no_segment_that_servers_resolve(path: str) -> None:
    assert refused(RouteTable([route("/files/**", encoded_slash=True)], CHEAP), "GET", path) == 400


# Methods

TABLE = RouteTable([route("/a", 5, "GET"), route("/a", 2, "POST"), route("/b", 3, "GET"), route("/b", 1, "HEAD"),
                    route("/c", 4)], DENIED)  # fmt: skip


@pytest.mark.parametrize(("method", "status"), [("get", 400), ("Post", 400), ("PURGE", 501), ("M-SEARCH", 501)])
def test_a_method_that_is_no_registered_token_is_refused(method: str, status: int) -> None:
    assert refused(TABLE, method, "/c") == status


def test_head_follows_get_unless_a_route_names_it() -> None:
    assert [TABLE.find(b"HEAD", path).units for path in (b"/a", b"/b", b"/c")] == [5, 1, 4]
    free = RouteTable([route("/a", 5, "GET"), route("/**", free=True)], DENIED)
    assert free.find(b"HEAD", b"/a").units == 5
    assert free.find(b"HEAD", b"/A/").units == 5


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("PUT", "/a", ("GET", "HEAD", "POST")),
        ("DELETE", "/b", ("GET", "HEAD")),
        ("PUT", "/nowhere", ()),
        ("GET", "/nowhere", ()),
    ],
)
def test_a_denial_names_the_methods_that_are_known_for_the_path(method: str, path: str, allow: tuple[str, ...]) -> None:
    denial = TABLE.find(method.encode(), path.encode())
    assert (denial.deny, denial.allow, denial.name) == (True, allow, "(other)")


def test_the_default_route_takes_other_methods_where_it_denies_nothing() -> None:
    assert RouteTable([route("/a", 5, "GET")], CHEAP).find(b"PUT", b"/a") is CHEAP


# Override fields

OVERRIDES = ("X-HTTP-Method-Override", "x-method-override", "X-Http-Method")


@pytest.mark.parametrize("name", OVERRIDES)
@pytest.mark.parametrize("value", ["POST", "post", "GET, POST", "POST,", "TRACE", "PURGE", "P\u00f6ST"])
def test_a_field_that_names_another_method_is_refused(name: str, value: str) -> None:
    assert refused(TABLE, "GET", "/a", f"{name}: {value}") == 400


@pytest.mark.parametrize("value", ["GET", "get", " GET ", "GET, GET", ""])
def test_a_field_that_names_the_same_method_passes(value: str) -> None:
    assert TABLE.find_for(head("GET", "/a", f"{OVERRIDES[0]}: {value}")).units == 5


def test_a_route_that_prices_overrides_takes_the_dearer_of_both_methods() -> None:
    table = RouteTable(
        [route("/a", 5, "GET", method_override=True), route("/a", 2, "POST", method_override=True)], DENIED
    )
    for method, named in (("POST", "GET"), ("GET", "POST")):
        assert table.find_for(head(method, "/a", f"X-HTTP-Method-Override: {named}")).units == 5
    assert table.find_for(head("POST", "/a", "X-HTTP-Method-Override: delete")).allow == ("GET", "HEAD", "POST")
    assert table.find_for(head("POST", "/a")).units == 2


# Preflights

ORIGIN = "Origin: https://tpp.example"
ASKED = "Access-Control-Request-Method: POST"
CORS = RouteTable(
    [route("/a", 5, "POST", cors=True), route("/b", 3, "POST"), route("/c", 2, "OPTIONS"), route("/c", 4, cors=True)],
    CHEAP,
)


def test_a_preflight_is_free_on_a_route_that_lets_it_pass() -> None:
    found = CORS.find_for(head("OPTIONS", "/a", ORIGIN, ASKED))
    assert (found.name, found.free) == ("/a", True)
    assert not CORS.find_for(head("POST", "/a", ORIGIN, ASKED)).free


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/a", (ORIGIN,)),
        ("/a", (ASKED,)),
        ("/a", ("Origin:", ASKED)),
        ("/a", (ORIGIN, ASKED, "Content-Length: 1")),
        ("/a", (ORIGIN, "Access-Control-Request-Method: post")),
        ("/a", (ORIGIN, "Access-Control-Request-Method: POST, GET")),
        ("/a", (ORIGIN, "Access-Control-Request-Method: GET")),
        ("/b", (ORIGIN, ASKED)),
        ("/c", (ORIGIN, ASKED)),
    ],
)
def test_any_other_options_request_has_its_price(path: str, fields: tuple[str, ...]) -> None:
    assert not CORS.find_for(head("OPTIONS", path, *fields)).free


def test_a_preflight_is_free_only_if_every_reading_lets_it_pass() -> None:
    table = RouteTable([route("/a/**", cors=True), route("/A/export", 5)], CHEAP)
    assert table.find_for(head("OPTIONS", "/a/x", ORIGIN, ASKED)).free
    assert not table.find_for(head("OPTIONS", "/a/export", ORIGIN, ASKED)).free


def test_a_preflight_that_names_another_method_by_a_field_is_refused() -> None:
    assert refused(CORS, "OPTIONS", "/a", ORIGIN, ASKED, "X-HTTP-Method-Override: POST") == 400


def test_a_long_path_is_compared_as_far_as_templates_tell_paths_apart() -> None:
    """What is left out of a long path changes nothing: not below the deepest template, not in a long parameter."""
    routes = [
        Route("/a/{id}/dear", units=9, template=parse_template("/a/{id}/dear")),
        Route("/b/**", units=5, template=parse_template("/b/**")),
        Route("/c", units=3, template=parse_template("/c")),
    ]
    table = RouteTable(routes, CHEAP)
    long, deep = b"x" * 5_000, b"/y" * 2_000
    cases = {
        b"/A/" + long + b"/DEAR": 9, b"/A/" + long + b"/DEAR/": 9, b"/A/" + long + b"/DEAR" + deep: 1,
        b"/B" + deep: 5, b"/B/" + long: 5, b"/B" + deep + b"/": 5, b"/C" + b"." * 5_000: 3, b"/C" + b"%20" * 500: 3,
        b"/C%3B" + long: 3, b"/C" + long: 1, b"/%C4%B0" + long: 1, b"/a/" + b"%C4%B0" * 200 + b"/DEAR": 9,
    }  # fmt: skip
    assert {path: table.find(b"GET", path).units for path in cases} == cases


def test_a_path_has_a_bounded_number_of_escapes() -> None:
    table = RouteTable([], CHEAP)
    assert table.find(b"GET", b"/" + b"%C3%A9" * 256) is CHEAP
    with pytest.raises(ProtocolError, match="more than 512 escapes"):
        table.find(b"GET", b"/" + b"%20" * 513)


LITERALS = ["accounts", "Consents", "a", "v3.1", "kiss", "export:all"]
ODD = [
    "%20", "%C3%89", "%E2%84%AA", "%C5%BF", "%3F", "%3B", "%23", "%2520", ".json", ".", "x", "A", "%EF%BC%A1", "%CC%81",
    "%C2%AD", "k", "i%C3%9F",
]  # fmt: skip
LONG_SEGMENTS = st.one_of(
    st.sampled_from(LITERALS),
    st.sampled_from(LITERALS).map(str.upper),
    st.tuples(st.sampled_from(["", *LITERALS]), st.lists(st.sampled_from(ODD), min_size=1, max_size=60)).map(
        lambda parts: parts[0] + "".join(parts[1])
    ),
)
TEMPLATES = st.lists(st.one_of(st.sampled_from(LITERALS), st.just("{id}")), min_size=1, max_size=4).filter(
    lambda parts: parts.count("{id}") < 2
)


@pytest.mark.parametrize("last", ["%20" * 8, "%C2%AD" * 8, "%20" * 8 + ".json", ".%20" * 6])
def test_the_slash_before_a_name_of_which_servers_leave_nothing_is_the_last(last: str) -> None:
    table = RouteTable([route("/{id}", 2)], CHEAP, extensions=("json",))
    assert table.find(b"GET", b"/accounts%20%20%20%20%20%20%3B%EF%BC%A1/" + last.encode()).units == 2


def test_a_parameter_does_not_hide_where_a_long_path_is_cut_off() -> None:
    table = RouteTable([route("/{id}", 2)], CHEAP)
    assert table.find(b"GET", b"/accounts%20%20%20%20%20%3B%EF%BC%A1%3F/accounts/%20%20%20%20%20%20%20%20").units == 2


@given(
    tables=st.lists(st.tuples(TEMPLATES, st.booleans(), st.integers(1, 9)), max_size=5),
    segments=st.lists(LONG_SEGMENTS, min_size=1, max_size=9),
    final=st.booleans(),
)
def test_a_long_path_costs_what_it_would_cost_if_all_of_it_were_read(
    tables: list[tuple[list[str], bool, int]], segments: list[str], final: bool
) -> None:
    routes = [route("/" + "/".join(parts) + "/**" * rest, units) for parts, rest, units in tables]
    path = ("/" + "/".join(segments) + "/" * final).encode()
    short, whole = (RouteTable(routes, CHEAP, extensions=("json",)) for _ in range(2))
    whole._abridge = lambda text: text  # type: ignore[assignment]
    try:
        expected = whole.find(b"GET", path).units
    except ProtocolError as error:
        if "too many ways" not in error.reason:
            with pytest.raises(ProtocolError):
                short.find(b"GET", path)
        return
    assert short.find(b"GET", path).units == expected
