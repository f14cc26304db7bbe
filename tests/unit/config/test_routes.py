"""Path templates, statuses and methods of routes."""

from __future__ import annotations

import pytest

from sidecar.app.assemble import link_settings, route_table
from sidecar.config.path_template import parse_template
from sidecar.gateway.route_settings import IdempotencySettings, RouteSettings, statuses_of
from sidecar.gateway.routes import IdempotencyRule
from tests.unit.config.loads import SMALLEST, load


@pytest.mark.parametrize(
    ("template", "path", "matches"),
    [
        ("/a/b", "/a/b", True),
        ("/a/b", "/a/b/", False),
        ("/a/b/", "/a/b/", True),
        ("/a/b", "/a", False),
        ("/a/b", "/a/B", False),
        ("/a/{Id}", "/a/1", True),
        ("/a/{Id}", "/a/", False),
        ("/a/{Id}", "/a/1/2", False),
        ("/a/{Id}/b", "/a/1/b", True),
        ("/a/{Id}/b", "/a//b", False),
        ("/a/**", "/a", True),
        ("/a/**", "/a/", True),
        ("/a/**", "/a/b/c", True),
        ("/a/**", "/ab", False),
        ("/a/{Id}/**", "/a/1", True),
        ("/a/{Id}/**", "/a", False),
        ("/**", "/", True),
        ("/**", "/a/b", True),
        ("/", "/", True),
        ("/", "/a", False),
        ("/open-banking/v3.1/aisp/accounts/{AccountId}", "/open-banking/v3.1/aisp/accounts/acc-001", True),
    ],
)
def test_a_template_matches_its_paths_and_no_others(template: str, path: str, matches: bool) -> None:
    assert parse_template(template).matches(path) is matches


@pytest.mark.parametrize(
    ("wide", "narrow", "covers"),
    [
        ("/a", "/a", True),
        ("/a/{X}", "/a/{Y}", True),
        ("/a/{X}", "/a/b", True),
        ("/a/b", "/a/{X}", False),
        ("/a/{X}", "/a/", False),
        ("/a/**", "/a", True),
        ("/a/**", "/a/b/{X}", True),
        ("/a/**", "/a/b/**", True),
        ("/a/b/**", "/a/**", False),
        ("/a", "/a/**", False),
        ("/a/{X}", "/a/**", False),
        ("/a/{X}/c", "/a/b/**", False),
        ("/**", "/", True),
    ],
)
def test_a_template_covers_another_when_it_matches_all_its_paths(wide: str, narrow: str, covers: bool) -> None:
    assert parse_template(wide).covers(parse_template(narrow)) is covers


@pytest.mark.parametrize(
    "path",
    [
        "", "a", "/a//b", "/a/../b", "/a/./b", "/a/*/b", "/**/a", "/a/**/", "/a/{b}c", "/a/{1b}", "/a/{}", "/a/{b}/{b}",
        "/:b", "/a/<b>", "/a%2Fb", "/a?b", "/a#b", "/a b", "/ä", "/a\\b", "/" + "a/" * 70, "/" + "a" * 2048,
    ],
)  # fmt: skip
def test_what_is_no_template_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match=r"segment|begin with|parameter"):
        parse_template(path)


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        (["2xx"], set(range(200, 300))),
        (["404"], {404}),
        (["200-203", "5XX"], {200, 201, 202, 203} | set(range(500, 600))),
        (["100-499"], set(range(100, 500))),
    ],
)
def test_statuses_stand_for_numbers(entries: list[str], expected: set[int]) -> None:
    assert statuses_of(entries) == expected


@pytest.mark.parametrize("entry", ["", "2x", "xx", "0xx", "6xx", "99", "600", "300-200", "200-", "-200", "200,201"])
def test_what_is_no_status_is_refused(entry: str) -> None:
    with pytest.raises(ValueError, match=r"neither|ends before"):
        statuses_of([entry])


def test_by_default_success_is_charged() -> None:
    route = RouteSettings.model_validate({"path": "/a"})

    assert route.charged_statuses == frozenset(range(200, 400)) | {101}
    assert route.charged_if_unsafe == {406, 412, 416, 417}


