"""A stand-in of Lago, a real Valkey, and the billing side of a control plane between them, by the real clock."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from sidecar.app.configuration import Config
from sidecar.billing.lago.client import LagoClient
from sidecar.billing.reconcile.reconciler import Outcome
from sidecar.controlplane.control_work import ControlWork
from sidecar.ledger.accounts.loader import AccountLoader, AccountSnapshot
from sidecar.ledger.keys import Keys
from sidecar.ledger.store import Store
from sidecar.sandbox.lago.lago_server import Lago, LagoConfig
from sidecar.sandbox.server import Server
from sidecar.valkey.topology import Address, Standalone, connected
from tests.integration.ledger_loader.usage import Usage

API_KEY, HMAC_KEY = "lago-api-key", "lago-hmac-key"
DEADLINE_S = 20.0


@dataclass
class BillingSystem:
    """``lago`` is the stand-in's inside, ``client`` talks to it, ``control_work`` brings it into ``store``."""

    lago: Lago
    lago_url: str
    client: LagoClient
    store: Store
    usage: Usage
    control_work: ControlWork
    metrics: dict[str, str]

    async def plan(self, code: str = "pro", amount: str = "0.10", **options: Any) -> None:
        """A plan with a standard price for ``api_calls``."""
        if "api_calls" not in self.metrics:
            made = await self.client.create_metric(
                {"code": "api_calls", "name": "API calls", "aggregation_type": "sum_agg", "field_name": "calls"}
            )
            self.metrics["api_calls"] = made.lago_id
        charge = {"billable_metric_id": self.metrics["api_calls"], "charge_model": "standard",
                  "properties": {"amount": amount}}  # fmt: skip
        values = {"code": code, "name": code, "interval": "monthly", "amount_cents": 0, "amount_currency": "EUR",
                  "pay_in_advance": False, "charges": [charge]} | options  # fmt: skip
        await self.client.create_plan(values)

    async def customer(
        self, account: str, plan: str | None = "pro", wallet: str | None = "10", **metadata: str
    ) -> None:
        """A customer with a subscription and a wallet."""
        pairs = [{"key": key, "value": value, "display_in_invoice": False} for key, value in metadata.items()]
        await self.client.create_customer({"external_id": account, "currency": "EUR", "metadata": pairs})
        if wallet is not None:
            await self.client.create_wallet(
                {"external_customer_id": account, "name": "main", "currency": "EUR", "rate_amount": "1",
                 "paid_credits": "0", "granted_credits": wallet}
            )  # fmt: skip
        if plan is not None:
            await self.subscribe(account, plan)

    async def subscribe(self, account: str, plan: str) -> None:
        await self.client.create_subscription(
            {"external_customer_id": account, "external_id": f"{account}-sub", "plan_code": plan,
             "billing_time": "calendar"}
        )  # fmt: skip

    async def top_up(self, account: str, credits: str) -> None:
        (wallet,) = [each for each in await self.client.wallets(account) if each.is_active]
        await self.client.top_up({"wallet_id": wallet.lago_id, "granted_credits": credits})

    async def reconcile(self, account: str) -> Outcome:
        return await self.control_work.reconciler.reconcile(account)

    async def show(self, account: str) -> AccountSnapshot:
        snapshot = await self.store.accounts.show(account)
        assert snapshot is not None, account
        return snapshot

    async def available(self, account: str) -> Decimal | None:
        return (await self.show(account)).available

    def requests(self) -> int:
        """Requests to Lago so far."""
        return self.client.metrics.requests.total()


async def until(holds: Callable[[], Any]) -> None:
    """Waits for a condition, synchronous or not."""
    end_s = time.monotonic() + DEADLINE_S
    while True:
        found = holds()
        if asyncio.iscoroutine(found):
            found = await found
        if found:
            return
        assert time.monotonic() < end_s, holds
        await asyncio.sleep(0.01)


def config_of(port: int, lago_url: str, openmeter: str | None = None, **lago: Any) -> Config:
    settings: dict[str, Any] = {
        "url": lago_url,
        "api_key": API_KEY,
        "requests_per_second": 5_000,
        "webhooks": {"hmac_key": HMAC_KEY},
        "sync": {"enabled": openmeter is not None},
    }
    return Config.model_validate(
        {
            "upstream": {"url": "http://127.0.0.1:1"},
            "valkey": f"valkey://127.0.0.1:{port}",
            "metering": {"url": openmeter} if openmeter is not None else {},
            "lago": settings | lago,
        }
    )


@contextlib.asynccontextmanager
async def billing_system(
    port: int, *, lago: dict[str, Any] | None = None, **settings: Any
) -> AsyncIterator[BillingSystem]:
    """``lago``: options of the stand-in; ``settings``: of the configuration's section. The Valkey is emptied."""
    stand_in = Lago(LagoConfig(api_key=API_KEY, hmac_key=HMAC_KEY, **(lago or {})))
    async with contextlib.AsyncExitStack() as stack:
        server = Server(stand_in.app())
        url = await server.start()
        stack.push_async_callback(server.close)
        config = config_of(port, url, **settings)
        valkey = await stack.enter_async_context(connected(Standalone(Address("127.0.0.1", port))))
        await valkey.flushall()
        keys = Keys()
        store = Store(valkey, keys, AccountLoader(valkey, keys))
        client = await stack.enter_async_context(LagoClient(config.lago))
        control_work = ControlWork(config.lago, config.metering, store, client, None)
        yield BillingSystem(stand_in, url, client, store, Usage(valkey, keys), control_work, {})
