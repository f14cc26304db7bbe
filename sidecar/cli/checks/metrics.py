"""Metrics that routes charge, beside those that have a price."""

from __future__ import annotations

import difflib
from collections.abc import Collection

from sidecar.app.configuration import Config
from sidecar.cli.checks.finding import Finding


def charged_metrics(config: Config) -> dict[str, str]:
    """Metrics that routes charge, each with the key path of the first route that does."""
    found: dict[str, str] = {}
    for index, route in enumerate(config.routes):
        if not route.free:
            found.setdefault(route.metric, f"routes[{index}].metric")
    default = config.default_route
    if not isinstance(default, str) and not default.free:
        found.setdefault(default.metric, "default_route.metric")
    return found


def unpriced(config: Config, priced: Collection[str], whose: str) -> list[Finding]:
    """A finding for each metric that none of ``whose`` prices. One that is nearly the name of another is a slip."""
    findings = []
    for metric, setting in sorted(charged_metrics(config).items()):
        if metric in priced:
            continue
        near = difflib.get_close_matches(metric, sorted(priced), n=1, cutoff=0.7)
        detail = f"{setting}: {whose} a price for {metric}; the gateway refuses such calls with 403"
        findings.append(
            Finding(f"metric {metric}", False, f"{detail}; did you mean {near[0]}?") if near else
            Finding(f"metric {metric}", None, detail)
        )  # fmt: skip
    return findings
