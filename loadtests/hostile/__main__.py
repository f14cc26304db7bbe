"""Honest callers at a steady rate, alone and while others attack: ``python -m loadtests.hostile [ATTACK …]``.

The gateway has one core, everything else the other. Before each attack the honest callers are alone for as long, so
that both figures are of the same minute. Exit status 3 if a bar is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
import urllib.request
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import uvloop
from rich import box
from rich.console import Console
from rich.table import Table

from loadtests.hostile.attacks import ATTACKS, HOSTILE_KEY
from loadtests.hostile.honest import CALLERS, KEY_FORM, Honest, drive
from loadtests.kit import rig
from loadtests.kit.processes import RigError, resident_mb, running

MISSED: Final = 3
MEMORY_MIB_MAX: Final = 256
P99_RATIO_MAX: Final = 3.0
NOISE_MS: Final = 3.0
"""A p99 below it holds, whatever it was alone: three times a millisecond is noise of a shared machine."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """``alone`` and ``attacked``: median and p99 of honest callers, in ms."""

    attack: str
    asked: int
    good: int
    answers: dict[str, int]
    alone_p50_ms: float
    alone_p99_ms: float
    attacked_p50_ms: float
    attacked_p99_ms: float
    memory_mib: float
    hostile: dict[str, int]
    shed: dict[str, int]

    @property
    def ratio(self) -> float:
        return self.attacked_p99_ms / self.alone_p99_ms

    @property
    def holds(self) -> bool:
        in_time = self.ratio <= P99_RATIO_MAX or self.attacked_p99_ms <= NOISE_MS
        return self.good == self.asked and in_time and self.memory_mib <= MEMORY_MIB_MAX


def accounts(path: Path) -> Path:
    """Honest callers and a hostile one."""
    keys = {f"honest-{n}": KEY_FORM % n for n in range(CALLERS)} | {"hostile": HOSTILE_KEY}
    rows = [
        {
            "id": name, "mode": "prepaid", "currency": "GBP", "funds": "1000000000", "prices": rig.PRICES,
            "period": {"every": "month"}, "api_keys": [{"key": key}],
        }
        for name, key in keys.items()
    ]  # fmt: skip
    return rig.accounts_file(path, rows)


async def attacked(name: str, gateway: rig.GatewayProcess, options: argparse.Namespace) -> Outcome:
    """One attack, after a time without it."""
    alone = await drive(gateway.port, options.rate, options.seconds)
    before = sheds(gateway)
    arguments = (name, gateway.port, options.sockets, options.packets, options.seconds + options.lead)
    attacker = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "loadtests.hostile.attacks", *map(str, arguments), stdout=asyncio.subprocess.PIPE
    )
    try:
        memory = asyncio.ensure_future(highest_memory(gateway.pid))
        await asyncio.sleep(options.lead)
        during = await drive(gateway.port, options.rate, options.seconds)
        memory.cancel()
        with suppress(asyncio.CancelledError):
            await memory
        async with asyncio.timeout(60):
            said, _ = await attacker.communicate()
    finally:
        if attacker.returncode is None:
            attacker.kill()
            await attacker.wait()
    after = sheds(gateway)
    shed = {reason: count - before.get(reason, 0) for reason, count in after.items() if count > before.get(reason, 0)}
    return outcome(name, alone, during, highest.pop(gateway.pid, 0.0), json.loads(said), shed)


def outcome(
    name: str, alone: Honest, during: Honest, memory_mib: float, hostile: dict[str, int], shed: dict[str, int]
) -> Outcome:
    return Outcome(
        name, during.asked, during.good, dict(during.answers), alone.percentile(0.5), alone.percentile(0.99),
        during.percentile(0.5), during.percentile(0.99), memory_mib, hostile, shed,
    )  # fmt: skip


highest: dict[int, float] = {}
"""MiB of resident memory by process."""


async def highest_memory(pid: int) -> None:
    while True:
        highest[pid] = max(highest.get(pid, 0.0), resident_mb([pid]) * 1e6 / 2**20)
        await asyncio.sleep(0.1)


def sheds(gateway: rig.GatewayProcess) -> dict[str, int]:
    """What the gateway had no room for, by reason."""
    with urllib.request.urlopen(gateway.admin + "/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    rows = [line for line in lines if line.startswith("sidecar_sheds_total{")]
    return {row.partition('reason="')[2].partition('"')[0]: int(float(row.rpartition(" ")[2])) for row in rows}


def table_of(outcomes: list[Outcome]) -> Table:
    table = Table(title="Honest callers while others attack", title_justify="left", box=box.SIMPLE)
    for column in ("attack", "good of asked", "p50 ms", "p99 ms", "p99 ÷ alone", "MiB", "holds", "hostile got", "shed"):
        table.add_column(column, justify="left" if column in ("attack", "hostile got", "shed") else "right")
    for each in outcomes:
        table.add_row(
            each.attack, f"{each.good} of {each.asked}", f"{each.attacked_p50_ms:.1f}",
            f"{each.attacked_p99_ms:.1f} ({each.alone_p99_ms:.1f})", f"{each.ratio:.2f}", f"{each.memory_mib:.0f}",
            "yes" if each.holds else "NO", words(each.hostile), words(each.shed),
        )  # fmt: skip
    return table


def words(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items())) or "-"


def parser() -> argparse.ArgumentParser:
    arguments = argparse.ArgumentParser(prog="python -m loadtests.hostile", description=__doc__.partition("\n\n")[0])
    arguments.add_argument("attack", nargs="*", choices=[*ATTACKS, []], help=f"of {', '.join(ATTACKS)}; default: all")
    arguments.add_argument("--seconds", type=float, default=10, help="of each measurement (default: 10)")
    arguments.add_argument("--lead", type=float, default=8, help="seconds an attack has before (default: 8)")
    arguments.add_argument("--sockets", type=int, default=4000, help="of an attack (default: 4000)")
    arguments.add_argument("--packets", type=float, default=2000, help="of an attack a second (default: 2000)")
    arguments.add_argument("--rate", type=float, default=200, help="honest requests a second (default: 200)")
    arguments.add_argument("--json", type=Path, help="file for the figures")
    return arguments


async def run(options: argparse.Namespace, gateway: rig.GatewayProcess) -> list[Outcome]:
    outcomes = []
    for name in options.attack or ATTACKS:
        outcomes.append(await attacked(name, gateway, options))
        print(f"{name}: {outcomes[-1].good} of {outcomes[-1].asked}", file=sys.stderr, flush=True)
    return outcomes


def main() -> int:
    options = parser().parse_args()
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) > 1:
        os.sched_setaffinity(0, cores[1:])
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hostile-")))
        server = stack.enter_context(rig.valkey(directory / "valkey"))
        api = stack.enter_context(running([sys.executable, "-m", "loadtests.hostile.api"]))
        assert api.stdout is not None
        config = rig.gateway_config(
            directory / "gateway.json", int(api.stdout.readline()), server.url,
            routes=[{"path": "/free", "free": True}, {"path": "/**"}],
            limits={"free_per_second": 200},  # the default, which measurements from one address are without
        )  # fmt: skip
        rig.load_accounts(config, accounts(directory / "accounts.json"))
        gateway = stack.enter_context(rig.gateway(config))
        if len(cores) > 1:
            os.sched_setaffinity(gateway.pid, cores[:1])
        time.sleep(0.5)
        outcomes = uvloop.run(run(options, gateway))
    Console(width=180).print(table_of(outcomes))
    if options.json is not None:
        document: list[dict[str, Any]] = [{**asdict(each), "holds": each.holds} for each in outcomes]
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    return 0 if all(each.holds for each in outcomes) else MISSED


if __name__ == "__main__":
    try:
        sys.exit(main())
    except RigError as error:
        sys.exit(f"the run cannot be made: {error}")
