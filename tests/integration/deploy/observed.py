"""What is checked in for Prometheus and Grafana, and every expression in it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

DEPLOY = Path(__file__).parents[3] / "deploy"
CHART = DEPLOY / "chart" / "quota-sidecar"
RULES = CHART / "alerts" / "rules.yaml"

_GRAFANA = {"$__rate_interval": "5m", "$__range": "6h", "$__interval": "30s"}
_VARIABLE = re.compile(r"\$\{?(\w+)\}?")
_LEGEND = re.compile(r"\{\{\s*(\w+)\s*\}\}")
_ALERT_LABEL = re.compile(r"\$labels\.(\w+)")
_LABEL_VALUES = re.compile(r"label_values\((?P<selector>.*), *(?P<label>\w+)\)")


@dataclass(frozen=True, slots=True)
class Expression:
    """``uses``: labels that legends, columns and annotations take from the result. ``record``: what it is stored as."""

    where: str
    text: str
    uses: frozenset[str] = frozenset()
    record: str | None = None


@cache
def dashboards() -> dict[str, dict[str, Any]]:
    """By file name."""
    return {path.name: json.loads(path.read_text()) for path in sorted((CHART / "dashboards").glob("*.json"))}


def panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    """All that show something."""
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def variables(dashboard: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """By name."""
    return {variable["name"]: variable for variable in dashboard["templating"]["list"]}


@cache
def rules() -> list[dict[str, Any]]:
    """Of all groups, in order."""
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def alerts() -> list[dict[str, Any]]:
    return [rule for rule in rules() if "alert" in rule]


def expressions() -> Iterator[Expression]:
    """Of rules, in order, then of dashboards with Grafana's intervals filled in."""
    for rule in rules():
        name = rule.get("alert") or rule["record"]
        used = frozenset(_ALERT_LABEL.findall(" ".join(rule.get("annotations", {}).values())))
        yield Expression(name, rule["expr"], used, rule.get("record"))
    for file, dashboard in dashboards().items():
        yield from _of_dashboard(file, dashboard)


def _of_dashboard(file: str, dashboard: dict[str, Any]) -> Iterator[Expression]:
    for variable in variables(dashboard).values():
        if variable["type"] == "query":
            found = _LABEL_VALUES.fullmatch(variable["query"]["query"])
            assert found is not None, variable["query"]
            yield Expression(f"{file}: ${variable['name']}", found["selector"], frozenset({found["label"]}))
    for panel in panels(dashboard):
        columns = frozenset[str]()
        for step in panel.get("transformations", ()):
            names = step["options"].get("indexByName", {})
            columns |= {name for name in names if not name.startswith("Value")}
        for target in panel["targets"]:
            legend = frozenset() if panel["type"] == "table" else frozenset(_LEGEND.findall(target["legendFormat"]))
            yield Expression(f"{file}: {panel['title']}", filled(target["expr"]), legend | columns)


def filled(text: str) -> str:
    """With an interval for each of Grafana's, which are not PromQL."""
    for name, interval in _GRAFANA.items():
        text = text.replace(name, interval)
    return text


def variables_used(dashboard: dict[str, Any]) -> set[str]:
    """Names of variables, without Grafana's own, that expressions and queries of variables refer to."""
    texts = [target["expr"] for panel in panels(dashboard) for target in panel["targets"]]
    texts += [each["query"]["query"] for each in variables(dashboard).values() if each["type"] == "query"]
    texts.append(json.dumps([panel["datasource"] for panel in panels(dashboard)]))
    return {name for text in texts for name in _VARIABLE.findall(text) if not name.startswith("__")}
