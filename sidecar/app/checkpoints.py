"""The loop of signed checkpoints. Apart from ``assemble``, since gateways need no signatures."""

from __future__ import annotations

from sidecar.app.configuration import Config
from sidecar.basics.errors import SetupError
from sidecar.basics.fault_reasons import reason_of
from sidecar.controlplane.checkpoint_loop import CheckpointLoop
from sidecar.ledger.proof.checkpoint import CheckpointError, private_key
from sidecar.ledger.store import Store
from sidecar.metering.proof.checkpoint_writing import CheckpointWriter
from sidecar.metering.proof.ledger_books import LedgerBooks


def checkpoint_loop(config: Config, store: Store) -> CheckpointLoop | None:
    """None without a key or an archive. Raises `SetupError`: the key cannot be read."""
    file, where = config.audit.signing_key_file, config.metering.archive.directory
    if file is None:
        return None
    if where is None:
        raise SetupError("audit.signing_key_file needs metering.archive.directory: checkpoints are written there")
    try:
        key = private_key(file.read_bytes())
    except (OSError, CheckpointError) as error:
        raise SetupError(f"audit.signing_key_file {file}: {reason_of(error)}") from None
    writer = CheckpointWriter(LedgerBooks(store.client, store.keys), where, key)
    return CheckpointLoop(store, writer, config.audit.checkpoint_interval_s)
