"""Signed checkpoints of the books: at the start, and then at intervals, by the control plane that leads."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from typing import Final

from sidecar.basics.clock import Clock, SystemClock
from sidecar.basics.fault_reasons import reason_of
from sidecar.basics.logger import get_logger
from sidecar.ledger.store import Store
from sidecar.metering.archive.archive_place import ArchiveError
from sidecar.metering.proof.checkpoint_writing import CheckpointWriter
from sidecar.valkey.lease import Lease, lead
from sidecar.valkey.topology import CLIENT_ERRORS

log = get_logger("sidecar.audit")

LEASE_TTL_MS: Final = 15_000
RETRY_S: Final = 30.0


class CheckpointLoop:
    """``await run(stop)``. Several control planes sign in turn, one at a time."""

    def __init__(
        self, store: Store, writer: CheckpointWriter, interval_s: float, *, clock: Clock | None = None,
        retry_s: float = RETRY_S,
    ) -> None:  # fmt: skip
        name = f"{socket.gethostname()[:64]}-{os.getpid()}-{secrets.token_hex(4)}"
        self.lease = Lease(store.client, store.keys.lease("checkpoints"), name, LEASE_TTL_MS)
        self.written = 0
        self._writer = writer
        self._interval_s = interval_s
        self._retry_s = retry_s
        self._clock = clock or SystemClock()

    def __repr__(self) -> str:
        return f"CheckpointLoop({self._writer!r}, {self.written} written)"

    async def run(self, stop: asyncio.Event) -> None:
        """Until ``stop``."""
        await lead(self.lease, lambda _token: self._lead(stop), stop)

    async def _lead(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            wait_s = self._interval_s
            try:
                await self._writer.write()
                self.written += 1
            except (ArchiveError, *CLIENT_ERRORS) as error:
                log.error("no checkpoint of the books could be written", reason=reason_of(error))
                wait_s = self._retry_s
            await self._clock.wait(stop, wait_s)
