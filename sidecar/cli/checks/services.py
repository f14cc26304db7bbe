"""What the gateway and the control plane connect to besides the ledger."""

from __future__ import annotations

import asyncio
import time

from sidecar.app import assemble
from sidecar.app.configuration import Config
from sidecar.basics.fault_reasons import reason_of
from sidecar.billing.lago.client import LagoClient
from sidecar.billing.lago.errors import LagoError, LagoSetupError, LagoTooOld, LagoUnauthorized
from sidecar.billing.lago.versions import OLDEST_TEXT, check_version, is_known
from sidecar.cli.checks.billable_metrics import billable_metrics
from sidecar.cli.checks.finding import TIMEOUT_S, Finding, absent_file
from sidecar.cli.words import count
from sidecar.gateway.settings import UpstreamTlsSettings
from sidecar.identity.settings import JwtSettings


async def upstream(config: Config) -> list[Finding]:
    if config.upstream.original_destination:
        detail = "requests go to the address that each client asked for (upstream.original_destination)"
        return [Finding("upstream", None, detail)]
    if config.upstream.url is None:
        return [Finding("upstream", None, "upstream.url is not set; a gateway needs it, a control plane does not")]
    findings = [await _reached(config.upstream.url, config.upstream.tls, "upstream.url")]
    for index, listener in enumerate(config.listeners):
        findings.append(await _reached(listener.upstream, UpstreamTlsSettings(), f"listeners[{index}].upstream"))
    return findings


async def _reached(url: str, tls: UpstreamTlsSettings, setting: str) -> Finding:
    target = assemble.target_of(url, tls)
    began = time.perf_counter()
    try:
        async with asyncio.timeout(TIMEOUT_S):
            if target.path is not None:
                _, writer = await asyncio.open_unix_connection(target.path)
            else:
                _, writer = await asyncio.open_connection(
                    target.host, target.port, ssl=target.tls,
                    server_hostname=target.server_hostname if target.tls else None,
                )  # fmt: skip
    except OSError as error:
        where = target.path or f"{target.host}:{target.port}"
        return Finding("upstream", False, f"{setting}: {where}: {reason_of(error)}")
    writer.close()
    elapsed_ms = (time.perf_counter() - began) * 1000
    return Finding("upstream", True, f"{url} accepts connections ({elapsed_ms:.1f} ms)")


async def key_sets(config: Config) -> list[Finding]:
    """The issuers' keys, which tokens are verified against."""
    findings = []
    for index, resolver in enumerate(config.identity):
        if isinstance(resolver, JwtSettings) and resolver.jwks_url is not None:
            findings.append(await _key_set(resolver, f"identity[{index}].jwks_url"))
    return findings


async def _key_set(settings: JwtSettings, setting: str) -> Finding:
    from sidecar.identity.build import key_source  # as there: who verifies no tokens needs no cryptography
    from sidecar.identity.jwks import KeySetError, parse_key_set

    source = key_source(settings)
    try:
        keys = parse_key_set(await source.fetch())
    except KeySetError as error:
        return Finding("identity jwt", False, f"{setting}: {source.description}: {error}")
    finally:
        await source.close()
    return Finding("identity jwt", True, f"{source.description} has {count(len(keys.keys), 'key')}")


async def _version(client: LagoClient) -> Finding:
    """The version as Lago says it, and as an invoice shows it: what is in between may hide the first."""
    try:
        version = await client.version()
    except LagoError:
        version = ""
    try:
        check_version(version)
        invoice = await client.newest_invoice()
    except LagoTooOld as error:
        return Finding("lago version", False, str(error))
    if is_known(version):
        return Finding("lago version", True, f"{version}; the oldest that works is {OLDEST_TEXT}")
    if invoice is not None:
        return Finding("lago version", True, f"not told, but invoices are those of {OLDEST_TEXT} or later")
    return Finding(
        "lago version", None, f"not told, and there is no invoice yet; the oldest that works is {OLDEST_TEXT}"
    )


async def lago(config: Config) -> list[Finding]:
    settings = config.lago
    if settings.url is None:
        return [Finding("lago", None, "lago.url is not set; accounts come from files (`sidecar account load`)")]
    files = {"lago.api_key_file": settings.api_key_file, "lago.ca_file": settings.ca_file}
    if absent := absent_file(config, files):
        return [Finding("lago", None, absent)]
    try:
        return await _lago(config)
    except LagoSetupError as error:
        return [Finding("lago", False, str(error))]
    except LagoUnauthorized as error:
        setting = "lago.api_key" if settings.api_key is not None else "lago.api_key_file"
        refused = f"Lago refuses the API key ({error.status}): check {setting}"
        return [Finding("lago", False, f"lago.url: {settings.url}: {refused}")]
    except LagoError as error:
        return [Finding("lago", False, f"lago.url: {settings.url}: {error}")]


async def _lago(config: Config) -> list[Finding]:
    settings = config.lago
    async with LagoClient(settings) as client:
        customers = await client.customers(1, 1)
        number = count(customers.total_count or 0, "customer")
        findings = [Finding("lago", True, f"{settings.url} answers; {number}"), await _version(client)]
        findings += await billable_metrics(config, client)
        endpoints = [each for each in await client.webhook_endpoints() if each.url.endswith("/webhooks/lago")]
    webhooks = settings.webhooks
    accepted = {"hmac"} if webhooks.hmac_key or webhooks.hmac_key_file else set[str]()
    accepted |= {"jwt"} if webhooks.jwt else set[str]()
    if not accepted:
        detail = (
            "neither hmac_key nor jwt is set: the control plane sees a top-up at its next sweep, "
            f"up to {settings.reconcile.interval_s} s later"
        )
        findings.append(Finding("lago webhooks", None, detail))
    elif not endpoints:
        findings.append(Finding("lago webhooks", None, "Lago has no endpoint that ends with /webhooks/lago"))
    for endpoint in endpoints:
        if accepted and endpoint.signature not in accepted:
            findings.append(Finding("lago webhooks", False, f"Lago signs {endpoint.url} with {endpoint.signature}; the "
                                    f"configuration accepts {' and '.join(sorted(accepted))} only"))  # fmt: skip
    return findings
