"""What a dashboard is made of, and its JSON as Grafana 10 and later read it (schema version 39).

In expressions ``GATEWAY`` stands for the matchers that choose gateways, ``CONTROL`` for those that choose the control
plane, ``LEADER`` for "of the control plane that leads" and ``RATE`` for an interval that fits the panel.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

SCHEMA_VERSION: Final = 39
COLUMNS: Final = 24
TAGS: Final = ["quota-sidecar"]
SOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}

# Replaced in this order. A leader that has been replaced still shows what it saw last, hence LEADER.
_WORDS: Final = (
    ("LEADER", "and on (namespace, job, instance) (sidecar_control_leader{CONTROL} == 1)"),
    ("GATEWAY", 'namespace=~"$namespace",instance=~"$instance"'),
    ("CONTROL", 'namespace=~"$control"'),
    ("RATE", "$__rate_interval"),
)

Kind = Literal["timeseries", "stat", "table", "bargauge", "heatmap"]
Step = tuple[float | None, str]

GREEN: Final[tuple[Step, ...]] = ((None, "green"),)
BLUE: Final[tuple[Step, ...]] = ((None, "blue"),)


def above(orange: float | None, red: float | None = None) -> tuple[Step, ...]:
    """Green, orange from the one figure on, red from the other."""
    steps: list[Step] = [(None, "green")]
    steps += [(orange, "orange")] if orange is not None else []
    steps += [(red, "red")] if red is not None else []
    return tuple(steps)


def below(red: float, orange: float) -> tuple[Step, ...]:
    """Green; orange below the one figure, red below the other."""
    return ((None, "red"), (red, "orange"), (orange, "green"))


@dataclass(frozen=True, slots=True)
class Query:
    """``legend``: text with ``{{label}}``; in a table the heading of the column."""

    expr: str
    legend: str

    def text(self) -> str:
        """The expression, with Grafana's variables."""
        text = " ".join(self.expr.split())
        for word, meaning in _WORDS:
            text = text.replace(word, meaning)
        return text


def quantiles(metric: str) -> tuple[Query, ...]:
    """Median, 95th and 99th percentile of a gateway's histogram."""
    return tuple(
        Query(f"histogram_quantile({q}, sum by (le) (rate({metric}_bucket{{GATEWAY}}[RATE])))", legend)
        for q, legend in ((0.5, "p50"), (0.95, "p95"), (0.99, "p99"))
    )


@dataclass(frozen=True, slots=True)
class Panel:
    """``about``: what it shows, and what to do when it is bad. ``by``: the label of a table's rows.

    ``steps``: thresholds; drawn as lines in a time series if there is more than one. ``units``: of single columns of
    a table, by heading.
    """

    title: str
    about: str
    queries: tuple[Query, ...]
    unit: str = "short"
    kind: Kind = "timeseries"
    width: int = 8
    height: int = 8
    steps: tuple[Step, ...] = BLUE
    stacked: bool = False
    decimals: int | None = None
    maximum: float | None = None
    mappings: tuple[tuple[str, str, str], ...] = ()
    by: tuple[str, ...] = ()
    units: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Row:
    """A heading with its panels, from left to right, wrapped."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True)
class Variable:
    """A choice of label values, several or all. ``query`` as Grafana's ``label_values(…)``."""

    name: str
    label: str
    query: str
    about: str


@dataclass(frozen=True, slots=True)
class Dashboard:
    """``name``: of the file, and with ``quota-`` before it the uid, which links keep across imports."""

    name: str
    title: str
    about: str
    variables: tuple[Variable, ...]
    rows: tuple[Row, ...]
    since: str = "now-6h"

    @property
    def uid(self) -> str:
        return f"quota-{self.name}"


NAMESPACE: Final = Variable(
    "namespace", "Namespace", "label_values(sidecar_ledger_up, namespace)", "Namespaces of the gateways."
)
INSTANCE: Final = Variable(
    "instance",
    "Gateway",
    'label_values(sidecar_ledger_up{namespace=~"$namespace"}, instance)',
    "Gateways: one per pod.",
)
CONTROL: Final = Variable(
    "control",
    "Control plane",
    "label_values(sidecar_outbox_lag_events, namespace)",
    "Namespace of the control plane, which is one for many gateways.",
)


def as_json(dashboard: Dashboard, family: Sequence[Dashboard]) -> str:
    """The file's text. ``family``: all dashboards, for links among them."""
    document: dict[str, Any] = {
        "uid": dashboard.uid,
        "title": dashboard.title,
        "description": dashboard.about,
        "tags": TAGS,
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "timezone": "",
        "time": {"from": dashboard.since, "to": "now"},
        "annotations": {"list": []},
        "links": [_link(each) for each in family if each is not dashboard],
        "templating": {"list": [_datasource(), *map(_variable, dashboard.variables)]},
        "panels": _panels(dashboard.rows),
    }
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _link(to: Dashboard) -> dict[str, Any]:
    return {
        "title": to.title,
        "type": "link",
        "icon": "dashboard",
        "url": f"/d/{to.uid}",
        "tags": [],
        "tooltip": to.about,
        "asDropdown": False,
        "includeVars": True,
        "keepTime": True,
        "targetBlank": False,
    }


def _datasource() -> dict[str, Any]:
    return {
        "name": "datasource",
        "label": "Data source",
        "description": "The Prometheus that scrapes gateways and control plane.",
        "type": "datasource",
        "query": "prometheus",
        "refresh": 1,
        "regex": "",
        "hide": 0,
        "multi": False,
        "includeAll": False,
        "skipUrlSync": False,
        "options": [],
    }


