"""``SIDECAR_…`` variables over the file."""

from __future__ import annotations

from decimal import Decimal

import pytest

from sidecar.app.configuration import load_config
from sidecar.app.schema_rows import schema_rows
from sidecar.config.document import Node, compose
from sidecar.config.environment import overlay, parse_value, variable
from sidecar.config.errors import ConfigError, Origin
from tests.unit.config.loads import SMALLEST, errors, load

ROUTES = SMALLEST + "routes:\n  - {path: /a, units: 2}\n  - {path: /b}\n"


def overlaid(text: str, **environ: str) -> object:
    return overlay(compose(text, "f"), {f"SIDECAR_{name}": value for name, value in environ.items()}).data()


@pytest.mark.parametrize(
    ("text", "variables", "expected"),
    [
        ("a: 1", {"A": "2"}, {"a": 2}),
        ("a: {b: 1, c: 2}", {"A__B": "3"}, {"a": {"b": 3, "c": 2}}),
        ("", {"A__B__C": "x"}, {"a": {"b": {"c": "x"}}}),
        ("a:", {"A__B": "x"}, {"a": {"b": "x"}}),
        ("a: {b: 1}", {"A": "{c: 2}"}, {"a": {"c": 2}}),
        ("a: [1, 2]", {"A__1": "3"}, {"a": [1, 3]}),
        ("a: [{b: 1}, {b: 2}]", {"A__0__B": "3"}, {"a": [{"b": 3}, {"b": 2}]}),
        ("", {"A": '[{"b": 1}]', "A__0__B": "2"}, {"a": [{"b": 2}]}),
        ("", {"A": "- x\n- y"}, {"a": ["x", "y"]}),
        ("a: 1", {"A": ""}, {"a": 1}),
        ("a: 1", {"A": "null"}, {"a": None}),
        ("", {"A": "off"}, {"a": "off"}),
        ("", {"A": "1.50"}, {"a": Decimal("1.50")}),
        ("", {"A": '"1.50"'}, {"a": "1.50"}),
        ("", {"A": "pass word: #1 &x *y"}, {"a": "pass word: #1 &x *y"}),
        ("a: &x {b: 1}\nc: *x", {"A__B": "2"}, {"a": {"b": 2}, "c": {"b": 1}}),
    ],
)
def test_a_variable_sets_the_key_that_its_name_spells(text: str, variables: dict[str, str], expected: object) -> None:
    assert overlaid(text, **variables) == expected


@pytest.mark.parametrize(
    "name",
    [
        "SIDECAR_CONFIG",
        "SIDECAR_SERVICE_HOST",
        "SIDECAR_SERVICE_PORT",
        "SIDECAR_SERVICE_PORT_HTTP_PROXY",
        "SIDECAR_PORT",
        "SIDECAR_PORT_8080_TCP",
        "SIDECAR_PORT_8080_TCP_ADDR",
        "SIDECAR_PORT_8080_UDP_PROTO",
        "SIDECAR_CACHE_SERVICE_HOST",
        "SIDECAR_CACHE_SERVICE_PORT",
        "SIDECAR_CACHE_SERVICE_PORT_HTTP_PROXY",
        "SIDECAR_CACHE_PORT",
        "SIDECAR_CACHE_PORT_6379_TCP",
        "SIDECAR_CACHE_PORT_6379_TCP_PROTO",
        "SIDECAR_CACHE_PORT_6379_TCP_PORT",
        "SIDECAR_CACHE_PORT_6379_TCP_ADDR",
        "SIDECAR_LISTEN_PORT",
        "SIDECAR__UPSTREAM_SERVICE_HOST",
        "SIDECAR__UPSTREAM_PORT",
        "SIDECAR_LISTEN__PORT",
        "SIDECARS_UPSTREAM",
        "sidecar_upstream__url",
        "PATH",
    ],
)
def test_a_variable_of_others_is_left_alone(name: str) -> None:
    assert overlay(Node(Origin("f"), {}), {name: "tcp://10.0.0.1:8080"}).data() == {}


def test_no_setting_looks_like_a_link_to_a_service() -> None:
    """Every setting can be given by its variable, beside a Service of any name."""
    names = [variable(row.path) for row in schema_rows() if "[" not in row.path and "<" not in row.path]
    assert len(names) > 200
    assert [name for name in names if not overlay(Node(Origin("f"), {}), {name: "8080"}).data()] == []


