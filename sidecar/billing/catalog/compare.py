"""Which fields of what is there differ from what is wanted. ``found`` None: it is to be made, and all fields are shown.

Only what Lago's answers tell is compared: names of taxes and customers, and descriptions, are written and never read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from itertools import zip_longest
from typing import TypeVar

from sidecar.billing.catalog.changes import FieldChange
from sidecar.billing.catalog.charge_tables import charge_tables
from sidecar.billing.catalog.tables import text_of
from sidecar.billing.catalog.values import WantedCustomer, WantedEndpoint, WantedMetric, WantedTax, WantedWallet
from sidecar.billing.lago.models import (
    BillableMetric,
    Charge,
    Customer,
    Plan,
    Tax,
    Wallet,
    WebhookEndpoint,
)
from sidecar.billing.reconcile.charge_prices import Unenforceable
from sidecar.ledger.pricing.currencies import EXPONENTS
from sidecar.metering.openmeter.meter_query import Meter

F = TypeVar("F")
Shown = str | None

GROUP_FIELD = "group_by."
"""Before the name of a group, in the names of fields of a meter."""

_SECRET_PREFIX = "quota_api_key"  # noqa: S105 - the name of a field, not a secret
_DIGEST_CHARS_SHOWN = 8


def tax_fields(wanted: WantedTax, found: Tax | None) -> tuple[FieldChange, ...]:
    return _differences(
        wanted.tax,
        found,
        {"rate": lambda tax: f"{text_of(tax.rate)} %", "default": lambda tax: yes_no(tax.is_default)},
    )


def metric_fields(wanted: WantedMetric, found: BillableMetric | None) -> tuple[FieldChange, ...]:
    name = wanted.name or (found.name if found is not None else wanted.code)
    filters = wanted.filters if wanted.filters is not None else found.filters if found is not None else {}
    target = BillableMetric("", wanted.code, name, "sum_agg", wanted.field_name, False, filters=filters)
    return _differences(
        target,
        found,
        {
            "filters": lambda metric: _filters_text(metric.filters),
            "name": lambda metric: metric.name,
            "aggregation": lambda metric: metric.aggregation,
            "field_name": lambda metric: metric.field_name,
            "recurring": lambda metric: yes_no(metric.recurring),
            "expression": lambda metric: "some" if metric.has_expression else None,
        },
    )


def _filters_text(filters: Mapping[str, Sequence[str]]) -> Shown:
    return ", ".join(f"{name}={'|'.join(sorted(values))}" for name, values in sorted(filters.items())) or None


def meter_fields(wanted: Meter, found: Meter | None) -> tuple[FieldChange, ...]:
    """More groups than wanted do no harm. What depends on the time is for :func:`counts_later`."""
    views: dict[str, Callable[[Meter], Shown]] = {
        "event_type": lambda meter: meter.event_type,
        "aggregation": lambda meter: f"{meter.aggregation} {meter.value_property or ''}".strip(),
    }
    for group in wanted.group_by:
        views[f"{GROUP_FIELD}{group}"] = lambda meter, group=group: meter.group_by.get(group)  # type: ignore[misc]
    return _differences(wanted, found, views)


def counts_later(found: Meter, now_ms: int) -> bool:
    """Whether the meter counts nothing yet: OpenMeter takes events from before its ``eventFrom``, and says nothing."""
    return found.event_from_ms is not None and found.event_from_ms > now_ms


def plan_fields(wanted: Plan, found: Plan | None) -> tuple[FieldChange, ...]:
    """``wanted`` has its taxes. Charges are matched by metric, and compared by what they cost."""
    plain = _differences(
        wanted,
        found,
        {
            "name": lambda plan: plan.name or (found.name if found is not None else plan.code),
            "interval": lambda plan: plan.interval,
            "amount": lambda plan: coins(plan.amount_cents, plan.currency),
            "currency": lambda plan: plan.currency,
            "pay_in_advance": lambda plan: yes_no(plan.pay_in_advance),
            "trial_days": lambda plan: text_of(plan.trial_days) if plan.trial_days else "no",
            "bill_charges_monthly": lambda plan: yes_no(plan.bill_charges_monthly),
            "taxes": lambda plan: tax_codes(plan.taxes),
        },
    )
    return (*plain, *_charge_fields(wanted, found))


def _charge_fields(wanted: Plan, found: Plan | None) -> Iterator[FieldChange]:
    groups = by_metric(wanted.charges), by_metric(found.charges if found is not None else ())
    for metric in dict.fromkeys([*groups[0], *groups[1]]):
        mine, theirs = groups[0].get(metric, []), groups[1].get(metric, [])
        for after, before in zip_longest(mine, theirs):
            if after is None or before is None or not same_charge(after, before):
                was, will = (None if each is None else charge_text(each) for each in (before, after))
                yield FieldChange(f"charges.{metric}", was, will)


def same_charge(one: Charge, other: Charge) -> bool:
    """Whether they cost the same, in the same way; ranges of either style may say so."""
    try:
        tables = charge_tables(one, _PLAIN, ()), charge_tables(other, _PLAIN, ())
    except Unenforceable:
        return False
    options = [(charge.invoiceable, tax_codes(charge.taxes)) for charge in (one, other)]
    return tables[0] == tables[1] and options[0] == options[1]


_PLAIN = Plan("", "", "", "monthly", 0, "USD", False, ())


def charge_text(charge: Charge) -> str:
    """A charge in one line; one that cannot be enforced by its model and the reason."""
    try:
        text = charge_tables(charge, _PLAIN, ()).text()
    except Unenforceable as error:
        text = f"{charge.model} ({error.reason})"
    text += "" if charge.invoiceable else ", not invoiced"
    return f"{text}, taxes {tax_codes(charge.taxes)}" if charge.taxes else text


def by_metric(charges: Iterable[Charge]) -> dict[str, list[Charge]]:
    groups: dict[str, list[Charge]] = {}
    for charge in charges:
        groups.setdefault(charge.metric_code, []).append(charge)
    return groups


def endpoint_fields(wanted: WantedEndpoint, found: WebhookEndpoint | None) -> tuple[FieldChange, ...]:
    """An endpoint that gets every type gets those that are wanted, as all do in versions of Lago that cannot choose."""
    target = WebhookEndpoint("", wanted.url, wanted.signature, wanted.event_types, wanted.name)
    everything = found is not None and (found.event_types is None or "*" in found.event_types)
    views: dict[str, Callable[[WebhookEndpoint], Shown]] = {"signature": lambda endpoint: endpoint.signature}
    if not everything:
        views["event_types"] = lambda endpoint: ", ".join(sorted(endpoint.event_types or ()))
    if wanted.name is not None:
        views["name"] = lambda endpoint: endpoint.name
    return _differences(target, found, views)


def customer_fields(wanted: WantedCustomer, found: Customer | None) -> tuple[FieldChange, ...]:
    target = Customer("", wanted.id, wanted.currency, wanted.timezone or "UTC", wanted.metadata)
    views: dict[str, Callable[[Customer], Shown]] = {}
    if wanted.currency is not None:
        views["currency"] = lambda customer: customer.currency
    if wanted.timezone is not None:
        views["timezone"] = lambda customer: customer.timezone
    plain = _differences(target, found, views)
    return (*plain, *_metadata_fields(wanted.metadata, found.metadata if found is not None else {}))


def _metadata_fields(wanted: Mapping[str, str], found: Mapping[str, str]) -> Iterator[FieldChange]:
    for key, value in wanted.items():
        if found.get(key) != value:
            yield FieldChange(f"metadata.{key}", _hidden(key, found.get(key)), _hidden(key, value))


def _hidden(key: str, value: Shown) -> Shown:
    """Digests of API keys are long and nobody else's business."""
    if value is None or not key.startswith(_SECRET_PREFIX):
        return value
    return f"{value[:_DIGEST_CHARS_SHOWN]}…"