def _variable(variable: Variable) -> dict[str, Any]:
    # "All" has to match series without the label too, as they are where nobody adds a namespace.
    return {
        "name": variable.name,
        "label": variable.label,
        "description": variable.about,
        "type": "query",
        "datasource": SOURCE,
        "query": {"qryType": 1, "query": variable.query, "refId": "PrometheusVariableQueryEditor-VariableQuery"},
        "refresh": 2,
        "regex": "",
        "sort": 1,
        "hide": 0,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        "skipUrlSync": False,
        "options": [],
    }


def _panels(rows: tuple[Row, ...]) -> list[dict[str, Any]]:
    panels: list[dict[str, Any]] = []
    y = 0
    for row in rows:
        place = {"x": 0, "y": y, "w": COLUMNS, "h": 1}
        panels.append(
            {
                "id": len(panels) + 1,
                "type": "row",
                "title": row.title,
                "collapsed": False,
                "gridPos": place,
                "panels": [],
            }
        )
        y += 1
        x = height = 0
        for panel in row.panels:
            if x + panel.width > COLUMNS:
                x, y, height = 0, y + height, 0
            place = {"x": x, "y": y, "w": panel.width, "h": panel.height}
            panels.append(_panel(panel, len(panels) + 1, place))
            x, height = x + panel.width, max(height, panel.height)
        y += height
    return panels


def _panel(panel: Panel, number: int, place: dict[str, int]) -> dict[str, Any]:
    document: dict[str, Any] = {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.about,
        "datasource": SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": _defaults(panel), "overrides": _overrides(panel)},
        "options": _OPTIONS[panel.kind],
        "targets": [_target(panel, query, chr(ord("A") + n)) for n, query in enumerate(panel.queries)],
    }
    if panel.kind == "table":
        document["transformations"] = _columns(panel)
    return document


def _target(panel: Panel, query: Query, letter: str) -> dict[str, Any]:
    instant = panel.kind in ("table", "bargauge")
    return {
        "refId": letter,
        "datasource": SOURCE,
        "editorMode": "code",
        "expr": query.text(),
        "legendFormat": query.legend,
        "format": {"table": "table", "heatmap": "heatmap"}.get(panel.kind, "time_series"),
        "instant": instant,
        "range": not instant,
    }


def _defaults(panel: Panel) -> dict[str, Any]:
    steps = [{"color": color, "value": value} for value, color in panel.steps]
    defaults: dict[str, Any] = {
        "unit": panel.unit,
        "color": {"mode": "palette-classic" if panel.kind == "timeseries" else "thresholds"},
        "thresholds": {"mode": "absolute", "steps": steps},
        "mappings": [
            {"type": "value", "options": {value: {"text": text, "color": color, "index": n}}}
            for n, (value, text, color) in enumerate(panel.mappings)
        ],
    }
    if panel.decimals is not None:
        defaults["decimals"] = panel.decimals
    if panel.maximum is not None:
        defaults["max"] = panel.maximum
    if panel.kind == "timeseries":
        defaults["min"] = 0
        defaults["custom"] = {
            "drawStyle": "line",
            "lineInterpolation": "linear",
            "lineWidth": 1,
            "fillOpacity": 30 if panel.stacked else 8,
            "showPoints": "never",
            "spanNulls": False,
            "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
            "thresholdsStyle": {"mode": "dashed" if len(panel.steps) > 1 else "off"},
        }
    return defaults


def _overrides(panel: Panel) -> list[dict[str, Any]]:
    return [
        {"matcher": {"id": "byName", "options": name}, "properties": [{"id": "unit", "value": unit}]}
        for name, unit in panel.units.items()
    ]


def _columns(panel: Panel) -> list[dict[str, Any]]:
    # With one query Grafana calls its value "Value", with more "Value #A" and so on.
    names = {
        f"Value #{chr(ord('A') + n)}" if len(panel.queries) > 1 else "Value": query.legend
        for n, query in enumerate(panel.queries)
    }
    return [
        {"id": "merge", "options": {}},
        {
            "id": "organize",
            "options": {
                "excludeByName": {"Time": True},
                "indexByName": {name: n for n, name in enumerate([*panel.by, *names])},
                "renameByName": names,
            },
        },
    ]


_CALCULATED: Final = {"calcs": ["lastNotNull"], "fields": "", "values": False}
_OPTIONS: Final[dict[Kind, dict[str, Any]]] = {
    "timeseries": {
        "legend": {"displayMode": "table", "placement": "bottom", "showLegend": True, "calcs": ["lastNotNull", "max"]},
        "tooltip": {"mode": "multi", "sort": "desc"},
    },
    "stat": {
        "reduceOptions": _CALCULATED,
        "colorMode": "value",
        "graphMode": "area",
        "justifyMode": "auto",
        "orientation": "auto",
        "textMode": "auto",
    },
    "table": {"showHeader": True, "cellHeight": "sm", "footer": {"show": False, "reducer": ["sum"]}},
    "bargauge": {
        "reduceOptions": _CALCULATED,
        "displayMode": "gradient",
        "orientation": "horizontal",
        "showUnfilled": True,
        "valueMode": "color",
    },
    "heatmap": {
        "calculate": False,
        "cellGap": 1,
        "color": {
            "mode": "scheme",
            "scheme": "Oranges",
            "exponent": 0.5,
            "steps": 64,
            "reverse": False,
            "fill": "dark-orange",
        },
        "yAxis": {"unit": "s", "axisPlacement": "left"},
        "legend": {"show": True},
        "tooltip": {"mode": "single", "yHistogram": False},
        "rowsFrame": {"layout": "auto"},
        "showValue": "never",
        "filterValues": {"le": 1e-9},
        "exemplars": {"color": "rgba(255,0,255,0.7)"},
    },
}
