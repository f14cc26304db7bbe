"""One measurement of one contender, with the check that it did the work."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

from loadtests.compare.contenders import Contender
from loadtests.kit import rig, wrk
from loadtests.kit.processes import RigError, cpu_s, resident_mb

WARM_UP_S = 1


@dataclass(frozen=True, slots=True)
class Measurement:
    """CPU in microseconds a request, of the contender's processes and of Valkey; memory of the former in 10^6 bytes."""

    requests: int
    requests_per_s: float
    cpu_us: float
    valkey_us: float
    p50_ms: float
    p99_ms: float
    memory_mb: float


def measure(contender: Contender, valkey_pid: int, connections: int, seconds: int) -> Measurement:
    """Drives the contender and reads its meters.

    Raises:
        RigError: an answer was not 200, or not every request was debited exactly once.
    """
    contender.prepare()
    fields = {"X-API-Key": rig.KEY, "User-Agent": "loadtest", "Accept": "*/*"}
    wrk.load(contender.url, connections=connections, seconds=WARM_UP_S, fields=fields)
    _settle_down()
    contender.prepare()
    debited = contender.debits() if contender.debits else 0
    scraper = threading.Timer(seconds / 2, contender.during)
    scraper.start()
    cpu, valkey_cpu = cpu_s(contender.pids), cpu_s((valkey_pid,))
    load = wrk.load(contender.url, connections=connections, seconds=seconds, fields=fields)
    cpu, valkey_cpu = cpu_s(contender.pids) - cpu, cpu_s((valkey_pid,)) - valkey_cpu
    scraper.join()
    if load.refused or load.broken:
        raise RigError(f"{contender.name}: {load.refused} answers were errors, {load.broken} connections broke")
    _settle_down()
    # wrk cuts off what is under way when its time is over, at most one request a connection.
    for what, read, before in (("debits", contender.debits, debited), ("usage events", contender.events, 0)):
        if read is not None:
            done = read() - before
            if not load.answers <= done <= load.answers + connections:
                raise RigError(f"{contender.name}: {load.answers} answers, but {done} {what}")
    return Measurement(
        load.answers, load.answers / load.seconds, cpu / load.answers * 1e6, valkey_cpu / load.answers * 1e6,
        load.p50_ms, load.p99_ms, resident_mb(contender.pids),
    )  # fmt: skip


def _settle_down() -> None:
    """What was under way ends, and what it owes to the ledger is written."""
    time.sleep(0.15)
