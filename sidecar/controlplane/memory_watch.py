"""Watches what the ledger takes of Valkey's memory, by kind of data, and removes functions that no release needs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Final

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from sidecar.basics.cancellation import notice_cancellation
from sidecar.basics.clock import Clock, SystemClock
from sidecar.basics.fault_reasons import reason_of
from sidecar.basics.logger import get_logger
from sidecar.ledger.keys import Keys
from sidecar.ledger.verification.memory_use import MemoryReport, drop_old_functions, memory_report
from sidecar.valkey.topology import CLIENT_ERRORS, Client

log = get_logger("sidecar.ledger")

INTERVAL_S: Final = 600.0
LOOKS_BETWEEN_CLEANINGS: Final = 144
"""A day."""


class MemoryWatch(Collector):
    """``run`` looks every ten minutes; the gauges are of the last look, and there are none before it."""

    def __init__(self, client: Client, keys: Keys, clock: Clock | None = None) -> None:
        self._client = client
        self._keys = keys
        self._clock = clock or SystemClock()
        self._report: MemoryReport | None = None

    def __repr__(self) -> str:
        return f"MemoryWatch({self._keys.prefix})"

    async def run(self, stop: asyncio.Event) -> None:
        """Until ``stop``, through every failure."""
        looks = 0
        while not stop.is_set():
            try:
                self._report = await memory_report(self._client, self._keys)
                for warning in self._report.warnings:
                    log.warning("memory of the ledger", problem=warning)
                looks += 1
                if looks % LOOKS_BETWEEN_CLEANINGS == 0:
                    # A gateway that still uses one loads it again with its next batch.
                    gone = {name for names in (await drop_old_functions(self._client)).values() for name in names}
                    if gone:
                        log.info("functions of other releases are removed", functions=sorted(gone))
            except CLIENT_ERRORS as error:
                log.warning("the ledger's memory cannot be measured", error=reason_of(error)[:200])
            notice_cancellation()
            await self._clock.wait(stop, INTERVAL_S)

    def collect(self) -> Iterator[Metric]:
        """For a ``prometheus_client`` registry."""
        if self._report is None:
            return
        sizes = GaugeMetricFamily(
            "sidecar_ledger_memory_bytes",
            "Valkey's memory by kind of data; of many things an estimate.",
            labels=["kind"],
        )
        counts = GaugeMetricFamily("sidecar_ledger_items", "How many there are of each kind of data.", labels=["kind"])
        for kind in self._report.kinds:
            sizes.add_metric([kind.kind], kind.size_bytes)
            counts.add_metric([kind.kind], kind.count)
        yield sizes
        yield counts
        used = GaugeMetricFamily(
            "sidecar_valkey_memory_bytes",
            "Memory that a server uses, and its maxmemory (0: none).",
            labels=["server", "what"],
        )
        for server in self._report.servers:
            used.add_metric([server.name, "used"], server.used_bytes)
            used.add_metric([server.name, "max"], server.max_bytes)
        yield used
