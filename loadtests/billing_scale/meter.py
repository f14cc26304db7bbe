"""Measures a piece of work of this process: time, memory, and what it asked of Lago, OpenMeter and Valkey."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from sidecar.valkey.topology import Client

OWN: Final = ("info", "client|setinfo", "client|setname", "hello", "ping")
"""Commands of the measurement, and of connections that are opened."""


@dataclass(slots=True)
class Phase:
    """What one phase cost. Memory in 10^6 bytes: at its end, how much more than at its start, and at most.

    ``lago`` by method and path. ``valkey``: commands by name, those inside scripts apart. ``found``: what the work says
    of itself.
    """

    name: str
    accounts: int
    seconds: float = 0.0
    cpu_s: float = 0.0
    memory_mb: float = 0.0
    memory_growth_mb: float = 0.0
    memory_peak_mb: float = 0.0
    lago_requests: int = 0
    lago: Mapping[str, int] = field(default_factory=dict)
    lago_mb: float = 0.0
    openmeter_queries: int = 0
    openmeter_mb: float = 0.0
    valkey_commands: int = 0
    valkey: Mapping[str, int] = field(default_factory=dict)
    valkey_mb: float = 0.0
    valkey_cpu_s: float = 0.0
    found: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Meter:
    """``stand_in_counts``: those of the stand-ins. ``requests``: the control plane's own count, by endpoint."""

    client: Client
    stand_in_counts: Callable[[], Awaitable[Mapping[str, int]]]
    requests: Callable[[], Mapping[str, int]]

    @asynccontextmanager
    async def measured(self, name: str, accounts: int) -> AsyncIterator[Phase]:
        """The figures are in the phase when the block is left."""
        phase = Phase(name, accounts)
        counts, requests = Counter(await self.stand_in_counts()), Counter(self.requests())
        commands, valkey = await self._commands(), await self._info()
        _forget_peak()
        before_mb = _status_mb("VmRSS")
        cpu_s, began_s = time.process_time(), time.perf_counter()
        yield phase
        phase.seconds, phase.cpu_s = time.perf_counter() - began_s, time.process_time() - cpu_s
        phase.memory_mb, phase.memory_peak_mb = _status_mb("VmRSS"), _status_mb("VmHWM")
        phase.memory_growth_mb = phase.memory_mb - before_mb
        used, made = Counter(await self.stand_in_counts()) - counts, Counter(self.requests()) - requests
        phase.lago, phase.lago_requests = dict(made.most_common()), made.total()
        phase.lago_mb = (used["lago bytes in"] + used["lago bytes out"]) / 1e6
        phase.openmeter_queries = used["openmeter requests"]
        phase.openmeter_mb = used["openmeter bytes in"] / 1e6
        run = await self._commands() - commands
        phase.valkey = dict(run.most_common())
        phase.valkey_commands = run.total()
        now = await self._info()
        bytes_of = "total_net_input_bytes", "total_net_output_bytes"
        phase.valkey_mb = sum(now[each] - valkey[each] for each in bytes_of) / 1e6
        phase.valkey_cpu_s = sum(now[each] - valkey[each] for each in ("used_cpu_user", "used_cpu_sys"))

    async def _commands(self) -> Counter[str]:
        stats = await self.client.info("commandstats")
        names = {name.removeprefix("cmdstat_"): values for name, values in stats.items()}
        return Counter({name: int(values["calls"]) for name, values in names.items() if name not in OWN})

    async def _info(self) -> dict[str, float]:
        return {**await self.client.info("stats"), **await self.client.info("cpu")}


def _status_mb(name: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024 / 1e6
    return 0.0


def _forget_peak() -> None:
    """Linux counts the peak, VmHWM, anew from here (proc(5), clear_refs)."""
    Path("/proc/self/clear_refs").write_text("5")
