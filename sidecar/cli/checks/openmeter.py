"""OpenMeter as the control plane reaches it: its answers, its meters, its version, its clock, its deduplication."""

from __future__ import annotations

import time
from collections.abc import Mapping

from sidecar.app.configuration import Config
from sidecar.billing.catalog.compare import counts_later, instant
from sidecar.billing.catalog.values import meter_of
from sidecar.cli.checks.clocks import clock
from sidecar.cli.checks.finding import TIMEOUT_S, Finding, absent_file
from sidecar.cli.checks.metrics import charged_metrics
from sidecar.metering.dedupe_probe import SLUG, VISIBLE_S, Dedupe, ProbeError, probe_dedupe
from sidecar.metering.openmeter.access import MeteringError
from sidecar.metering.openmeter.meter_query import Meter, MeterQuery, QueryError
from sidecar.metering.openmeter.query_rows import GROUP_KEY

SECONDS_SINCE = "2025-03-06"
"""The first version of OpenMeter whose queries begin and end at any second."""
PROBE_TIMEOUT_S = VISIBLE_S + 30
"""The probe's own limit, and some for the requests before and after."""
_ANEW = "OpenMeter cannot change this of a meter: delete it and run `sidecar catalog apply`"


async def openmeter(config: Config) -> list[Finding]:
    """Whether OpenMeter answers, and counts what the gateway sends."""
    settings = config.metering
    if settings.url is None:
        return [Finding("openmeter", None, "metering.url is not set; usage events stay in the outbox")]
    if absent := _absent_file(config):
        return [Finding("openmeter", None, absent)]
    timeout_ms = min(settings.query_timeout_ms, round(TIMEOUT_S * 1000))
    try:
        async with MeterQuery(settings.model_copy(update={"query_timeout_ms": timeout_ms})) as query:
            meters = {meter.slug: meter for meter in await query.meters()}
            findings = [Finding("openmeter", True, f"{settings.url} answers; meters: {', '.join(meters) or 'none'}")]
            findings += clock("openmeter clock", "OpenMeter's", query.last_date)
            findings += meter_findings(config, meters, time.time_ns() // 1_000_000)
            return findings + await _version(query, meters)
    except MeteringError as error:
        return [Finding("openmeter", False, str(error))]
    except QueryError as error:
        return [Finding("openmeter", False, f"metering.url: {settings.url}: {error}")]


def _absent_file(config: Config) -> str | None:
    settings = config.metering
    return absent_file(config, {"metering.token_file": settings.token_file, "metering.ca_file": settings.ca_file})


def meter_findings(config: Config, meters: Mapping[str, Meter], now_ms: int) -> list[Finding]:
    """What is wrong with the meters of the metrics that routes charge."""
    wanted = sorted(charged_metrics(config))
    missing = [metric for metric in wanted if metric not in meters]
    findings = []
    if missing:
        findings.append(Finding("openmeter meters", None, f"there is no meter for {', '.join(missing)}"))
    for metric in wanted:
        if metric in meters:
            target = meter_of(metric, config.metering.type)
            faults = _faults(target, meters[metric], now_ms)
            findings += [Finding(f"openmeter meter {metric}", ok, fault) for ok, fault in faults]
    return findings


def _faults(wanted: Meter, found: Meter, now_ms: int) -> list[tuple[bool | None, str]]:
    """Each with False where the meter counts other units than the gateway's, and None where statistics alone lack."""
    faults: list[tuple[bool | None, str]] = []
    for name, there, needed in (
        ("eventType", found.event_type, wanted.event_type),
        ("aggregation", found.aggregation, wanted.aggregation),
        ("valueProperty", found.value_property, wanted.value_property),
    ):
        if there != needed:
            faults.append((False, f"{name} is {there or 'not set'} instead of {needed}; {_ANEW}"))
    if counts_later(found, now_ms):
        faults.append((False, f"eventFrom is {instant(found.event_from_ms)}: no event of before counts; {_ANEW}"))
    for group, path in wanted.group_by.items():
        there = found.group_by.get(group)
        if there == path or (there is None and group != GROUP_KEY):
            continue
        detail = f"groupBy {group} is {there or 'not set'} instead of {path} (paths begin at an event's data)"
        detail += ": it counts nothing" if group == GROUP_KEY else ""
        faults.append((False if group == GROUP_KEY else None, f"{detail}; `sidecar catalog apply` changes it"))
    return faults


async def _version(query: MeterQuery, meters: Mapping[str, Meter]) -> list[Finding]:
    """OpenMeter says no version. What it refuses tells one apart."""
    if not meters:
        return []
    try:
        if await query.takes_seconds(next(iter(meters)), time.time_ns() // 1_000_000):
            return []
    except QueryError as error:
        return [Finding("openmeter version", None, f"it cannot be told: {error}")]
    detail = f"older than {SECONDS_SINCE}: it refuses queries that begin within a minute, as periods of accounts can"
    return [Finding("openmeter version", False, f"{detail}; use a newer one")]


async def dedupe(config: Config) -> list[Finding]:
    """Sends an event twice, to a meter that it makes for that and deletes again."""
    if config.metering.url is None:
        return [Finding("openmeter dedupe", None, "metering.url is not set; there is nothing to probe")]
    if absent := _absent_file(config):
        return [Finding("openmeter dedupe", None, absent)]
    try:
        outcome = await probe_dedupe(config.metering)
    except (MeteringError, QueryError, ProbeError) as error:
        return [Finding("openmeter dedupe", False, str(error))]
    findings = [Finding("openmeter dedupe", outcome.dedupe is Dedupe.ONCE, _VERDICTS[outcome.dedupe])]
    if outcome.left_behind:
        findings.append(Finding("openmeter probe", None, f"delete meter {SLUG} by hand: {outcome.left_behind}"))
    return findings


_VERDICTS = {
    Dedupe.ONCE: "an event that is sent twice is counted once",
    Dedupe.TWICE: "an event that is sent twice is counted twice: set sink.dedupe.enabled and driver redis in OpenMeter",
    Dedupe.NOT_VISIBLE: f"not visible after {VISIBLE_S:g} s: OpenMeter takes events and does not count them by then",
}
