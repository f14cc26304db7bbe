"""The ledger: Valkey, its settings, and the accounts in it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from sidecar.app import assemble
from sidecar.app.configuration import Config
from sidecar.basics.clock_reading import ClockReading
from sidecar.basics.fault_reasons import reason_of
from sidecar.cli.checks.clocks import clock
from sidecar.cli.checks.finding import Finding
from sidecar.cli.checks.metrics import unpriced
from sidecar.cli.words import count
from sidecar.ledger.keys import FORMAT
from sidecar.ledger.ledger_format import FormatError, find_ledger
from sidecar.ledger.store import Store, open_store
from sidecar.valkey.safeguards import missing_safeguards
from sidecar.valkey.server_time import server_now_ms
from sidecar.valkey.topology import CLIENT_ERRORS, Client
from sidecar.valkey.url import Cluster

FUNCTIONS_SINCE = 7
"""Of the version that a server calls itself by `redis_version`, the first with FCALL."""
ACCOUNTS_COUNTED_MAX = 1000
ACCOUNTS_READ_MAX = 200
"""Accounts of which the prices are looked at."""


async def ledger(config: Config) -> list[Finding]:
    async with open_store(config.valkey, assemble.keys(config), config.valkey_embedded.appendfsync) as store:
        try:
            findings = await _ledger(config, store)
        except CLIENT_ERRORS as error:
            # A Cluster of which one primary is away: its settings may be why the others refuse as well.
            findings = [Finding("valkey", False, reason_of(error))]
        return findings + await _safeguards(config, store)


async def _ledger(config: Config, store: Store) -> list[Finding]:
    began = time.perf_counter()
    await store.client.ping()
    elapsed_ms = (time.perf_counter() - began) * 1000
    format_finding = await _format(store, must_exist=config.ledger.expect == "existing")
    if format_finding.ok is False:
        return [Finding("valkey", True, f"{config.valkey} answers in {elapsed_ms:.1f} ms"), format_finding]
    accounts = await store.accounts.list("", ACCOUNTS_COUNTED_MAX)
    more = "more than " if len(accounts) == ACCOUNTS_COUNTED_MAX else ""
    number = more + count(len(accounts), "account")
    findings = [
        Finding("valkey", True, f"{config.valkey} answers in {elapsed_ms:.1f} ms; {number}"),
        format_finding,
    ]
    if not accounts:
        detail = "the ledger has no account; load some with `sidecar account load`"
        findings.append(Finding("accounts", None, detail))
    else:
        findings += unpriced(config, await _priced(store, accounts[:ACCOUNTS_READ_MAX]), "no account has")
    findings += await clock_findings(store)
    if not isinstance(config.valkey, Cluster):
        findings += await server_settings(store.client)
    return findings


async def clock_findings(store: Store) -> list[Finding]:
    """Of Valkey, whose time usage events bear."""
    sent_s = time.time()
    at_s = await server_now_ms(store.client) / 1000
    return clock("valkey clock", "Valkey's", ClockReading(sent_s, time.time(), at_s, at_s))


async def _safeguards(config: Config, store: Store) -> list[Finding]:
    try:
        problems = await missing_safeguards(store.client, config.valkey)
    except CLIENT_ERRORS:
        return []  # that it does not answer is said
    return [Finding("valkey safeguards", None, problem) for problem in problems]


async def _format(store: Store, *, must_exist: bool) -> Finding:
    """Whether this release and this configuration fit the ledger that is there."""
    try:
        found = await find_ledger(store.client, store.keys)
    except FormatError as error:
        return Finding("ledger format", False, str(error))
    if found is not None:
        return Finding("ledger format", True, f"format {FORMAT}, {store.keys.partitions} partitions")
    if must_exist:
        return Finding("ledger format", False, "there is no ledger, and ledger.expect is existing")
    return Finding("ledger format", None, "there is no ledger yet; the first process that starts makes one")


async def _priced(store: Store, accounts: Sequence[str]) -> set[str]:
    """Metrics for which one of the accounts has a price."""
    found = await asyncio.gather(*map(store.accounts.show, accounts))
    return {each.metric for account in found if account is not None for each in account.metrics if each.in_plan}


async def server_settings(client: Client) -> list[Finding]:
    """What the server's settings put at risk."""
    findings = []
    info: dict[str, Any] = await client.info()
    version = str(info.get("redis_version", ""))
    major = version.partition(".")[0]
    if major.isdecimal() and int(major) < FUNCTIONS_SINCE:
        findings.append(Finding("valkey version", False, f"{version} has no functions; use Valkey 7.2 or newer, or "
                                "Redis 7 or newer"))  # fmt: skip
    policy = str(info.get("maxmemory_policy", "noeviction"))
    if policy != "noeviction":
        findings.append(Finding("valkey maxmemory-policy", False, f"{policy}: the server may delete balances and "
                                "unsent events; set noeviction"))  # fmt: skip
    if not info.get("aof_enabled"):
        findings.append(Finding("valkey appendonly", None, "no: a restart of Valkey loses all debits since the "
                                "last snapshot; set appendonly yes"))  # fmt: skip
    return findings + [Finding("valkey writes", False, reason) for reason in _refused_writes(info)]


def _refused_writes(info: dict[str, Any]) -> list[str]:
    """Why this server takes no writes, from its INFO: without them there is no debit."""
    reasons = []
    if info.get("role") == "slave":
        reasons.append("this server is a replica and takes no writes; name the primary")
    if info.get("min_slaves_good_slaves") == 0:  # only there with min-replicas-to-write, which is then 1 at least
        reasons.append("the server takes no writes while no replica follows it (min-replicas-to-write)")
    if info.get("aof_last_write_status", "ok") != "ok":
        reasons.append("the server cannot write its append-only file; look at its disk")
    limit, used = int(info.get("maxmemory", 0)), int(info.get("used_memory", 0))
    if 0 < limit <= used:
        reasons.append(f"the server has no memory left: it uses {used} of {limit} bytes (maxmemory)")
    return reasons
