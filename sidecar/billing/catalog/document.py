"""A catalog file: YAML to ``Catalog``, with errors that name line and key.

A mistake of the file is an error. What is well written but must not be made, such as a price that cannot be enforced in
real time, is a refusal, so that the rest can still be compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

from sidecar.billing.catalog.charges import RefusedPrice, charge_of, metric_of
from sidecar.billing.catalog.sections import CatalogFile, CustomerSection, MetricSection, PlanSection
from sidecar.billing.catalog.values import (
    Catalog,
    CatalogRefusal,
    WantedCustomer,
    WantedEndpoint,
    WantedMetric,
    WantedPlan,
    WantedSubscription,
    WantedTax,
    WantedWallet,
)
from sidecar.billing.lago.models import Charge, Customer, Plan, Tax
from sidecar.billing.reconcile.alerts import BillingRefused
from sidecar.billing.reconcile.enforcement_policy import enforcement_policy
from sidecar.billing.settings import LagoSettings
from sidecar.config.document import Node
from sidecar.config.errors import ConfigError, Problem, dotted
from sidecar.config.reading import read_document
from sidecar.config.validation import locate, validate

_SETTINGS = LagoSettings.model_validate({"default_mode": "prepaid"})
"""Of no bank: only metadata is checked here, and whether something says the mode is known where the gateway runs."""

_COUNTS = (
    "counts events, not calls: an hour of usage is pushed as one event and would be billed as one call, since Lago"
    " drops field_name with it"
)
_AGGREGATIONS = {
    "count_agg": _COUNTS,
    "unique_count_agg": "counts different values, not calls",
    "max_agg": "bills the largest event of a period, so no call has a price of its own",
    "latest_agg": "bills the last event of a period, so no call has a price of its own",
    "weighted_sum_agg": "weighs usage by time, so the price of a call is known only when the period has ended",
    "custom_agg": "is computed by code in Lago",
}


def load_catalog(path: Path) -> Catalog:
    """Read a catalog file.

    Raises:
        ConfigError: everything that is wrong, each with its line and key.
    """
    root = read_document(path)
    return _Reader(root, validate(CatalogFile, root)).catalog()


class _Reader:
    """Builds the values, gathering refusals and problems that sections have with each other."""

    def __init__(self, root: Node, file: CatalogFile) -> None:
        self._root = root
        self._file = file
        self._refusals: list[CatalogRefusal] = []
        self._problems: list[Problem] = []
        self._currencies = tuple(map(self._currency, range(len(file.customers))))

    def catalog(self) -> Catalog:
        file = self._file
        endpoint = file.webhook_endpoint
        catalog = Catalog(
            taxes=tuple(
                WantedTax(Tax(each.code, each.rate, each.default), each.name, each.description) for each in file.taxes
            ),
            metrics=tuple(self._metrics()),
            plans=tuple(self._plans()),
            endpoint=None
            if endpoint is None
            else WantedEndpoint(endpoint.url, endpoint.signature, endpoint.event_types, endpoint.name),
            customers=tuple(map(self._customer, range(len(file.customers)))),
            subscriptions=tuple(
                WantedSubscription(each.subscription or each.id, each.id, each.plan, each.billing_time or "calendar")
                for each in file.customers
                if each.plan is not None
            ),
            wallets=tuple(self._wallets()),
            refusals=tuple(self._refusals),
        )
        if self._problems:
            raise ConfigError(self._problems)
        return catalog

    def _metrics(self) -> Iterator[WantedMetric]:
        for index, section in enumerate(self._file.metrics):
            if refused := _refused_metric(section):
                key, reason = refused
                wanted = f"{{code: {section.code}, aggregation_type: sum_agg, field_name: {section.field_name}}}"
                where = self._where("metrics", index, key)
                self._refusals.append(CatalogRefusal("metric", section.code, where, reason, wanted))
            else:
                filters = None if section.filters is None else {each.key: each.values for each in section.filters}
                yield WantedMetric(section.code, section.field_name, section.name, section.description, filters)

    def _plans(self) -> Iterator[WantedPlan]:
        for index, section in enumerate(self._file.plans):
            before = len(self._refusals)
            charges = tuple(self._charges(index, section))
            for key, reason in _refused_plan(section):
                self._refusals.append(CatalogRefusal("plan", section.code, self._where("plans", index, key), reason))
            if len(self._refusals) == before:
                yield _plan(section, charges)

    def _charges(self, index: int, section: PlanSection) -> Iterator[Charge]:
        seen: set[str] = set()
        for number, each in enumerate(section.charges):
            charge, metric = charge_of(each), metric_of(each)
            if metric in seen:
                charge = RefusedPrice(f"{metric} has a charge already; a call can be charged by one", "")
            seen.add(metric)
            if isinstance(charge, RefusedPrice):
                where, reason = self._where("plans", index, "charges", number), charge.reason
                self._refusals.append(
                    CatalogRefusal("plan", section.code, where, f"{metric}: {reason}", charge.instead)
                )
            else:
                yield charge

    def _customer(self, index: int) -> WantedCustomer:
        section = self._file.customers[index]
        currency = self._currencies[index]
        wanted = WantedCustomer(section.id, section.name, currency, section.timezone, section.metadata)
        try:
            enforcement_policy(
                Customer("", section.id, currency, "UTC", section.metadata), None, bool(section.wallets), _SETTINGS
            )
        except BillingRefused as error:
            self._problem(("customers", index, "metadata"), str(error).removeprefix("metadata "))
        return wanted

    def _currency(self, index: int) -> str | None:
        """The customer's currency; by default that of its plan, or else of its first wallet."""
        section = self._file.customers[index]
        said: list[tuple[tuple[str | int, ...], str]] = []
        if section.currency is not None:
            said.append((("currency",), section.currency))
        if (of_plan := self._plan_currency(section)) is not None:
            said.append((("plan",), of_plan))
        for number, wallet in enumerate(section.wallets):
            if wallet.currency is not None:
                said.append((("wallets", number, "currency"), wallet.currency))
        for key, currency in said[1:]:
            if currency != said[0][1]:
                what = f"is in {currency}, but {dotted(said[0][0])} in {said[0][1]}; Lago bills a customer in one"
                self._problem(("customers", index, *key), what)
        return said[0][1] if said else None

    def _plan_currency(self, section: CustomerSection) -> str | None:
        return next((plan.currency for plan in self._file.plans if plan.code == section.plan), None)

    def _wallets(self) -> Iterator[WantedWallet]:
        for index, section in enumerate(self._file.customers):
            for number, each in enumerate(section.wallets):
                currency = each.currency or self._currencies[index]
                if currency is None:
                    self._problem(("customers", index, "wallets", number, "currency"), "is missing")
                    continue
                yield WantedWallet(
                    section.id, each.name, each.code, currency, each.rate, each.paid_credits, each.granted_credits,
                    each.expiration_at, each.priority, each.applies_to,
                )  # fmt: skip

    def _problem(self, path: tuple[str | int, ...], message: str) -> None:
        node, _ = locate(self._root, path)
        self._problems.append(Problem(node.origin, dotted(path), message))

    def _where(self, *path: str | int) -> str:
        node, known = locate(self._root, path)
        return f"{node.origin}: {dotted(known)}"