def test_the_environment_alone_can_be_the_whole_configuration() -> None:
    config = load_config(
        None,
        {
            "SIDECAR_UPSTREAM__URL": "http://127.0.0.1:8000",
            "SIDECAR_VALKEY": "valkey://h:7000/2",
            "SIDECAR_ROUTES": '[{"path": "/a", "units": 3}]',
            "SIDECAR_TRUSTED_PEERS": "[10.0.0.0/8]",
        },
    )

    assert config.upstream.url == "http://127.0.0.1:8000"
    assert str(config.valkey) == "valkey://h:7000/2"
    assert config.routes[0].units == 3
    assert config.trusted_peers == ("10.0.0.0/8",)


def test_a_number_is_text_where_text_is_wanted() -> None:
    config = load(
        "upstream: {url: 'http://h'}\nvalkey: valkey://h\n",
        {"SIDECAR_VALKEY_PASSWORD": "0042", "SIDECAR_LEDGER__PREFIX": "12", "SIDECAR_LOG__ACCESS": "off"},
    )

    assert config.valkey_password is not None
    assert config.valkey_password.get_secret_value() == "0042"
    assert config.ledger.prefix == "12"
    assert config.log.access == "off"


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        (
            {"SIDECAR_UPSTREAM__CONNECT_TIMEOUT_MS": "soon"},
            "SIDECAR_UPSTREAM__CONNECT_TIMEOUT_MS: upstream.connect_timeout_ms: should be a whole number, not 'soon'",
        ),
        (
            {"SIDECAR_UPSTREAM__CONECT_TIMEOUT_MS": "5"},
            "SIDECAR_UPSTREAM__CONECT_TIMEOUT_MS: upstream.conect_timeout_ms: is not a known key; "
            "did you mean connect_timeout_ms?",
        ),
        (
            {"SIDECAR_ROUTES__2__UNITS": "5"},
            "SIDECAR_ROUTES__2__UNITS: routes is a list of 2: it has no entry 2",
        ),
        (
            {"SIDECAR_VALKEY__PASSWORD": "5"},
            "SIDECAR_VALKEY__PASSWORD: valkey is a single value and has no keys below it",
        ),
        (
            {"SIDECAR_LOG": "x" * 131_073},
            "SIDECAR_LOG is longer than 131072 characters",
        ),
        (
            {"SIDECAR_ADMIN__TOKEN": "4711"},
            "SIDECAR_ADMIN__TOKEN: admin.token: should be 16 or more visible ASCII characters: it is sent in a header",
        ),
    ],
)
def test_a_mistake_in_a_variable_is_answered_with_its_name(environ: dict[str, str], expected: str) -> None:
    assert errors(ROUTES, environ) == [expected]


def test_a_list_in_a_variable_that_is_no_yaml_is_answered_with_its_name() -> None:
    (line,) = errors(ROUTES, {"SIDECAR_ROUTES": "[{path: /a}"})

    assert line.startswith("SIDECAR_ROUTES is not YAML: ")


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, "give -c FILE (or set SIDECAR_CONFIG)"),
        (
            {"SIDECAR_UPSTREAM__URL": "http://h"},
            "give -c FILE (or set SIDECAR_CONFIG): the SIDECAR_… variables do not set valkey",
        ),
    ],
)
def test_without_a_file_and_a_ledger_in_the_environment_a_file_is_asked_for(
    environ: dict[str, str], expected: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, environ)

    assert str(caught.value) == expected


def test_where_the_api_is_must_be_known_to_a_gateway_and_not_to_a_control_plane() -> None:
    environ = {"SIDECAR_VALKEY": "valkey://h"}
    assert load_config(None, environ).upstream.url is None
    with pytest.raises(ConfigError) as caught:
        load_config(None, environ, command="run")
    assert str(caught.value) == (
        "environment: upstream.url: is missing: a gateway needs it; "
        "set SIDECAR_UPSTREAM__URL, or give -c FILE (or set SIDECAR_CONFIG)"
    )
    redirected = load_config(None, {**environ, "SIDECAR_UPSTREAM__ORIGINAL_DESTINATION": "true"}, command="run")
    assert redirected.upstream.original_destination


def test_the_name_of_a_key_s_variable_sets_that_key() -> None:
    name = variable("upstream.connect_timeout_ms")

    assert name == "SIDECAR_UPSTREAM__CONNECT_TIMEOUT_MS"
    assert load(SMALLEST, {name: "77"}).upstream.connect_timeout_ms == 77


def test_a_value_within_a_variable_is_placed_at_the_variable() -> None:
    assert parse_value("- a\n- b\n- c", "SIDECAR_X").child(2) == Node(Origin("SIDECAR_X"), "c", "c")
