"""Before a process serves: does the ledger fit this release and this configuration, and is it the one that it was?"""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Final

from sidecar.app import assemble
from sidecar.app.configuration import Config
from sidecar.basics.cancellation import notice_cancellation
from sidecar.basics.logger import get_logger
from sidecar.ledger.known_generations import KnownGenerations, open_known_ledger
from sidecar.ledger.ledger_format import FormatError, LedgerFormat
from sidecar.valkey.deadlines import with_deadline
from sidecar.valkey.safeguards import missing_safeguards
from sidecar.valkey.topology import CLIENT_ERRORS, Client

log = get_logger("sidecar.ledger")

CHECK_AGAIN_S: Final = 2.0
SAFEGUARDS_TIMEOUT_S: Final = 2.0


async def check_ledger(config: Config, client: Client) -> bool:
    """Opens the ledger as the configuration says. A Valkey that cannot be reached, or a part of it, is no reason not to
    start: then the answer is False, and it is to be checked later.

    Raises:
        FormatError: the ledger has another format or another number of partitions, is missing, or lost its data.
    """
    found = await _open(config, client)
    await _warn_of_missing_safeguards(config, client)
    return found is not None and not found.unreached


async def _open(config: Config, client: Client, *, again: bool = False) -> LedgerFormat | None:
    ledger = config.ledger
    known = KnownGenerations(Path(ledger.state_directory), ledger.prefix) if ledger.state_directory else None
    must_exist = ledger.expect == "existing"
    return await open_known_ledger(client, assemble.keys(config), must_exist=must_exist, known=known, again=again)


async def _warn_of_missing_safeguards(config: Config, client: Client) -> None:
    """One line for each setting of Valkey that a failover or an outage would be worse without. Whether Valkey answers
    is found out by others."""
    with contextlib.suppress(TimeoutError, *CLIENT_ERRORS):
        for problem in await with_deadline(SAFEGUARDS_TIMEOUT_S, missing_safeguards(client, config.valkey)):
            log.warning("Valkey is not set up to keep what it confirms", problem=problem)


async def check_ledger_later(config: Config, client: Client) -> None:
    """Goes on until the ledger could be checked. One that does not fit is an error in the log, again and again: it may
    be migrated while this process waits."""
    while True:
        await asyncio.sleep(CHECK_AGAIN_S)
        try:
            found = await _open(config, client, again=True)
            if found is not None and not found.unreached:
                log.info("the whole ledger can be reached")
                await _warn_of_missing_safeguards(config, client)
                return
        except FormatError as error:
            log.error("the ledger cannot be used", error=str(error))
        notice_cancellation()
