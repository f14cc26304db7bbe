"""A bank's usage sync: usage in OpenMeter, a subscription in Lago, and the sync between them."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import orjson
from redis.asyncio import Redis

from sidecar.billing.lago.client import LagoClient
from sidecar.billing.lago.models import Invoice, Subscription
from sidecar.billing.settings import SyncSettings
from sidecar.billing.usage_sync.period_links import PeriodLink, SyncAccount
from sidecar.billing.usage_sync.sync_report import SyncReport
from sidecar.billing.usage_sync.usage_sync import Sync
from sidecar.ledger.account_counts import AccountCounts
from sidecar.ledger.keys import Keys
from sidecar.metering.openmeter.meter_query import MeterQuery
from sidecar.sandbox.lago.lago_server import Lago
from sidecar.sandbox.openmeter.openmeter_events import CloudEvent
from sidecar.sandbox.openmeter.openmeter_server import OpenMeter

T0 = 1_785_456_000
"""2026-07-31 00:00:00 UTC, the last day of a calendar month."""
MONTH_END = T0 + 86_400
HOUR = 3_600


def standard_plan(code: str, cents: int, amount: str = "0.015") -> dict[str, Any]:
    return {
        "code": code,
        "name": code,
        "interval": "monthly",
        "amount_cents": cents,
        "amount_currency": "GBP",
        "pay_in_advance": False,
        "charges": [],
        "_amount": amount,
    }


@dataclass(slots=True)
class SyncSystem:
    client: Redis
    keys: Keys
    lago: Lago
    meter: OpenMeter
    api: LagoClient
    query: MeterQuery
    settings: SyncSettings = field(default_factory=SyncSettings)
    numbers: int = 0
    charged: dict[tuple[str, int], int] = field(default_factory=dict)
    """What the ledger has charged, by account and second: all that was used."""
    links: dict[str, tuple[PeriodLink, ...]] = field(default_factory=dict)

    async def read(self, accounts: Sequence[str], from_hour: int, to_hour: int) -> dict[str, AccountCounts]:
        """In place of the ledger's counts, which no gateway has made here."""
        found = {}
        for account in accounts:
            hours: Counter[int] = Counter()
            periods: Counter[tuple[int, str]] = Counter()
            for (who, at_s), units in self.charged.items():
                if who == account:
                    hours[at_s // HOUR] += units
                    for each in self.links.get(account, ()):
                        if each.start_s <= at_s < each.end_s:
                            periods[each.ledger_start_ms, "api_calls"] += units
            found[account] = AccountCounts(periods, {"api_calls": hours}, from_hour)
        return found

    async def opened(self) -> SyncSystem:
        """The system with a metric, two plans, and no subscription yet."""
        metric = await self.api.create_metric(
            {
                "name": "API calls",
                "code": "api_calls",
                "aggregation_type": "sum_agg",
                "field_name": "calls",
                "recurring": False,
            }
        )
        for code, cents in (("basic", 1_000), ("pro", 9_000)):
            plan = standard_plan(code, cents)
            charge = {
                "billable_metric_id": metric.lago_id,
                "charge_model": "standard",
                "properties": {"amount": plan.pop("_amount")},
            }
            await self.api.create_plan({**plan, "charges": [charge]})
        return self

    async def subscribe(self, account: str, plan: str = "basic") -> Subscription:
        """A subscription from now on, or an upgrade."""
        await self.api.create_customer({"external_id": account, "name": account, "currency": "GBP"})
        return await self.api.create_subscription(
            {
                "external_customer_id": account,
                "external_id": f"sub-{account}",
                "plan_code": plan,
                "billing_time": "calendar",
            }
        )

    def use(self, account: str, at_s: float, units: int) -> None:
        """A debited call, as OpenMeter keeps it."""
        self.numbers += 1
        self.charged[account, int(at_s)] = self.charged.get((account, int(at_s)), 0) + units
        data = orjson.dumps({"units": units, "metric": "api_calls", "endpoint": "/", "method": "GET"})
        self.meter.store.add(CloudEvent(f"gw.{self.numbers}", "open-banking-api", "api.call", account, int(at_s), data))

    def sync(self, settings: SyncSettings | None = None, lago: Any = None) -> Sync:
        return _Sync(self, lago or self.api, settings or self.settings)

    async def run(self, now_s: float, *links: PeriodLink, account: str = "tpp-1", flush: bool = False) -> SyncReport:
        """One round of a process that has just been started."""
        return await self.sync().run_once([SyncAccount(account, links)], 1, int(now_s * 1000), flush)

    def at(self, now_s: float) -> None:
        """Move Lago's clock; what is due by then is billed."""
        self.lago.advance_to(datetime.fromtimestamp(now_s, UTC))

    async def invoice_of(self, account: str, subscription_id: str) -> Invoice:
        """The invoice that bills a subscription, with its fees."""
        for listed in await self.api.invoices(account):
            invoice = await self.api.invoice(listed.lago_id)
            assert invoice is not None
            if any(period.subscription_id == subscription_id for period in invoice.periods or ()):
                return invoice
        raise AssertionError(f"no invoice for {subscription_id}")


class _Sync(Sync):
    """Tells the system which periods it is asked for."""

    def __init__(self, system: SyncSystem, lago: Any, settings: SyncSettings) -> None:
        super().__init__(system.client, system.keys, lago, system.query, settings, counts=system)
        self._system = system

    async def run_once(
        self,
        accounts: AsyncIterator[SyncAccount] | Iterable[SyncAccount],
        token: int,
        now_ms: int,
        flush: bool = False,
    ) -> SyncReport:
        async def noted() -> AsyncIterator[SyncAccount]:
            if isinstance(accounts, Iterable):
                for account in accounts:
                    self._system.links[account.id] = account.links
                    yield account
            else:
                async for account in accounts:
                    self._system.links[account.id] = account.links
                    yield account

        return await super().run_once(noted(), token, now_ms, flush)


def link_of(
    subscription: Subscription,
    start_s: int,
    end_s: int,
    *,
    lago_to_ms: int | None = None,
    is_final: bool = False,
    is_current: bool = True,
) -> PeriodLink:
    """The ledger's period, as the reconciler ties it to a subscription."""
    assert subscription.started_at_ms is not None
    return PeriodLink(
        ledger_start_ms=start_s * 1000,
        ledger_end_ms=end_s * 1000,
        subscription_id=subscription.lago_id,
        external_subscription_id=subscription.external_id,
        lago_from_ms=subscription.started_at_ms,
        lago_to_ms=end_s * 1000 if lago_to_ms is None else lago_to_ms,
        metrics=("api_calls",),
        is_final=is_final,
        is_current=is_current,
    )
