"""``sidecar check``: validate a configuration, connect to everything that it names, report."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import aiohttp
import typer

from sidecar.app import assemble
from sidecar.app.configuration import Config, load_config
from sidecar.basics.errors import SetupError
from sidecar.billing.lago.client import LagoClient
from sidecar.billing.usage_sync.billable_metrics import MetricRefused, field_of
from sidecar.cli.output import ConfigOption, JsonOption, console, print_json, run_async
from sidecar.gateway.settings import UpstreamTlsSettings
from sidecar.identity.build import build_chain
from sidecar.identity.types import IdentitySetupError
from sidecar.ledger.store import open_store
from sidecar.valkey.topology import Client
from sidecar.valkey.url import Cluster

TIMEOUT_S = 5.0
FUNCTIONS_SINCE = 7
"""Of the version that a server calls itself by `redis_version`, the first with FCALL."""


@dataclass(frozen=True, slots=True)
class Finding:
    """``ok`` is None for advice: it works, but may not be what is wanted."""

    what: str
    ok: bool | None
    detail: str


def register(app: typer.Typer) -> None:
    app.command()(check)


def check(config: ConfigOption = None, json: JsonOption = False) -> None:
    """Validate a configuration, connect to Valkey, the API, OpenMeter and Lago, and report. Changes nothing.

    Example: [bold]sidecar check -c gateway.yaml[/bold]
    """
    loaded = load_config(config, os.environ)
    findings = [Finding("configuration", True, "valid"), *run_async(_check(loaded))]
    failed = any(finding.ok is False for finding in findings)
    if json:
        print_json({"ok": not failed, "findings": findings})
    else:
        marks = {True: "[green]ok[/green]    ", False: "[red]failed[/red]", None: "[yellow]advice[/yellow]"}
        for finding in findings:
            detail = finding.detail.replace("[", "\\[")
            console().print(f"{marks[finding.ok]}  {finding.what}: {detail}", soft_wrap=True)
    raise typer.Exit(1 if failed else 0)


async def _check(config: Config) -> list[Finding]:
    findings: list[Finding] = []
    findings += await _attempt("files", _files, config)
    findings += await _attempt("valkey", _valkey, config)
    findings += await _attempt("upstream", _upstream, config)
    findings += await _attempt("openmeter", _openmeter, config)
    findings += await _attempt("lago", _lago, config)
    return findings


async def _attempt(what: str, step: Callable[[Config], Awaitable[list[Finding]]], config: Config) -> list[Finding]:
    try:
        async with asyncio.timeout(TIMEOUT_S * 2):
            return await step(config)
    except TimeoutError:
        return [Finding(what, False, f"no answer within {TIMEOUT_S * 2:g} s")]
    except Exception as error:  # whatever goes wrong in a check is its result
        return [Finding(what, False, str(error) or type(error).__name__)]


async def _files(config: Config) -> list[Finding]:
    assemble.listen_tls(config)
    if config.upstream.url is not None:
        assemble.upstream_target(config)
    try:
        build_chain(config.identity, _NoKeys())
    except IdentitySetupError as error:
        raise SetupError(str(error)) from None
    spool = assemble.spool_settings(config)
    if spool is not None and not os.access(spool.directory.parent, os.W_OK):
        return [Finding("spool", False, f"{spool.directory}: cannot be written")]
    return [Finding("files", True, "certificates and directories can be used")]


class _NoKeys:
    async def account_of(self, sha256_hex: str) -> str | None:
        return None


async def _valkey(config: Config) -> list[Finding]:
    async with open_store(config.valkey, assemble.keys(config), config.valkey_embedded.appendfsync) as store:
        began = time.perf_counter()
        await store.client.ping()
        elapsed_ms = (time.perf_counter() - began) * 1000
        accounts = await store.accounts.list("", 1000)
        number = f"{len(accounts)}{'+' if len(accounts) == 1000 else ''}"
        findings = [Finding("valkey", True, f"{config.valkey} answers in {elapsed_ms:.1f} ms; {number} accounts")]
        if not accounts:
            findings.append(Finding("accounts", None, "the ledger has none; load some with `sidecar account load`"))
        if not isinstance(config.valkey, Cluster):
            findings += await _valkey_settings(store.client)
        return findings


async def _valkey_settings(client: Client) -> list[Finding]:
    findings = []
    info: dict[str, Any] = await client.info()
    version = str(info.get("redis_version", ""))
    major = version.partition(".")[0]
    if major.isdecimal() and int(major) < FUNCTIONS_SINCE:
        findings.append(Finding("valkey version", False, f"{version}: the ledger is a function, which Valkey 7.2 and "
                                "Redis 7 have"))  # fmt: skip
    policy = str(info.get("maxmemory_policy", "noeviction"))
    if policy != "noeviction":
        findings.append(Finding("valkey maxmemory-policy", False, f"{policy}: balances and unsent events could be "
                                "evicted; set noeviction"))  # fmt: skip
    if not info.get("aof_enabled"):
        findings.append(Finding("valkey appendonly", None, "no: a restart of Valkey loses what was debited since the "
                                "last snapshot"))  # fmt: skip
    return findings + [Finding("valkey writes", False, reason) for reason in _refused_writes(info)]


def _refused_writes(info: dict[str, Any]) -> list[str]:
    """Why this server takes no writes, from its INFO: without them there is no debit."""
    reasons = []
    if info.get("role") == "slave":
        reasons.append("this is a replica, which takes none: name the primary")
    if info.get("min_slaves_good_slaves") == 0:  # only there with min-replicas-to-write, which is then 1 at least
        reasons.append("none are taken while no replica follows (min-replicas-to-write)")
    if info.get("aof_last_write_status", "ok") != "ok":
        reasons.append("the append-only file cannot be written: see the disk")
    limit, used = int(info.get("maxmemory", 0)), int(info.get("used_memory", 0))
    if 0 < limit <= used:
        reasons.append(f"its memory is used up: {used} of {limit} bytes (maxmemory)")
    return reasons


async def _upstream(config: Config) -> list[Finding]:
    if config.upstream.original_destination:
        return [Finding("upstream", None, "requests go where each client wanted to go (upstream.original_destination)")]
    if config.upstream.url is None:
        return [Finding("upstream", None, "upstream.url is not set; a gateway needs it, a control plane does not")]
    findings = [await _reached(config.upstream.url, config.upstream.tls)]
    return findings + [await _reached(listener.upstream, UpstreamTlsSettings()) for listener in config.listeners]


async def _reached(url: str, tls: UpstreamTlsSettings) -> Finding:
    target = assemble.target_of(url, tls)
    began = time.perf_counter()
    async with asyncio.timeout(TIMEOUT_S):
        if target.path is not None:
            _, writer = await asyncio.open_unix_connection(target.path)
        else:
            _, writer = await asyncio.open_connection(
                target.host, target.port, ssl=target.tls,
                server_hostname=target.server_hostname if target.tls else None,
            )  # fmt: skip
    writer.close()
    elapsed_ms = (time.perf_counter() - began) * 1000
    return Finding("upstream", True, f"{url} accepts connections ({elapsed_ms:.1f} ms)")


async def _openmeter(config: Config) -> list[Finding]:
    url = config.metering.url
    if url is None:
        return [Finding("openmeter", None, "metering.url is not set; usage events stay in the outbox")]
    headers = {"Authorization": f"Bearer {config.metering.token.get_secret_value()}"} if config.metering.token else {}
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    async with (
        aiohttp.ClientSession(timeout=timeout, headers=headers) as session,
        session.get(f"{url}/api/v1/meters") as response,
    ):
        if response.status != 200:
            return [Finding("openmeter", False, f"{url} answers {response.status} to GET /api/v1/meters")]
        meters = [str(meter.get("slug")) for meter in await response.json()]
    missing = sorted(_metrics(config) - set(meters))
    findings = [Finding("openmeter", True, f"{url} answers; meters: {', '.join(meters) or 'none'}")]
    if missing:
        findings.append(Finding("openmeter meters", None, f"there is no meter for {', '.join(missing)}"))
    return findings


def _metrics(config: Config) -> set[str]:
    """Metrics that routes charge."""
    wanted = {route.metric for route in config.routes if not route.free}
    if not isinstance(config.default_route, str) and not config.default_route.free:
        wanted.add(config.default_route.metric)
    return wanted


async def _lago(config: Config) -> list[Finding]:
    settings = config.lago
    if settings.url is None:
        return [Finding("lago", None, "lago.url is not set; accounts come from files (`sidecar account load`)")]
    proxies = config.upstream.url is not None or config.upstream.original_destination
    if proxies and settings.api_key_file is not None and not settings.api_key_file.exists():
        missing = f"lago.api_key_file: {settings.api_key_file} is not there"
        return [Finding("lago", None, f"{missing}; a control plane needs it, a gateway does not")]
    async with LagoClient(settings) as lago:
        customers = await lago.customers(1, 1)
        findings = [Finding("lago", True, f"{settings.url} answers; {customers.total_count} customers")]
        for code in sorted(_metrics(config)):
            try:
                field_of(code, await lago.metric(code))
            except MetricRefused as error:
                findings.append(Finding(f"lago metric {code}", False, str(error)))
        endpoints = [each for each in await lago.webhook_endpoints() if each.url.endswith("/webhooks/lago")]
    webhooks = settings.webhooks
    accepted = {"hmac"} if webhooks.hmac_key or webhooks.hmac_key_file else set[str]()
    accepted |= {"jwt"} if webhooks.jwt else set[str]()
    if not accepted:
        findings.append(Finding("lago webhooks", None, "neither hmac_key nor jwt is set: top-ups are seen at the next"
                                f" sweep, up to {settings.reconcile.interval_s} s later"))  # fmt: skip
    elif not endpoints:
        findings.append(Finding("lago webhooks", None, "Lago has no endpoint that ends with /webhooks/lago"))
    for endpoint in endpoints:
        if accepted and endpoint.signature not in accepted:
            findings.append(Finding("lago webhooks", False, f"{endpoint.url} is signed with {endpoint.signature}, and"
                                    f" only {' and '.join(sorted(accepted))} is accepted"))  # fmt: skip
    return findings
