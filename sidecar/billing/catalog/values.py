"""The contents of a catalog file, as values. Amounts in cents are of the currency's smallest coin, instants are Unix
milliseconds; a field that is None is left as it is in Lago, and a name that is None is the code for what is new.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Final, Literal

from sidecar.billing.lago.models import Plan, Tax
from sidecar.metering.openmeter.meter_query import Meter

EntryKind = Literal["tax", "metric", "meter", "plan", "webhook endpoint", "customer", "subscription", "wallet"]


@dataclass(frozen=True, slots=True)
class WantedTax:
    tax: Tax
    name: str | None = None
    description: str | None = None


@dataclass(frozen=True, slots=True)
class WantedMetric:
    """A sum over ``field_name``: hourly pushes carry many calls in one event, and a count would bill each as one.
    ``filters``: values of properties that charges may be filtered by; None: those that Lago has stay.
    """

    code: str
    field_name: str
    name: str | None = None
    description: str | None = None
    filters: Mapping[str, tuple[str, ...]] | None = None


@dataclass(frozen=True, slots=True)
class WantedPlan:
    """``plan`` is as Lago would show it, but for ids and taxes, and its name is "" where the file has none;
    ``charge_tax_codes`` are by metric.
    """

    plan: Plan
    tax_codes: tuple[str, ...] = ()
    charge_tax_codes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    description: str | None = None


@dataclass(frozen=True, slots=True)
class WantedEndpoint:
    url: str
    signature: str
    event_types: tuple[str, ...]
    name: str | None = None


@dataclass(frozen=True, slots=True)
class WantedCustomer:
    """Pairs of metadata that are not named stay."""

    id: str
    name: str | None = None
    currency: str | None = None
    timezone: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class WantedSubscription:
    external_id: str
    customer: str
    plan_code: str
    billing_time: str = "calendar"


@dataclass(frozen=True, slots=True)
class WantedWallet:
    """``metric_codes`` empty: the wallet pays everything, the plan's fee too. Credits are those it is made with."""

    customer: str
    name: str | None
    code: str | None
    currency: str
    rate: Decimal
    paid_credits: Decimal
    granted_credits: Decimal
    expires_at_ms: int | None = None
    priority: int | None = None
    metric_codes: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        return f"{self.customer}/{self.code or self.name}"


Wanted = (
    WantedTax | WantedMetric | Meter | WantedPlan | WantedEndpoint | WantedCustomer | WantedSubscription | WantedWallet
)


@dataclass(frozen=True, slots=True)
class CatalogRefusal:
    """Something the file asks for that must not be made. ``where`` is file, line and key; ``instead`` is YAML that
    would do, "" where there is none.
    """

    kind: EntryKind
    code: str
    where: str
    reason: str
    instead: str = ""


@dataclass(frozen=True, slots=True)
class Catalog:
    """A whole file, without what is refused."""

    taxes: tuple[WantedTax, ...] = ()
    metrics: tuple[WantedMetric, ...] = ()
    plans: tuple[WantedPlan, ...] = ()
    endpoint: WantedEndpoint | None = None
    customers: tuple[WantedCustomer, ...] = ()
    subscriptions: tuple[WantedSubscription, ...] = ()
    wallets: tuple[WantedWallet, ...] = ()
    refusals: tuple[CatalogRefusal, ...] = ()


METER_GROUPS: Final[Mapping[str, str]] = {
    "metric": "$.metric",
    "endpoint": "$.endpoint",
    "method": "$.method",
    "status_code": "$.status_code",
}
"""Paths begin at the event's data. ``metric`` is needed, since a meter takes all events of its type."""


def meter_of(metric_code: str, event_type: str) -> Meter:
    """The OpenMeter meter of a metric: the units of the gateway's events, told apart by ``METER_GROUPS``."""
    return Meter(metric_code, "SUM", "$.units", event_type, METER_GROUPS)
