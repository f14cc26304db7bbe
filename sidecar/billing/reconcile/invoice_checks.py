"""Compares the units and amounts of final invoices with the ledger's.

One comparison for each period whose invoice is final, kept with the account; one that differs is made again in every
round, since usage that is carried over evens it out later.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from decimal import Decimal
from typing import Any, Final, Protocol

import orjson

from sidecar.basics.logger import get_logger
from sidecar.billing.lago.errors import LagoError
from sidecar.billing.lago.models import Invoice
from sidecar.billing.reconcile.reconcile_state import InvoicedPeriod, ReconcileState, field_name
from sidecar.billing.usage_sync.comparison import ComparisonRow, LedgerUsage
from sidecar.billing.usage_sync.sync_store import SyncStateError
from sidecar.billing.usage_sync.usage_sync import Sync
from sidecar.ledger.accounts.account_state import AccountState
from sidecar.ledger.keys import Keys
from sidecar.metering.openmeter.meter_query import QueryError
from sidecar.valkey.hash_fields import set_fields
from sidecar.valkey.topology import Client

log = get_logger("sidecar.billing")

ACCOUNTS_SHOWN_MAX: Final = 1_000
RECHECK_MS: Final = 14 * 86_400_000
"""How long after an invoice a difference is compared again."""


class Invoices(Protocol):
    async def invoice(self, lago_id: str) -> Invoice | None: ...


@dataclass(slots=True)
class CheckMetrics:
    """``differences``: what does not agree, (account, metric) to (units, cents), the ledger's minus the invoice's."""

    compared: int = 0
    equal: int = 0
    differences: dict[tuple[str, str], tuple[Decimal, int]] = field(default_factory=dict)


class InvoiceChecks:
    """Raises what redis-py raises; trouble with Lago or OpenMeter leaves the period for the next round."""

    def __init__(self, client: Client, keys: Keys, lago: Invoices, sync: Sync) -> None:
        self.metrics = CheckMetrics()
        self._client = client
        self._keys = keys
        self._lago = lago
        self._sync = sync

    def __repr__(self) -> str:
        return f"InvoiceChecks({self.metrics.compared} compared)"

    async def check(self, account: str, saved: ReconcileState, now_ms: int) -> tuple[ComparisonRow, ...]:
        """Compare what has not been compared; answer all rows that are known of the account, oldest first."""
        rows: list[ComparisonRow] = []
        for key, invoiced in sorted(saved.invoiced.items()):
            known = decode_rows(saved.checks.get(key))
            if invoiced.invoice_id is None:
                continue
            if known is not None and (all(row.is_equal for row in known) or now_ms - invoiced.at_ms > RECHECK_MS):
                rows += known
                continue
            fresh = await self._compare(account, saved, invoiced)
            if fresh is not None and fresh != known:
                name = field_name("check", key)
                await set_fields(self._client, self._keys.billing(account), {name: encode_rows(fresh)})
                self._note(known is None, fresh)
            rows += fresh if fresh is not None else known or ()
        self._show(account, rows)
        return tuple(rows)

    async def open_periods(self, account: str, saved: ReconcileState, state: AccountState) -> tuple[ComparisonRow, ...]:
        """The periods that are not billed yet, oldest first, with nothing invoiced; ``state`` is rolled over."""
        nothing = _no_invoice(state.currency)
        rows: list[ComparisonRow] = []
        for _, link in sorted(saved.links.items()):
            if link.key in saved.invoiced:
                continue
            live = state.named(link.ledger_subscription)
            if live is not None and live.start_ms == link.ledger_start_ms:
                counts = [(usage.metric, usage.settled, live.cost_of(usage)) for usage in live.usages]
            else:
                closed = [each for each in state.closed if (each.start_ms, each.subscription) == link.key]
                counts = [(each.metric, each.units, each.cost) for each in closed]
            usages = [LedgerUsage(m, units, state.money(cost)) for m, units, cost in counts if m in link.metrics]
            try:
                rows += await self._sync.compare(account, link, usages, nothing)
            except (QueryError, SyncStateError, ValueError) as error:
                log.warning("period not compared", account=account, reason=str(error))
        return tuple(rows)

    async def _compare(
        self, account: str, saved: ReconcileState, invoiced: InvoicedPeriod
    ) -> tuple[ComparisonRow, ...] | None:
        assert invoiced.invoice_id is not None
        links = saved.links_of(invoiced.key)
        if not links:
            return None
        try:
            invoice = await self._lago.invoice(invoiced.invoice_id)
            if invoice is None or invoice.fees is None:
                return None
            rows: list[ComparisonRow] = []
            for link in links:
                usage = [
                    LedgerUsage(metric, units, invoiced.costs.get(metric, Decimal(0)))
                    for metric, units in invoiced.units.items()
                    if metric in link.metrics
                ]
                rows += await self._sync.compare(account, link, usage, invoice)
            return tuple(rows)
        except (LagoError, QueryError, SyncStateError, ValueError) as error:
            log.warning("invoice not compared", account=account, invoice=invoiced.invoice_id, reason=str(error))
            return None

    def _note(self, is_first: bool, rows: Iterable[ComparisonRow]) -> None:
        for row in rows:
            if is_first:
                self.metrics.compared += 1
                self.metrics.equal += row.is_equal
            if not row.is_equal:
                log.warning(
                    "invoice differs from the ledger",
                    account=row.account,
                    period_start_ms=row.period_start_ms,
                    metric=row.metric,
                    ledger_units=row.ledger,
                    invoiced_units=str(row.invoiced),
                    ledger_cents=row.ledger_cents,
                    invoiced_cents=row.invoiced_cents,
                )

    def _show(self, account: str, rows: Iterable[ComparisonRow]) -> None:
        shown = self.metrics.differences
        sums: dict[tuple[str, str], tuple[Decimal, int]] = {}
        for row in rows:
            units, cents = sums.get((account, row.metric), (Decimal(0), 0))
            sums[account, row.metric] = (units + row.difference, cents + row.cents_difference)
        for key in [key for key in shown if key[0] == account]:
            del shown[key]
        for key, value in sums.items():
            if (value[0] or value[1]) and len(shown) < ACCOUNTS_SHOWN_MAX:
                shown[key] = value


def is_to_check(saved: ReconcileState) -> bool:
    """Whether a period of the account is to be compared, or differed."""
    for start_ms, invoiced in saved.invoiced.items():
        known = decode_rows(saved.checks.get(start_ms)) if invoiced.invoice_id is not None else ()
        if known is None or not all(row.is_equal for row in known):
            return True
    return False


def _no_invoice(currency: str) -> Invoice:
    return Invoice(
        lago_id="", number="", type="subscription", status="draft", payment_status="pending", currency=currency,
        fees_cents=0, taxes_cents=0, prepaid_cents=0, total_cents=0, due_cents=0, issuing_date="", created_at_ms=0,
        periods=(), fees=(),
    )  # fmt: skip


def encode_rows(rows: Iterable[ComparisonRow]) -> str:
    """Rows as JSON."""
    return orjson.dumps([asdict(row) for row in rows], default=str).decode()


def decode_rows(text: str | None) -> tuple[ComparisonRow, ...] | None:
    """Rows as ``encode_rows`` wrote them; None for anything else, which is then compared anew."""
    if text is None:
        return None
    try:
        return tuple(_row(row) for row in orjson.loads(text))
    except (ValueError, TypeError, KeyError, ArithmeticError):
        return None


def _row(row: dict[str, Any]) -> ComparisonRow:
    return ComparisonRow(**{**row, "invoiced": Decimal(row["invoiced"]), "difference": Decimal(row["difference"])})
