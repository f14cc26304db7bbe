"""What can be seen on this machine: files, directories, and whom the configuration trusts."""

from __future__ import annotations

import os

from sidecar.app import assemble
from sidecar.app.configuration import Config, everybody
from sidecar.basics.errors import SetupError
from sidecar.cli.checks.finding import Finding
from sidecar.identity.build import build_chain
from sidecar.identity.types import IdentitySetupError


async def files(config: Config) -> list[Finding]:
    assemble.listen_tls(config)
    if config.upstream.url is not None:
        assemble.upstream_target(config)
    try:
        build_chain(config.identity, _NoKeys())
    except IdentitySetupError as error:
        raise SetupError(str(error)) from None
    spool = assemble.spool_settings(config)
    if spool is not None and not os.access(spool.directory.parent, os.W_OK):
        detail = f"ledger.open.spool_directory: this user may not write to {spool.directory.parent}"
        return [Finding("spool", False, detail)]
    return [Finding("files", True, "certificates and directories can be used")]


class _NoKeys:
    async def account_of(self, sha256_hex: str) -> str | None:
        return None


async def trust(config: Config) -> list[Finding]:
    """Everybody is trusted. With an identity from a header that is an error already."""
    return [
        Finding(f"trusted_peers[{index}]", None, f"{config.trusted_peers[index]} trusts every address: the gateway "
                "keeps X-Forwarded-For and the like from any client")
        for index in everybody(config.trusted_peers)
    ]  # fmt: skip