def _refused_metric(section: MetricSection) -> tuple[str, str] | None:
    if section.aggregation_type != "sum_agg":
        reason = _AGGREGATIONS.get(section.aggregation_type, "is not a sum")
        return "aggregation_type", f"{section.aggregation_type} {reason}"
    if section.recurring:
        return "recurring", "a recurring sum never starts again at 0, and the ledger counts each period from 0"
    return None


def _refused_plan(section: PlanSection) -> Iterator[tuple[str, str]]:
    if section.minimum_commitment is not None:
        yield "minimum_commitment", "it bills a difference at the end of a period that no balance shows before"
    if section.usage_thresholds:
        yield "usage_thresholds", "progressive billing debits wallets in the middle of a period"
    if section.fixed_charges:
        yield "fixed_charges", "they are not usage; the gateway does not take them into account. Put them into amount"


def _plan(section: PlanSection, charges: tuple[Charge, ...]) -> WantedPlan:
    plan = Plan(
        "", section.code, section.name or "", section.interval, section.cents(), section.currency,
        section.pay_in_advance, charges, Decimal(section.trial_days), section.bill_charges_monthly,
    )  # fmt: skip
    codes = {metric_of(each): each.taxes for each in section.charges if each.taxes}
    return WantedPlan(plan, section.taxes, codes, section.description)
