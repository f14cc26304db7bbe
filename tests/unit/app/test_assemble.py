"""From the configuration to the parts."""

from __future__ import annotations

from typing import Any

import pytest

from sidecar.app.assemble import route_table, upstream_target
from sidecar.app.configuration import Config, load_config
from sidecar.config.errors import ConfigError
from sidecar.gateway.parameters import OriginalDestinations, UpstreamTarget


def config(**environment: str) -> Config:
    settings: dict[str, Any] = {"SIDECAR_VALKEY": "valkey://h", **environment}
    return load_config(None, settings)


def test_a_free_path_comes_before_every_route() -> None:
    routes = route_table(
        config(SIDECAR_FREE_PATHS='["/healthz", "/docs/**"]', SIDECAR_ROUTES='[{"path": "/**", "units": 2}]')
    )
    free = {path: routes.find(b"GET", path).free for path in (b"/healthz", b"/docs/a/b", b"/accounts", b"/healthz/x")}
    assert free == {b"/healthz": True, b"/docs/a/b": True, b"/accounts": False, b"/healthz/x": False}


def test_redirected_clients_are_never_sent_to_a_port_of_the_gateway() -> None:
    wanted = upstream_target(
        config(
            SIDECAR_UPSTREAM__ORIGINAL_DESTINATION="true", SIDECAR_LISTEN__PORT="15701",
            SIDECAR_ADMIN__PORT="15721", SIDECAR_HEALTH__PORT="15720", SIDECAR_UPSTREAM__URL="http://ignored",
        )
    )  # fmt: skip
    assert isinstance(wanted, OriginalDestinations)
    assert [wanted.serves(port) for port in (15701, 15720, 15721, 8080)] == [False, False, False, True]


def test_an_upstream_s_url_is_its_target() -> None:
    target = UpstreamTarget("api", 8000, server_hostname="api")
    assert upstream_target(config(SIDECAR_UPSTREAM__URL="http://api:8000")) == target


def test_settings_of_matching_are_those_of_the_table() -> None:
    routes = '[{"path": "/a", "units": 5, "encoded_slash": "allow", "cors": "pass", "method_override": "price"}]'
    found = route_table(config(SIDECAR_ROUTES=routes)).find(b"GET", b"/A/")
    assert (found.units, found.encoded_slash, found.cors, found.method_override) == (5, True, True, True)
    assert route_table(config(SIDECAR_ROUTES=routes, SIDECAR_MATCHING="exact")).find(b"GET", b"/A").units == 1
    extended = route_table(config(SIDECAR_ROUTES=routes, SIDECAR_PATH_EXTENSIONS="[json, .XML]"))
    assert [extended.find(b"GET", path).units for path in (b"/a.JSON", b"/a.xml", b"/a.txt")] == [5, 5, 1]
    plain = route_table(config(SIDECAR_ROUTES='[{"path": "/a"}]')).find(b"GET", b"/a")
    assert (plain.encoded_slash, plain.cors, plain.method_override) == (False, False, False)
    weighed = route_table(
        config(SIDECAR_ROUTES='[{"path": "/a", "metric": "m"}]', SIDECAR_METRIC_WEIGHTS="{m: 2, api_calls: 1}")
    )
    assert weighed.find(b"GET", b"/A").metric == "m"


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"SIDECAR_MATCHING": "exact", "SIDECAR_PATH_EXTENSIONS": "[json]"}, "path_extensions: has no effect"),
        ({"SIDECAR_PATH_EXTENSIONS": "[a/b]"}, "is no extension"),
        ({"SIDECAR_METRIC_WEIGHTS": "{m: 0}"}, "metric_weights"),
        ({"SIDECAR_MATCHING": "loose"}, "matching"),
    ],
)
def test_a_setting_of_matching_that_is_wrong_is_named(environment: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(**environment)
