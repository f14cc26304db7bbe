"""Makes the changes one by one, and stops at the first that fails.

Nothing is taken back: what was made is found there when it is run again. Lago takes some changes without doing them,
so each answer is compared with what was wanted. A wallet is looked for once more right before it is made: there is no
other way to make it once (lago-api issue 5870).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sidecar.billing.catalog import bodies
from sidecar.billing.catalog.changes import Change, FieldChange, Observed
from sidecar.billing.catalog.compare import (
    customer_fields,
    endpoint_fields,
    meter_fields,
    metric_fields,
    plan_fields,
    tax_fields,
    wallet_fields,
)
from sidecar.billing.catalog.diff_customers import existing
from sidecar.billing.catalog.values import (
    WantedCustomer,
    WantedEndpoint,
    WantedMetric,
    WantedPlan,
    WantedSubscription,
    WantedTax,
    WantedWallet,
)
from sidecar.billing.lago import parsing
from sidecar.billing.lago.client import LagoClient
from sidecar.billing.lago.errors import LagoError
from sidecar.billing.lago.json_fields import Fields
from sidecar.billing.lago.transport import segment
from sidecar.metering.openmeter.meter_query import Meter, MeterQuery, QueryError

UNCERTAIN: Final = "it may have been made all the same: see with `sidecar catalog diff`, which writes nothing"


@dataclass(frozen=True, slots=True)
class ApplyOutcome:
    """``done`` and ``left`` are the changes that were made and that were not; ``failed`` is the first of ``left``, if
    something went wrong, and ``reason`` what.
    """

    done: tuple[Change, ...]
    left: tuple[Change, ...] = ()
    failed: Change | None = None
    reason: str = ""


class NotApplied(Exception):
    """Lago took the request and did something else. The message says what stayed as it was."""


async def apply(
    changes: Sequence[Change], observed: Observed, lago: LagoClient, openmeter: MeterQuery | None
) -> ApplyOutcome:
    """Make the changes, of which none may be a refusal."""
    assert all(change.action != "refuse" for change in changes), "refusals are for people"
    writing = [change for change in changes if change.writes]
    applier = _Applier(observed, lago, openmeter)
    for index, change in enumerate(writing):
        try:
            await applier.make(change)
        except (LagoError, QueryError, NotApplied) as error:
            return ApplyOutcome(tuple(writing[:index]), tuple(writing[index:]), change, _reason(error))
    return ApplyOutcome(tuple(writing))


def _reason(error: Exception) -> str:
    uncertain = isinstance(error, LagoError) and error.transient and not error.unsent
    return f"{error}; {UNCERTAIN}" if uncertain else str(error)


class _Applier:
    def __init__(self, observed: Observed, lago: LagoClient, openmeter: MeterQuery | None) -> None:
        self._observed = observed
        self._lago = lago
        self._openmeter = openmeter

    async def make(self, change: Change) -> None:
        """Raises ``LagoError``, ``QueryError`` or ``NotApplied``."""
        match change.wanted:
            case WantedTax() as tax:
                await self._tax(change, tax)
            case WantedMetric() as metric:
                await self._metric(change, metric)
            case Meter() as meter:
                await self._meter(change, meter)
            case WantedPlan() as plan:
                await self._plan(change, plan)
            case WantedEndpoint() as endpoint:
                await self._endpoint(change, endpoint)
            case WantedCustomer() as customer:
                await self._customer(customer)
            case WantedSubscription() as subscription:
                await self._subscription(subscription)
            case WantedWallet() as wallet:
                await self._wallet(change, wallet)
            case None:
                raise AssertionError("a change that writes says what")

    async def _tax(self, change: Change, wanted: WantedTax) -> None:
        body = bodies.tax_body(wanted, new=change.action == "create")
        if change.action == "create":
            answer = await self._lago.create_tax(body)
        else:
            answer = parsing.tax(await self._update("taxes", wanted.tax.code, "tax", body))
        _check(tax_fields(wanted, answer))

    async def _metric(self, change: Change, wanted: WantedMetric) -> None:
        body = bodies.metric_body(wanted, new=change.action == "create")
        if change.action == "create":
            answer = await self._lago.create_metric(body)
        else:
            answer = await self._lago.update_metric(wanted.code, body)
        _check(metric_fields(wanted, answer))

    async def _meter(self, change: Change, wanted: Meter) -> None:
        assert self._openmeter is not None, "meters are compared with an OpenMeter only"
        if change.action == "create":
            answer = await self._openmeter.create_meter(wanted)
        else:
            answer = await self._openmeter.update_meter(wanted)
        _check(meter_fields(wanted, answer), "OpenMeter")

    async def _plan(self, change: Change, wanted: WantedPlan) -> None:
        ids = {metric.code: metric.lago_id for metric in await self._lago.billable_metrics()}
        missing = [charge.metric_code for charge in wanted.plan.charges if charge.metric_code not in ids]
        if missing:
            raise NotApplied(f"Lago no longer has the metric {', '.join(missing)}")
        found = self._observed.plans.get(wanted.plan.code)
        body = bodies.plan_body(wanted, ids, found)
        if change.action == "create":
            answer = await self._lago.create_plan(body)
        else:
            answer = await self._lago.update_plan(wanted.plan.code, body)
        _check(plan_fields(wanted.plan, answer))

    async def _endpoint(self, change: Change, wanted: WantedEndpoint) -> None:
        body = bodies.endpoint_body(wanted)
        if change.lago_id is None:
            answer = await self._lago.create_webhook_endpoint(body)
        else:
            answer = await self._lago.update_webhook_endpoint(change.lago_id, body)
        _check(endpoint_fields(wanted, answer))

    async def _customer(self, wanted: WantedCustomer) -> None:
        """First without metadata, since the answer has the ids by which its pairs are changed."""
        body = bodies.customer_body(wanted)
        made = await self._lago.create("/customers", {"customer": body}, repeatable=True)
        row = Fields(made, "POST /customers").row("customer")
        pairs = bodies.metadata_body(wanted, row.rows("metadata"))
        answer = parsing.customer(row)
        if any(answer.metadata.get(key) != value for key, value in wanted.metadata.items()):
            answer = await self._lago.create_customer({"external_id": wanted.id, "metadata": pairs})
        _check(customer_fields(wanted, answer), hint="; time zones of customers need a premium licence")

    async def _subscription(self, wanted: WantedSubscription) -> None:
        answer = await self._lago.create_subscription(bodies.subscription_body(wanted))
        if wanted.plan_code not in (answer.plan_code, answer.next_plan_code):
            _check((FieldChange("plan", answer.plan_code, wanted.plan_code),))

    async def _wallet(self, change: Change, wanted: WantedWallet) -> None:
        if change.lago_id is not None:
            body = bodies.wallet_changes(wanted, (field.name for field in change.fields))
            answer = parsing.wallet(await self._update("wallets", change.lago_id, "wallet", body))
            _check(wallet_fields(wanted, answer))
        elif existing(wanted, await self._lago.wallets(wanted.customer)) is None:
            await self._lago.create_wallet(bodies.wallet_body(wanted))

    async def _update(self, collection: str, of: str, name: str, body: Mapping[str, Any]) -> Fields:
        part = segment(of)
        assert part is not None, "Lago's ids and the file's codes fit into a path"
        answer = await self._lago.update(f"/{collection}/{part}", {name: body})
        return Fields(answer, f"PUT /{collection}/{{id}}").row(name)


def _check(left: Sequence[FieldChange], whose: str = "Lago", hint: str = "") -> None:
    """Raises ``NotApplied`` if an answer still differs from what was wanted."""
    if left:
        kept = ", ".join(f"{field.name} {field.before or 'empty'} instead of {field.after}" for field in left)
        hint = hint if any(field.name == "timezone" for field in left) else ""
        raise NotApplied(f"{whose} took the request and kept {kept}{hint}")
