"""A quarter of a bank's life, in one process: ledger, publisher, OpenMeter, Lago, webhooks, reconciler, sync.

Only the traffic's HTTP is left out: calls are held and settled through the scripts, as a gateway does it. Time is moved
in steps; in between everything runs as in earnest, over real sockets.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from random import Random
from typing import Any

import aiohttp
import orjson
from aiohttp import web

from sidecar.app.configuration import Config
from sidecar.billing.lago.client import LagoClient
from sidecar.billing.reconcile.reconciler import Outcome
from sidecar.billing.reconcile.reload_requests import ReloadRequests
from sidecar.controlplane.control_work import ControlWork
from sidecar.ledger.accounts.loader import AccountLoader
from sidecar.ledger.client.outcomes import Code
from sidecar.ledger.keys import Keys
from sidecar.ledger.store import Store
from sidecar.metering.openmeter.meter_query import MeterQuery
from sidecar.metering.outbox.outbox_status import outbox_status
from sidecar.metering.publisher.publisher import Publisher
from sidecar.sandbox.lago.lago_server import Lago, LagoConfig
from sidecar.sandbox.openmeter.meters import Meter
from sidecar.sandbox.openmeter.openmeter_events import CloudEvent
from sidecar.sandbox.openmeter.openmeter_server import OpenMeter, OpenMeterConfig
from sidecar.sandbox.server import Server
from tests.integration.ledger_loader.usage import Usage
from tests.simulation.clock import ClockedClient
from tests.support.ledger_driver import CLOCK_KEY
from tests.support.verified import assert_verified

API_KEY, HMAC_KEY = "sim-key", "sim-hmac"
HOUR_S, DAY_S = 3_600, 86_400
START_S = 1_782_864_000  # 2026-07-01T00:00:00Z
TOKEN = 1
METRICS = ("api_calls", "payments")
TIMEOUT_S = 20.0


@dataclass(frozen=True)
class Profile:
    """One customer: plan, wallet, how much it calls, and what happens to it. ``second_plan`` is that of another
    subscription, which charges what the first does not. ``scopes``: money in wallets that pay for one metric alone."""

    id: str
    plan: str
    mode: str
    wallet: str | None = None
    calls_max: int = 40
    metadata: dict[str, str] = field(default_factory=dict)
    tax: bool = False
    second_plan: str | None = None
    scopes: dict[str, str] = field(default_factory=dict)

    def charge(self, metric: str) -> dict[str, Any]:
        """The charge of a metric in the plan that has one."""
        charges = (PLANS[plan][1 + METRICS.index(metric)] for plan in (self.plan, self.second_plan) if plan is not None)
        return next(charge for charge in charges if charge is not None)


PROFILES = (
    Profile("pre-standard", "prepaid", "prepaid", wallet="30"),
    Profile("pre-graduated", "prepaid_steps", "prepaid", wallet="25", tax=True),
    Profile("over-steps", "steps", "overage", metadata={"quota_spending_cap": "40"}),
    Profile("over-package", "packages", "overage"),
    Profile("post-volume", "volume", "postpaid", metadata={"quota_mode": "postpaid"}, tax=True),
    Profile("post-limit", "prepaid", "postpaid", metadata={"quota_mode": "postpaid", "quota_credit_limit": "60"}),
    Profile("upgraded", "steps", "overage"),
    Profile("downgraded", "packages", "overage"),
    Profile("leaving", "prepaid", "prepaid", wallet="50"),
    Profile("pre-fixed", "prepaid_fixed", "prepaid", wallet="40"),
    Profile("ended", "prepaid", "prepaid", wallet="25"),
    Profile("mistaken", "volume", "postpaid", metadata={"quota_mode": "postpaid"}),
    Profile("two-terms", "calls_monthly", "prepaid", wallet="60", second_plan="payments_weekly"),
    Profile("committed", "committed", "prepaid", wallet="60"),
    Profile("scoped", "prepaid", "prepaid", wallet="20", scopes={"api_calls": "15", "payments": "10"}),
    Profile("two-kinds", "calls_quarterly", "postpaid", metadata={"quota_mode": "postpaid"}, tax=True,
            second_plan="payments_monthly"),
)  # fmt: skip
"""``pre-fixed`` has a fixed charge, ``ended`` loses its wallet, events with the subject of ``mistaken`` come from
strangers too. ``committed`` has a minimum commitment, ``scoped`` wallets that pay for one metric. ``two-terms`` and
``two-kinds`` have two subscriptions with different intervals."""


def _standard(amount: str) -> dict[str, Any]:
    return {"charge_model": "standard", "properties": {"amount": amount}}


def _ranges(model: str, *tiers: tuple[int | None, str, str]) -> dict[str, Any]:
    rows, low = [], 0
    for up_to, unit, flat in tiers:
        rows.append({"from_value": low, "to_value": up_to, "per_unit_amount": unit, "flat_amount": flat})
        low = (up_to or 0) + 1
    return {"charge_model": model, "properties": {f"{model}_ranges": rows}}


PLANS: dict[str, tuple[int, dict[str, Any] | None, dict[str, Any] | None]] = {
    "prepaid": (0, _standard("0.02"), _standard("0.1")),
    "prepaid_steps": (0, _ranges("graduated", (500, "0", "0"), (1_000, "0.015", "1"), (None, "0.007", "0")),
                      _standard("0.05")),
    "prepaid_fixed": (0, _standard("0.02"), _standard("0.1")),
    "steps": (9_900, _ranges("graduated", (1_000, "0.00", "0"), (None, "0.001", "0")), _standard("0.015")),
    "steps_max": (29_900, _ranges("graduated", (5_000, "0.00", "0"), (None, "0.0005", "0")), _standard("0.01")),
    "packages": (4_900, {"charge_model": "package",
                         "properties": {"amount": "1.50", "package_size": 100, "free_units": 200}}, _standard("0.2")),
    "packages_small": (900, {"charge_model": "package",
                             "properties": {"amount": "2", "package_size": 100, "free_units": 0}}, _standard("0.2")),
    "volume": (0, _ranges("volume", (800, "0.01", "0"), (2_000, "0.008", "2"), (None, "0.005", "0")), _standard("0.1")),
    "committed": (0, _standard("0.02"), _standard("0.1")),
    "calls_monthly": (0, _standard("0.02"), None),
    "payments_weekly": (0, None, _ranges("graduated", (5, "0.2", "0"), (None, "0.1", "0"))),
    "calls_quarterly": (0, _ranges("graduated", (1_000, "0.01", "0"), (None, "0.005", "0")), None),
    "payments_monthly": (0, None, _standard("0.1")),
}  # fmt: skip
INTERVALS = {"payments_weekly": "weekly", "calls_quarterly": "quarterly"}
COMMITMENTS = {"committed": 1_500}
"""Of plans: cents that a month costs at least."""
ANNIVERSARY = {"payments_monthly"}
"""Plans whose subscriptions begin their periods on the day on which they began."""


FIXED_CHARGES = {
    "prepaid_fixed": [
        {
            "code": "support",
            "charge_model": "standard",
            "units": "1",
            "properties": {"amount": "5"},
            "add_on_code": "support",
        }
    ]
}
"""Of plans: 5.00 a month."""


class Violation(AssertionError):
    """Something that must never happen has. The message says what, to whom and when."""


class Quarter:
    """The system and its clock. ``seed`` decides everything that is random."""

    def __init__(
        self, client: ClockedClient, config: Config, lago: Lago, meter: OpenMeter, control_work: ControlWork,
        keys: Keys, session: aiohttp.ClientSession, lago_url: str, seed: int,
    ) -> None:  # fmt: skip
        self.client = client
        self.config = config
        self.lago = lago
        self.meter = meter
        self.control_work = control_work
        self.keys = keys
        self.random = Random(seed)
        self.now_s = START_S
        self.seed = seed
        self.session = session
        self.lago_url = lago_url
        self.served: dict[tuple[str, int, str], int] = defaultdict(int)
        """Units by account, start of the ledger's period in ms, and metric: the simulation's own record."""
        self.funded: dict[str, Decimal] = defaultdict(Decimal)
        """Money put into wallets, settled."""
        self.refused = 0
        self.granted = 0
        self.events_in_lago: set[str] = set()
        self.fresh_money: set[str] = set()
        self.lago_away = False
        self.strange: dict[tuple[str, str], int] = defaultdict(int)
        """Units that strangers sent to OpenMeter, by subject and metric."""
        self.scheduled_reloads: dict[str, int] = {}
        """Scheduled reloads go by Valkey's own clock, which does not move; here they go by the simulation's."""
        self.usage = Usage(self.client, self.keys, "sim")
        self._payments = itertools.count()

    # time

    async def set_clock(self, now_s: float) -> None:
        self.now_s = int(now_s)
        await self.client.set(CLOCK_KEY, int(now_s * 1_000_000))

    async def sleep_until(self, at_ms: int) -> None:
        """What the reconciler waits for comes at once."""
        if at_ms > self.now_s * 1000:
            await self.set_clock(at_ms / 1000)

    async def move(self, to_s: int) -> None:
        """Lago's jobs run on the way, at their own times."""
        await self.set_clock(to_s)
        self.lago.advance_to(float(to_s))
        await self.settle()

    async def settle(self) -> None:
        """Until webhooks are delivered, events published and reload requests handled."""
        await self.lago.webhooks.drain()
        await self.publish()
        await self.handle_reload_requests()

    @property
    def meter_is_away(self) -> bool:
        return bool(self.meter.faults.as_json()["chances"])

    async def publish(self) -> None:
        if self.meter_is_away:
            return
        await self.until(self._is_published)

    async def _is_published(self) -> bool:
        return (await outbox_status(self.client, self.keys)).entries == 0

    async def until(self, holds: Callable[[], Any]) -> None:
        end = asyncio.get_running_loop().time() + TIMEOUT_S
        while not await holds():
            if asyncio.get_running_loop().time() > end:
                raise Violation(f"seed {self.seed}: {holds} does not come true")
            await asyncio.sleep(0.005)

    # billing

    async def schedule_reload(self, name: str, at_ms: int) -> None:
        self.scheduled_reloads[name] = min(at_ms, self.scheduled_reloads.get(name, at_ms))

    async def handle_reload_requests(self) -> None:
        requests = ReloadRequests(self.client, self.keys)
        for name in [name for name, at_ms in self.scheduled_reloads.items() if at_ms <= self.now_s * 1000]:
            del self.scheduled_reloads[name]
            await requests.add([name])
        for _ in range(20):
            waiting = await requests.waiting(1000)
            if not waiting or self.lago_away:
                return
            for request in waiting:
                if await self.control_work.reconcile_loop.handle(request, TOKEN):
                    await requests.complete([request])
        raise Violation(f"seed {self.seed}: reload requests never end: {await requests.waiting(5)}")

    async def sweep(self) -> None:
        if not self.lago_away:
            await self.control_work.reconcile_loop.sweep(TOKEN)

    async def sync(self, *, flush: bool = False) -> None:
        assert self.control_work.sync_loop is not None
        report = await self.control_work.sync_loop.round(TOKEN, flush=flush)
        if not self.lago_away and not self.meter_is_away and not report.is_complete:
            raise Violation(f"seed {self.seed} at {self.now_s}: sync: {report}")

    def watch(self, outcome: Outcome) -> None:
        """No reconcile raises what is available without new money or a final invoice."""
        for alert in outcome.alerts:
            if alert.kind in ("raise", "identity"):
                raise Violation(f"seed {self.seed} at {self.now_s}: {alert}")
        if outcome.result == "refused":
            raise Violation(f"seed {self.seed} at {self.now_s}: {outcome.why}")

    # traffic

    async def call(self, account: str, metric: str, units: int) -> bool:
        """One request of so many units; whether it was served."""
        *_, code, _, _ = await self.usage.hold(account, metric, units)
        if code != Code.GRANTED:
            self.refused += 1
            return False
        if self.random.random() < 0.05:  # the API failed
            await self.usage.release(account, metric, units)
            return False
        event = [account, metric, units, "/accounts", "GET", 200, 1.5, None, None]
        await self.usage.settle(account, metric, units, orjson.dumps(event).decode())
        state = await self.control_work.store.accounts.state(account)
        of = next(each for each in state.subscriptions if metric in each.prices)
        self.served[account, of.start_ms, metric] += units
        self.granted += 1
        return True

    # what an operator does in Lago

    async def api(self, method: str, path: str, body: Any = None) -> Any:
        headers = {"Authorization": f"Bearer {API_KEY}"}
        async with self.session.request(method, self.lago_url + path, json=body, headers=headers) as answer:
            text = await answer.read()
            assert answer.status < 300, (method, path, answer.status, text[:500])
            return orjson.loads(text) if text else None

    async def subscribe(self, account: str, plan: str, name: str = "sub") -> None:
        """Subscribe, or change the plan."""
        await self.control_work.lago.create_subscription(
            {"external_customer_id": account, "external_id": f"{account}-{name}", "plan_code": plan,
             "billing_time": "anniversary" if plan in ANNIVERSARY else "calendar"}
        )  # fmt: skip

    async def wallet_of(self, account: str) -> str:
        rows = (await self.api("GET", f"/api/v1/wallets?external_customer_id={account}"))["wallets"]
        return str(next(row["lago_id"] for row in rows if row["status"] == "active"))

    async def top_up(self, account: str, credits: str, *, paid: bool, pays: bool = True) -> None:
        mode = "succeed" if pays else "fail"
        await self.api("POST", "/sandbox/payments", {"mode": mode})
        kind = "paid_credits" if paid else "granted_credits"
        body = {"wallet_transaction": {"wallet_id": await self.wallet_of(account), kind: credits}}
        await self.api("POST", "/api/v1/wallet_transactions", body)
        await self.api("POST", "/sandbox/payments", {"mode": "succeed"})
        if not paid or pays:
            self.funded[account] += Decimal(credits)

    def stranger(self, subject: str, units: Any, metric: str = "api_calls") -> None:
        """An event that no gateway has sent: whoever reaches OpenMeter can send one."""
        data = orjson.dumps({"units": units, "metric": metric})
        number = next(self._payments)
        self.meter.keep([CloudEvent(f"stranger.{number}", "elsewhere", "api.call", subject, self.now_s, data)])
        if isinstance(units, int):
            self.strange[subject, metric] += units

    async def end_wallet(self, account: str) -> None:
        await self.api("DELETE", f"/api/v1/wallets/{await self.wallet_of(account)}")

    async def seed_lago(self, webhook_url: str) -> None:
        """Plans, customers, wallets, subscriptions."""
        lago = self.control_work.lago
        metrics = {}
        for code in METRICS:
            metrics[code] = (
                await lago.create_metric(
                    {"code": code, "name": code, "aggregation_type": "sum_agg", "field_name": "calls"}
                )
            ).lago_id
        for code, (fee, calls, payments) in PLANS.items():
            charges = [
                {"billable_metric_id": metrics[metric], **charge}
                for metric, charge in zip(METRICS, (calls, payments), strict=True)
                if charge is not None
            ]
            body = {"code": code, "name": code, "interval": INTERVALS.get(code, "monthly"), "amount_cents": fee,
                    "amount_currency": "EUR", "pay_in_advance": False, "charges": charges,
                    "fixed_charges": FIXED_CHARGES.get(code, [])}  # fmt: skip
            if code in COMMITMENTS:
                body["minimum_commitment"] = {"amount_cents": COMMITMENTS[code]}
            await lago.create_plan(body)
        await lago.create_tax({"code": "vat", "name": "VAT", "rate": "20"})
        await lago.create_webhook_endpoint({"webhook_url": webhook_url, "signature_algo": "hmac", "name": "sim"})
        for profile in PROFILES:
            pairs = [{"key": k, "value": v, "display_in_invoice": False} for k, v in profile.metadata.items()]
            customer: dict[str, Any] = {"external_id": profile.id, "currency": "EUR", "metadata": pairs}
            if profile.tax:
                customer["tax_codes"] = ["vat"]
            await lago.create_customer(customer)
            if profile.wallet is not None:
                await lago.create_wallet(
                    {"external_customer_id": profile.id, "name": "main", "currency": "EUR", "rate_amount": "1",
                     "paid_credits": "0", "granted_credits": profile.wallet}
                )  # fmt: skip
                self.funded[profile.id] += Decimal(profile.wallet)
            for metric, credits in profile.scopes.items():
                await lago.create_wallet(
                    {"external_customer_id": profile.id, "name": metric, "currency": "EUR", "rate_amount": "1",
                     "paid_credits": "0", "granted_credits": credits, "priority": 1,
                     "applies_to": {"billable_metric_codes": [metric]}}
                )  # fmt: skip
                self.funded[profile.id] += Decimal(credits)
            await self.subscribe(profile.id, profile.plan)
            if profile.second_plan is not None:
                await self.subscribe(profile.id, profile.second_plan, "other")


