"""The dashboards: what is checked in is what the generator writes, Grafana understands it, and people do too."""

from __future__ import annotations

import json
import re
from itertools import combinations
from typing import Any

import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from deploy.dashboards.__main__ import DIRECTORY, texts
from tests.integration.deploy.observed import alerts, dashboards, panels, variables, variables_used

NAMES = sorted(dashboards())
SHOWN = [(f"{file}: {panel['title']}", panel) for file, each in dashboards().items() for panel in panels(each)]
PANELS = [pytest.param(panel, id=name) for name, panel in SHOWN]
TABLES = [pytest.param(panel, id=name) for name, panel in SHOWN if panel["type"] == "table"]
UNITS = {
    "short", "s", "bytes", "percentunit", "reqps", "ops", "opm", "cps", "bool_on_off", "bool_yes_no",
}  # fmt: skip
"""Of Grafana's, https://github.com/grafana/grafana/blob/main/packages/grafana-data/src/valueFormats/categories.ts."""


def test_what_is_checked_in_is_what_the_generator_writes() -> None:
    written = {path.name: path.read_text() for path in DIRECTORY.iterdir()}
    assert written == texts(), "run: python -m deploy.dashboards"


def test_there_are_the_dashboards_of_the_platform_and_one_for_the_pipeline() -> None:
    assert {each["uid"] for each in dashboards().values()} == {
        "quota-api-overview", "quota-tpp-analytics", "quota-monetization", "quota-pipeline-health",
    }  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_grafana_s_own_types_read_a_dashboard_and_write_it_unchanged(name: str) -> None:
    register_default_plugins()
    document = dashboards()[name]
    again = json.loads(json.dumps(Dashboard.from_json(document), cls=JSONEncoder))
    assert differences(document, again) == []


def differences(here: Any, there: Any, path: str = "") -> list[str]:
    """Places where ``there`` lacks or changes something."""
    if isinstance(here, dict) and isinstance(there, dict):
        return [
            line
            for key, value in here.items()
            for line in differences(value, there.get(key, "absent"), f"{path}/{key}")
        ]
    if isinstance(here, list) and isinstance(there, list) and len(here) == len(there):
        both = enumerate(zip(here, there, strict=True))
        return [line for n, (value, other) in both for line in differences(value, other, f"{path}/{n}")]
    return [] if here == there else [f"{path}: {here!r} became {there!r}"]


@pytest.mark.parametrize("name", NAMES)
def test_a_dashboard_takes_its_data_source_and_its_choices_from_variables(name: str) -> None:
    document = dashboards()[name]
    assert document["schemaVersion"] >= 38  # that of Grafana 10
    offered = variables(document)
    assert offered["datasource"]["type"] == "datasource"
    assert offered["datasource"]["query"] == "prometheus"
    assert variables_used(document) == set(offered)
    sources = [panel["datasource"] for panel in panels(document)]
    sources += [target["datasource"] for panel in panels(document) for target in panel["targets"]]
    sources += [each["datasource"] for each in offered.values() if each["type"] == "query"]
    assert all(source == {"type": "prometheus", "uid": "${datasource}"} for source in sources)


@pytest.mark.parametrize("name", NAMES)
def test_all_includes_series_without_a_namespace(name: str) -> None:
    several = [each for each in variables(dashboards()[name]).values() if each.get("includeAll")]
    assert several
    assert {each["allValue"] for each in several} == {".*"}


@pytest.mark.parametrize("name", NAMES)
def test_panels_lie_side_by_side_within_the_grid(name: str) -> None:
    every = dashboards()[name]["panels"]
    assert len({panel["id"] for panel in every}) == len(every)
    places = [panel["gridPos"] for panel in every]
    assert all(place["x"] >= 0 and place["x"] + place["w"] <= 24 for place in places)
    for one, other in combinations(places, 2):
        is_apart_x = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        is_apart_y = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert is_apart_x or is_apart_y, (one, other)


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_to_the_other_dashboards(name: str) -> None:
    others = {f"/d/{each['uid']}" for file, each in dashboards().items() if file != name}
    assert {link["url"] for link in dashboards()[name]["links"]} == others


@pytest.mark.parametrize("panel", PANELS)
def test_a_panel_says_what_it_shows_in_which_unit_and_what_to_do(panel: dict[str, Any]) -> None:
    about = panel["description"]
    assert len(about.split()) >= 15
    defaults = panel["fieldConfig"]["defaults"]
    assert defaults["unit"] in UNITS
    steps = [step["value"] for step in defaults["thresholds"]["steps"]]
    assert steps[0] is None
    assert steps[1:] == sorted(steps[1:])
    letters = [target["refId"] for target in panel["targets"]]
    assert len(set(letters)) == len(letters) > 0
    legends = [target["legendFormat"] for target in panel["targets"]]
    assert all(legends)
    assert len(set(legends)) == len(legends)


@pytest.mark.parametrize("panel", PANELS)
def test_a_panel_refers_to_alerts_and_panels_that_exist(panel: dict[str, Any]) -> None:
    about = panel["description"]
    assert {*re.findall(r"\bQuota[A-Z]\w+", about)} <= {rule["alert"] for rule in alerts()}
    titles = {each["title"] for document in dashboards().values() for each in [document, *panels(document)]}
    quoted = re.findall(r"(?<!\w)'([A-Z][^']+)'", about)
    assert set(quoted) <= titles


@pytest.mark.parametrize("panel", TABLES)
def test_a_table_is_merged_by_what_its_queries_share(panel: dict[str, Any]) -> None:
    merge, organize = panel["transformations"]
    assert merge["id"] == "merge"
    headings = [target["legendFormat"] for target in panel["targets"]]
    assert list(organize["options"]["renameByName"].values()) == headings
    units = {each["matcher"]["options"] for each in panel["fieldConfig"]["overrides"]}
    assert units <= set(headings)
