"""The changes to make, as values: people read them first, ``apply`` makes them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, get_args

from sidecar.billing.catalog.values import EntryKind, Wanted
from sidecar.billing.lago.models import (
    BillableMetric,
    Customer,
    Plan,
    Subscription,
    Tax,
    Wallet,
    WebhookEndpoint,
)
from sidecar.metering.openmeter.meter_query import Meter

ChangeAction = Literal["create", "update", "keep", "refuse"]
ACTIONS: Final[tuple[ChangeAction, ...]] = get_args(ChangeAction)


@dataclass(frozen=True, slots=True)
class FieldChange:
    """One field. ``before`` is None where the thing, or the field, is not there yet; ``after`` where it goes."""

    name: str
    before: str | None
    after: str | None


@dataclass(frozen=True, slots=True)
class Change:
    """``notes`` say what follows from it, and for a refusal why and what to do. ``wanted`` is what is written, and
    ``lago_id`` where to, if the path needs it.
    """

    action: ChangeAction
    kind: EntryKind
    code: str
    fields: tuple[FieldChange, ...] = ()
    notes: tuple[str, ...] = ()
    wanted: Wanted | None = None
    lago_id: str | None = None

    @property
    def writes(self) -> bool:
        return self.action in ("create", "update")


def counts(changes: Iterable[Change]) -> dict[ChangeAction, int]:
    """How many there are of each action, zeros included."""
    found = Counter(change.action for change in changes)
    return {action: found[action] for action in ACTIONS}


@dataclass(frozen=True, slots=True)
class Subscribers:
    """Of a plan: ``ever`` counts those that ended too, which is what Lago goes by."""

    active: int = 0
    ever: int = 0


@dataclass(frozen=True, slots=True)
class Observed:
    """What Lago and OpenMeter have of what a catalog names, and all plans, metrics and taxes by code.

    ``subscribers`` are by plan; what is by customer has only those of the catalog. ``meters`` None: no OpenMeter is
    configured.
    """

    taxes: Mapping[str, Tax] = field(default_factory=dict)
    metrics: Mapping[str, BillableMetric] = field(default_factory=dict)
    plans: Mapping[str, Plan] = field(default_factory=dict)
    subscribers: Mapping[str, Subscribers] = field(default_factory=dict)
    endpoints: tuple[WebhookEndpoint, ...] = ()
    customers: Mapping[str, Customer] = field(default_factory=dict)
    subscriptions: Mapping[str, tuple[Subscription, ...]] = field(default_factory=dict)
    wallets: Mapping[str, tuple[Wallet, ...]] = field(default_factory=dict)
    meters: Mapping[str, Meter] | None = None
