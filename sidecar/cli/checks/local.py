"""What can be seen on this machine: files, directories, and whom the configuration trusts."""

from __future__ import annotations

import os
from pathlib import Path

from sidecar.app import assemble
from sidecar.app.configuration import Config, everybody
from sidecar.basics.errors import SetupError
from sidecar.basics.fault_reasons import reason_of
from sidecar.cli.checks.finding import Finding
from sidecar.gateway.admission.descriptors import limit_after_raise
from sidecar.identity.build import build_chain
from sidecar.identity.types import IdentitySetupError
from sidecar.ledger.spool.journal import JournalError, dead_journals
from sidecar.ledger.spool.spool import NO_SPOOL


async def files(config: Config) -> list[Finding]:
    assemble.listen_tls(config)
    if config.upstream.url is not None:
        assemble.upstream_target(config)
    try:
        build_chain(config.identity, _NoKeys())
    except IdentitySetupError as error:
        raise SetupError(str(error)) from None
    found = [Finding("files", True, "certificates and directories can be used")]
    if config.upstream.url is None and not config.upstream.original_destination:
        return found  # a control plane has no charges that wait
    spool = assemble.spool_settings(config)
    if spool is None:
        return [*found, Finding("spool", None, NO_SPOOL)]
    if why := _unusable(spool.directory):
        name = (
            "the default spool directory, which a gateway goes without"
            if spool.is_default
            else "ledger.spool_directory"
        )
        return [*found, Finding("spool", None if spool.is_default else False, f"{name}: {why}")]
    return found


def _unusable(directory: Path) -> str:
    """Why a gateway could not keep charges there; "" if it could."""
    if not directory.exists():
        parent = next(each for each in directory.parents if each.exists())
        return "" if os.access(parent, os.W_OK) else f"this user may not write to {parent}"
    try:
        dead_journals(directory)
    except (JournalError, OSError) as error:
        return reason_of(error)
    return "" if os.access(directory, os.W_OK) else f"this user may not write to {directory}"


class _NoKeys:
    async def account_of(self, sha256_hex: str) -> str | None:
        return None


async def descriptors(config: Config) -> list[Finding]:
    """The limits of connections need more file descriptors than a process of this machine may have."""
    if config.upstream.url is None and not config.upstream.original_destination:
        return []
    limit = limit_after_raise()
    room = assemble.allotment(config, limit)
    lower = [
        f"{name} is {there} instead of {wanted}"
        for name, there, wanted in (
            ("limits.connections_max", room.connections, config.limits.connections_max),
            ("upstream.connections_max", room.upstream, config.upstream.connections_max),
        )
        if there < wanted
    ]
    if not lower:
        return []
    detail = f"a process here may have {limit} (RLIMIT_NOFILE, the hard limit): {' and '.join(lower)}"
    return [Finding("file descriptors", None, detail)]


async def trust(config: Config) -> list[Finding]:
    """Everybody is trusted. With an identity from a header that is an error already."""
    return [
        Finding(f"trusted_peers[{index}]", None, f"{config.trusted_peers[index]} trusts every address: the gateway "
                "keeps X-Forwarded-For and the like from any client")
        for index in everybody(config.trusted_peers)
    ]  # fmt: skip