def wallet_fields(wanted: WantedWallet, found: Wallet | None) -> tuple[FieldChange, ...]:
    """The fields that can be changed, and rate and currency, which cannot. Credits are shown only for a wallet to be
    made."""
    views: dict[str, tuple[Shown, Shown]] = {}

    def add(name: str, before: Shown, after: Shown) -> None:
        views[name] = (before if found is not None else None, after)

    add("currency", found.currency if found else None, wanted.currency)
    add("rate", text_of(found.rate_amount) if found else None, text_of(wanted.rate))
    if found is None:
        add("paid_credits", None, text_of(wanted.paid_credits))
        add("granted_credits", None, text_of(wanted.granted_credits))
    if wanted.name is not None:
        add("name", found.name if found else None, wanted.name)
    if wanted.priority is not None:
        add("priority", str(found.priority) if found else None, str(wanted.priority))
    if wanted.expires_at_ms is not None:
        add("expiration_at", instant(found.expires_at_ms) if found else None, instant(wanted.expires_at_ms))
    add("applies_to", _scope(found) if found else None, ", ".join(sorted(wanted.metric_codes)) or "everything")
    return tuple(
        FieldChange(name, before, after)
        for name, (before, after) in views.items()
        if (found is None and after is not None) or before != after
    )


def _scope(wallet: Wallet) -> str:
    parts = [*sorted(wallet.metric_codes), *(f"fees of type {each}" for each in sorted(wallet.fee_types))]
    return ", ".join(parts) or "everything"


def _differences(wanted: F, found: F | None, views: Mapping[str, Callable[[F], Shown]]) -> tuple[FieldChange, ...]:
    if found is None:
        made = ((name, view(wanted)) for name, view in views.items())
        return tuple(FieldChange(name, None, value) for name, value in made if value not in (None, "no"))
    rows = ((name, view(found), view(wanted)) for name, view in views.items())
    return tuple(FieldChange(*row) for row in rows if row[1] != row[2])


def coins(cents: int, currency: str) -> str:
    """Money in units of a currency; of one that is not known, in its cents."""
    decimals = EXPONENTS.get(currency, 2)
    return f"{Decimal(cents).scaleb(-decimals):.{decimals}f}"


def instant(at_ms: int | None) -> Shown:
    return None if at_ms is None else f"{datetime.fromtimestamp(at_ms // 1000, UTC):%Y-%m-%dT%H:%M:%SZ}"


def tax_codes(taxes: Iterable[Tax]) -> Shown:
    return ", ".join(sorted(tax.code for tax in taxes)) or None


def yes_no(flag: bool) -> str:
    return "yes" if flag else "no"
