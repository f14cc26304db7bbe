"""Before a process serves: does the ledger fit this release and this configuration, and is it the one that it was?"""

from __future__ import annotations

from pathlib import Path

from sidecar.app.configuration import Config
from sidecar.ledger.known_generations import KnownGenerations, open_known_ledger
from sidecar.ledger.store import Store


async def check_ledger(config: Config, store: Store) -> None:
    """Opens the ledger as the configuration says. A Valkey that cannot be reached is no reason not to start.

    Raises:
        SetupError: the ledger has another format or another number of partitions, is missing, or lost its data.
    """
    ledger = config.ledger
    known = KnownGenerations(Path(ledger.state_directory), ledger.prefix) if ledger.state_directory else None
    await open_known_ledger(store.client, store.keys, must_exist=ledger.expect == "existing", known=known)