@contextlib.asynccontextmanager
async def quarter(
    port: int,
    seed: int,
    grace_days: int = 0,
    *,
    kind: type[Quarter] = Quarter,
    metrics: Sequence[str] = METRICS,
    settings: Mapping[str, Any] | None = None,
    **lago_options: Any,
) -> AsyncIterator[Quarter]:
    """A system at the first of July. ``port``: of a Valkey of one's own. ``settings``: of the section ``lago``."""
    keys = Keys()
    async with contextlib.AsyncExitStack() as stack:
        client = ClockedClient(port=port)
        stack.push_async_callback(client.aclose)
        await client.flushall()
        await client.set(CLOCK_KEY, START_S * 1_000_000)
        lago = Lago(
            LagoConfig(
                api_key=API_KEY, hmac_key=HMAC_KEY, invoice_grace_period_days=grace_days, seed=seed,
                now=lambda: float(START_S), webhook_retry_waits_s=(0.01, 0.02), **lago_options,
            )
        )  # fmt: skip
        groups = {"metric": "$.metric"}
        meters = tuple(
            Meter(slug=m, event_type="api.call", aggregation="SUM", value_property="$.units", group_by=groups)
            for m in metrics
        )
        meter = OpenMeter(OpenMeterConfig(meters=meters, seed=seed))
        servers = [Server(lago.app()), Server(meter.app())]
        urls = [await server.start() for server in servers]
        for server in servers:
            stack.push_async_callback(server.close)
        config = Config.model_validate(
            {
                "upstream": {"url": "http://127.0.0.1:1"},
                "valkey": f"valkey://127.0.0.1:{port}",
                "metering": {"url": urls[1], "linger_ms": 2, "backoff_ms_min": 5, "backoff_ms_max": 50,
                             "retain_s": 0},
                "lago": {
                    "url": urls[0], "api_key": API_KEY, "requests_per_second": 5000, "attempts_max": 1,
                    "webhooks": {"hmac_key": HMAC_KEY, "requests_per_second_max": 10_000},
                    "plan_policies": [{"code": code, "mode": "overage"} for code, (fee, *_) in PLANS.items() if fee],
                    "reconcile": {"full_interval_s": 1}, "sync": {"settle_s": 0}, **(settings or {}),
                },
            }
        )  # fmt: skip
        store = Store(client, keys, AccountLoader(client, keys))
        lago_client = await stack.enter_async_context(LagoClient(config.lago))
        query = await stack.enter_async_context(MeterQuery(config.metering))
        session = await stack.enter_async_context(aiohttp.ClientSession())
        sim: list[Quarter] = []

        async def sleep_until(at_ms: int) -> None:
            await sim[0].sleep_until(at_ms)

        control_work = ControlWork(
            config.lago,
            config.metering, store, lago_client, query, sleep_until=sleep_until,
            on_outcome=lambda outcome: sim[0].watch(outcome),
        )  # fmt: skip
        sim.append(kind(client, config, lago, meter, control_work, keys, session, urls[0], seed))
        control_work.reconciler.schedule_reload = sim[0].schedule_reload  # type: ignore[method-assign]
        receiving = web.Application()
        receiving.router.add_post("/webhooks/lago", control_work.handle_webhook)
        receiver = Server(receiving)
        webhook_url = await receiver.start()
        stack.push_async_callback(receiver.close)
        publisher = Publisher(client, keys, config.metering)
        publishing = asyncio.create_task(publisher.run())

        async def stop_publishing() -> None:
            publisher.stop()
            await publishing

        stack.push_async_callback(stop_publishing)
        await sim[0].seed_lago(f"{webhook_url}/webhooks/lago")
        await sim[0].settle()
        await sim[0].sweep()
        yield sim[0]
        await assert_verified(client, keys, moved_clock=True)
