"""From the configuration to the parts."""

from __future__ import annotations

from typing import Any

from sidecar.app.assemble import route_table, upstream_target
from sidecar.app.configuration import Config, load_config
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
