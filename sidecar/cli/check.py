"""``sidecar check``: validate a configuration, connect to everything that it names, report."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from sidecar.app import logs
from sidecar.app.configuration import Config, load_config
from sidecar.cli.checks import ledger, local, openmeter, services, spellings
from sidecar.cli.checks.finding import Check, Finding, attempt
from sidecar.cli.output import ConfigOption, JsonOption, console, print_json, run_async

CHECKS: dict[str, Check] = {
    "files": local.files,
    "descriptors": local.descriptors,
    "trusted_peers": local.trust,
    "routes": spellings.routes,
    "valkey": ledger.ledger,
    "upstream": services.upstream,
    "identity": services.key_sets,
    "openmeter": openmeter.openmeter,
    "lago": services.lago,
}
_MARKS = {True: "[green]ok[/green]     ", False: "[red]failed[/red] ", None: "[yellow]warning[/yellow]"}


def register(app: typer.Typer) -> None:
    app.command()(check)


def check(
    config: ConfigOption = None,
    probe: Annotated[
        bool,
        typer.Option(
            "--probe",
            help="Also send OpenMeter an event twice and see how often it counts. This writes: some 600 events of type "
            "quota-sidecar.probe, and a meter quota_sidecar_probe that is deleted again.",
        ),
    ] = False,
    json: JsonOption = False,
) -> None:
    """Check a configuration and everything that it names.

    This reads the file, connects to Valkey, the API, OpenMeter, Lago and token issuers, and reports what it finds. It
    changes nothing, unless you ask for [bold]--probe[/bold].

    Example: [bold]sidecar check -c gateway.yaml[/bold]
    """
    loaded = load_config(config, os.environ)
    logs.configure("error", "console")  # what fails is in the report
    findings = [Finding("configuration", True, "valid"), *run_async(_check(loaded, probe=probe))]
    failed = any(finding.ok is False for finding in findings)
    if json:
        print_json({"ok": not failed, "findings": findings})
    else:
        for finding in findings:
            detail = finding.detail.replace("[", "\\[")
            console().print(f"{_MARKS[finding.ok]}  {finding.what}: {detail}", soft_wrap=True)
    raise typer.Exit(1 if failed else 0)


async def _check(config: Config, *, probe: bool) -> list[Finding]:
    findings: list[Finding] = []
    for what, step in CHECKS.items():
        findings += await attempt(what, step, config)
    if probe:
        findings += await attempt("openmeter dedupe", openmeter.dedupe, config, openmeter.PROBE_TIMEOUT_S)
    return findings
