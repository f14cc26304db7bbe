"""`sidecar check` names routes of which a spelling costs something else."""

from __future__ import annotations

from typing import Any

from sidecar.app.configuration import load_config
from sidecar.cli.checks.spellings import FINDINGS_MAX, routes


async def found(**environment: str) -> dict[str, tuple[bool | None, str]]:
    settings: dict[str, Any] = {"SIDECAR_VALKEY": "valkey://h", **environment}
    return {each.what: (each.ok, each.detail) for each in await routes(load_config(None, settings))}


async def test_a_route_whose_spelling_falls_to_a_cheaper_one_is_named() -> None:
    findings = await found(SIDECAR_ROUTES='[{"path": "/a/{x}/sales", "units": 5}, {"path": "/a/**"}]')
    ok, detail = findings["routes[0] /a/{x}/sales"]
    assert ok
    assert detail == (
        "GET /A/7/SALES matches default_route as spelled (1 api_calls); it is charged as routes[0] (5 api_calls)"
    )
    assert "routes[1] /a/**" not in findings


async def test_a_route_that_is_charged_as_another_although_it_is_spelled_as_written_is_a_warning() -> None:
    findings = await found(SIDECAR_ROUTES='[{"path": "/Sales"}, {"path": "/sales", "units": 5}]')
    ok, detail = findings["routes[0] /Sales"]
    assert ok is None
    assert "charged as routes[1] (5 api_calls)" in detail


async def test_a_spelling_that_is_refused_for_its_metrics_is_a_warning_until_they_have_weights() -> None:
    table = '[{"path": "/pisp/**", "metric": "payments"}]'
    ok, detail = (await found(SIDECAR_ROUTES=table))["routes[0] /pisp/**"]
    assert ok is None
    assert "metric_weights" in detail
    weighted = await found(SIDECAR_ROUTES=table, SIDECAR_METRIC_WEIGHTS='{"payments": 9, "api_calls": 1}')
    assert weighted["routes[0] /pisp/**"][0]


async def test_an_extension_that_the_api_cuts_off_is_tried() -> None:
    findings = await found(SIDECAR_ROUTES='[{"path": "/a", "units": 2}, {"path": "/**", "units": 1}]',
                           SIDECAR_PATH_EXTENSIONS='[".JSON"]', SIDECAR_DEFAULT_ROUTE="deny")  # fmt: skip
    assert findings["routes[0] /a"][0]


async def test_nothing_differs_where_spellings_are_denied_or_matching_is_exact() -> None:
    table = '[{"path": "/a", "units": 5}]'
    assert await found(SIDECAR_ROUTES=table, SIDECAR_DEFAULT_ROUTE="deny") == {}
    assert await found(SIDECAR_ROUTES=table, SIDECAR_MATCHING="exact") == {}
    assert await found(SIDECAR_ROUTES=table) != {}


async def test_a_large_table_has_a_bounded_report() -> None:
    table = str([{"path": f"/r{number}", "units": 2} for number in range(FINDINGS_MAX + 5)]).replace("'", '"')
    findings = await found(SIDECAR_ROUTES=table)
    assert len(findings) == FINDINGS_MAX + 1
    assert findings["routes"] == (True, "5 more routes have spellings that differ")