def test_a_success_that_a_caller_asks_for_in_a_field_costs_as_the_plain_one() -> None:
    route = RouteSettings.model_validate({"path": "/a", "charge_statuses": ["200"]})

    assert route.charged_statuses == {101, 200, 206, 304}
    assert route.charged_if_unsafe == {406, 412, 416, 417}


def test_only_named_failures_are_charged_where_no_success_is() -> None:
    route = RouteSettings.model_validate({"path": "/a", "charge_statuses": ["201", "404"]})

    assert route.charged_statuses == {201, 404}
    assert route.charged_if_unsafe == frozenset()


def test_nothing_is_charged_on_a_free_route() -> None:
    assert RouteSettings.model_validate({"path": "/a", "free": True}).charged_statuses == frozenset()


@pytest.mark.parametrize(
    ("given", "methods"),
    [
        ("any", ()),
        ([], ()),
        ("get", ("GET",)),
        (["get", "POST"], ("GET", "POST")),
        ("version-control", ("VERSION-CONTROL",)),
    ],
)
def test_methods_are_a_word_or_a_list_in_any_case(given: object, methods: tuple[str, ...]) -> None:
    assert RouteSettings.model_validate({"path": "/a", "methods": given}).methods == methods


def test_statuses_may_be_written_as_numbers() -> None:
    assert RouteSettings.model_validate({"path": "/a", "charge_statuses": [200, "201"]}).charged_statuses == {
        101,
        200,
        201,
        206,
        304,
    }


# Idempotency


@pytest.mark.parametrize("word", ["off", False, None])
def test_no_call_is_a_free_repeat_unless_a_route_says_so(word: object) -> None:
    assert RouteSettings(path="/a").idempotency is None
    assert RouteSettings.model_validate({"path": "/a", "idempotency": word}).idempotency is None


@pytest.mark.parametrize("word", ["on", True])
def test_a_word_declares_a_route_idempotent(word: object) -> None:
    assert RouteSettings.model_validate({"path": "/a", "idempotency": word}).idempotency == IdempotencySettings()


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("auto", "auto was removed: write on if the API does a repeated call only once, else off"),
        ("yes", "should be on, off or a section"),
        ({"repeats_max": -1}, "greater than or equal to 0"),
        ({"header": "Host"}, "has a meaning of its own"),
        ({"on_conflict": "ignore"}, "'charge' or 'refuse'"),
    ],
)
def test_what_is_no_rule_of_repeats_is_named(value: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        RouteSettings.model_validate({"path": "/a", "idempotency": value})


def test_repeats_need_a_price_and_bodies_that_can_be_compared() -> None:
    with pytest.raises(ValueError, match="has no effect on a free route"):
        RouteSettings.model_validate({"path": "/a", "free": True, "idempotency": "on"})
    with pytest.raises(ValueError, match="needs request_buffering"):
        RouteSettings.model_validate({"path": "/a", "request_buffering": False, "idempotency": "on"})


@pytest.mark.parametrize(("dialect", "header"), [("obie", b"x-idempotency-key"), ("problem", b"idempotency-key")])
def test_the_field_that_counts_is_the_dialects_unless_a_route_names_one(dialect: str, header: bytes) -> None:
    routes = "routes: [{path: /a, idempotency: on}, {path: /b, idempotency: {header: X-Own, on_conflict: refuse}}]\n"
    config = load(f"{SMALLEST}error_format: {dialect}\n{routes}")
    first, second, fallback = (route.idempotency for route in route_table(config).routes)
    assert first == IdempotencyRule(header)
    assert second == IdempotencyRule(b"x-own", refuse_conflicts=True)
    assert fallback is None
    assert {header, b"x-own"} == route_table(config).key_fields


def test_the_limit_of_unpaid_answers_goes_to_the_ledger() -> None:
    config = load(SMALLEST + "limits: {unpaid_per_second: 0.5, unpaid_burst: 7}\n")
    assert (link_settings(config).unpaid_interval_us, link_settings(config).unpaid_burst) == (2_000_000, 7)
