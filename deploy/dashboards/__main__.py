"""Writes the dashboards into the chart."""

from __future__ import annotations

from pathlib import Path

from deploy.dashboards import api_overview, monetization, pipeline_health, tpp_analytics
from deploy.dashboards.model import Dashboard, as_json

DIRECTORY = Path(__file__).parents[1] / "chart" / "quota-sidecar" / "dashboards"

DASHBOARDS: tuple[Dashboard, ...] = (
    api_overview.DASHBOARD,
    tpp_analytics.DASHBOARD,
    monetization.DASHBOARD,
    pipeline_health.DASHBOARD,
)


def texts() -> dict[str, str]:
    """File name to content."""
    return {f"{each.name}.json": as_json(each, DASHBOARDS) for each in DASHBOARDS}


if __name__ == "__main__":
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    for name, text in texts().items():
        (DIRECTORY / name).write_text(text, encoding="utf-8")
