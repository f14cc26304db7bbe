"""Before a process serves: does the ledger fit this release and this configuration, and is it the one that it was?"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final

from sidecar.app import assemble
from sidecar.app.configuration import Config
from sidecar.basics.cancellation import notice_cancellation
from sidecar.basics.logger import get_logger
from sidecar.ledger.known_generations import KnownGenerations, open_known_ledger
from sidecar.ledger.ledger_format import FormatError
from sidecar.valkey.topology import Client

log = get_logger("sidecar.ledger")

CHECK_AGAIN_S: Final = 2.0


async def check_ledger(config: Config, client: Client) -> bool:
    """Opens the ledger as the configuration says. A Valkey that cannot be reached is no reason not to start: then the
    answer is False, and it is to be checked later.

    Raises:
        FormatError: the ledger has another format or another number of partitions, is missing, or lost its data.
    """
    ledger = config.ledger
    known = KnownGenerations(Path(ledger.state_directory), ledger.prefix) if ledger.state_directory else None
    must_exist = ledger.expect == "existing"
    return await open_known_ledger(client, assemble.keys(config), must_exist=must_exist, known=known) is not None


async def check_ledger_later(config: Config, client: Client) -> None:
    """Goes on until the ledger could be checked. One that does not fit is an error in the log, again and again: it may
    be migrated while this process waits."""
    while True:
        await asyncio.sleep(CHECK_AGAIN_S)
        try:
            if await check_ledger(config, client):
                return
        except FormatError as error:
            log.error("the ledger cannot be used", error=str(error))
        notice_cancellation()
