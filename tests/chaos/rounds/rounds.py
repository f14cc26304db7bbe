"""Runs rounds: load, a fault in the middle of it, quiet, and the books."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import tempfile
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from tests.chaos.rounds.faults import FAULTS
from tests.chaos.rounds.servers import Kind, started
from tests.chaos.rounds.system import SMALL, System, Traffic, books, chance_of, recovered_s, running_system, wait_quiet
from tests.chaos.rounds.tally import Round, table

PROBE = 1_000


async def one_round(system: System, kind: str, seed: int) -> Round:
    """One fault under load."""
    chance = chance_of(seed)
    accounts = {f"big-{seed}-a": 1_000_000, f"big-{seed}-b": 1_000_000, f"small-{seed}": SMALL}
    probe = f"probe-{seed}"
    await system.load_accounts({**accounts, probe: PROBE})
    calls = Traffic(accounts)
    calls.begin(system)
    await asyncio.sleep(chance.uniform(0.3, 0.8))
    await FAULTS[system.servers.kind][kind](system, chance, {**accounts, probe: PROBE})
    recovery = await recovered_s(system, probe)
    await asyncio.sleep(0.5)
    await calls.end()
    quiet = await wait_quiet(system)
    settled, held, differences = await books(system, sorted(accounts))
    lost = sum(max(0, calls.served[name] - settled.get(name, 0)) for name in accounts)
    doubled = sum(max(0, settled.get(name, 0) - calls.served[name] - calls.unanswered[name]) for name in accounts)
    overspent = max(0, settled.get(f"small-{seed}", 0) - SMALL)
    if not quiet:
        differences = [*differences, "not quiet in time"]
    return Round(
        system.servers.kind, kind, seed, calls.requests, calls.served.total(), lost, doubled, overspent, held,
        recovery, differences,
        notes={
            name: sum([max(0.0, await system.metric(number, f"sidecar_ledger_{name}_total")) for number in range(2)])
            for name in ("lost_operations", "unrecovered_operations", "resent_batches")
        },
    )  # fmt: skip


async def rounds_of(topology: Kind, kinds: Sequence[str], seed: int, directory: Path) -> AsyncIterator[Round]:
    """One round of each kind, in order, on one system."""
    loop = asyncio.get_running_loop()
    opened = started(topology, directory / "valkey")
    servers = await loop.run_in_executor(None, opened.__enter__)
    try:
        async with running_system(servers, directory) as system:
            for number, kind in enumerate(kinds):
                yield await one_round(system, kind, seed + number)
    finally:
        await loop.run_in_executor(None, lambda: opened.__exit__(None, None, None))


async def run(rounds: int, seed: int, only: str) -> list[Round]:
    """So many rounds, shared out by the number of kinds. Prints each, and the table at the end."""
    done: list[Round] = []
    topologies: list[Kind] = ["single", "sentinel", "cluster"]
    chance = chance_of(seed)
    weights = {name: len(FAULTS[name]) for name in topologies}
    for topology in topologies:
        if only and only != topology:
            continue
        share = max(1, round(rounds * (1 if only else weights[topology] / sum(weights.values()))))
        kinds = [list(FAULTS[topology])[n % len(FAULTS[topology])] for n in range(share)]
        chance.shuffle(kinds)
        with tempfile.TemporaryDirectory(prefix="quota-chaos-") as directory:
            async for each in rounds_of(topology, kinds, seed + 10_000 * topologies.index(topology), Path(directory)):
                done.append(each)
                print(json.dumps(each.document()), flush=True)
    print(table(done))
    return done


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=int(os.environ.get("CHAOS_ROUNDS", "200")))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", default="", choices=["", "single", "sentinel", "cluster"])
    arguments = parser.parse_args()
    results = asyncio.run(run(arguments.rounds, arguments.seed, arguments.only))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps([each.document() for each in results], indent=1))
    raise SystemExit(0 if all(each.is_as_promised for each in results) else 1)
