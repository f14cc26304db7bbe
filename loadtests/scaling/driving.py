"""One measurement: wrk drives one gateway or several at once, and every answer must have been debited."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from loadtests.kit import rig, wrk
from loadtests.kit.processes import RigError, cpu_s, resident_mb

SETTLE_S = 0.15
FIELDS = {"X-API-Key": rig.KEY, "User-Agent": "loadtest", "Accept": "*/*"}


@dataclass(frozen=True, slots=True)
class Traffic:
    """``connections`` in all; ``script`` and ``env`` as in `wrk.load`."""

    path: str = rig.CHARGED
    connections: int = 64
    script: Path = wrk.REPORT
    env: dict[str, str] | None = None
    fields: dict[str, str] | None = None


def send(gateways: Sequence[rig.GatewayProcess], traffic: Traffic, seconds: int) -> list[wrk.Load]:
    """Drives all gateways at the same time, each with its part of the connections.

    Raises:
        RigError: an answer was an error, or a connection broke.
    """
    part = traffic.connections // len(gateways) or 1

    def one(gateway: rig.GatewayProcess) -> wrk.Load:
        fields = FIELDS if traffic.fields is None else traffic.fields
        url = f"http://127.0.0.1:{gateway.port}{traffic.path}"
        return wrk.load(
            url, connections=part, seconds=seconds, fields=fields, script=traffic.script, env=traffic.env
        )  # fmt: skip

    with ThreadPoolExecutor(len(gateways)) as pool:
        loads = list(pool.map(one, gateways))
    for load in loads:
        if load.refused or load.broken:
            raise RigError(f"{load.refused} answers were errors, {load.broken} connections broke")
        if not load.answers:
            raise RigError("there was no answer at all")
    return loads


def drive(
    gateways: Sequence[rig.GatewayProcess], valkey_pid: int, traffic: Traffic, seconds: int, settled: Callable[[], int]
) -> dict[str, float]:
    """The usual figures. ``settled`` reads how many requests the ledger has charged so far.

    Raises:
        RigError: as `send`, or answers and debits differ.
    """
    time.sleep(SETTLE_S)  # what was sent before owes nothing more
    before = settled()
    pids = [gateway.pid for gateway in gateways]
    cpu, valkey_cpu = cpu_s(pids), cpu_s((valkey_pid,))
    loads = send(gateways, traffic, seconds)
    cpu, valkey_cpu = cpu_s(pids) - cpu, cpu_s((valkey_pid,)) - valkey_cpu
    time.sleep(SETTLE_S)
    answers = sum(load.answers for load in loads)
    debits = settled() - before
    # wrk cuts off what is under way when its time is over, at most one request a connection.
    if not answers <= debits <= answers + traffic.connections:
        raise RigError(f"{answers} answers, but {debits} debits")
    return {
        "requests": answers,
        "requests_per_s": sum(load.answers / load.seconds for load in loads),
        "cpu_us": cpu / answers * 1e6,
        "valkey_us": valkey_cpu / answers * 1e6,
        "p50_ms": median(load.p50_ms for load in loads),
        "p99_ms": max(load.p99_ms for load in loads),
        "memory_mb": resident_mb(pids),
    }
