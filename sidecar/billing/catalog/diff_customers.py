"""Compares customers, their subscriptions and wallets. A wallet gets its credits once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from sidecar.billing.catalog.changes import Change, FieldChange, Observed
from sidecar.billing.catalog.compare import coins, customer_fields, instant, wallet_fields
from sidecar.billing.catalog.sections import METADATA_MAX
from sidecar.billing.catalog.values import Catalog, WantedCustomer, WantedSubscription, WantedWallet
from sidecar.billing.lago.models import Plan, Subscription, Wallet

PER_YEAR: Final[Mapping[str, int]] = {"weekly": 52, "monthly": 12, "quarterly": 4, "semiannual": 2, "yearly": 1}
"""By which Lago compares the fees of two plans (lago-api ``app/models/plan.rb``, ``yearly_amount_cents``)."""


def customer(wanted: WantedCustomer, observed: Observed) -> Change:
    found = observed.customers.get(wanted.id)
    fields = customer_fields(wanted, found)
    if found is None:
        return Change("create", "customer", wanted.id, fields, wanted=wanted)
    if not fields:
        return Change("keep", "customer", wanted.id)
    in_use = observed.subscriptions.get(wanted.id) or observed.wallets.get(wanted.id)
    if found.currency is not None and in_use and any(field.name == "currency" for field in fields):
        note = "Lago does not change the currency of a customer with subscriptions or wallets: make another customer"
        return Change("refuse", "customer", wanted.id, fields, (note,))
    pairs = {**found.metadata, **wanted.metadata}
    if len(pairs) > METADATA_MAX:
        note = f"with those that Lago has there would be {len(pairs)} pairs of metadata; it keeps {METADATA_MAX}"
        return Change("refuse", "customer", wanted.id, fields, (note,))
    return Change("update", "customer", wanted.id, fields, wanted=wanted)


def subscription(wanted: WantedSubscription, catalog: Catalog, observed: Observed) -> Change:
    plans = {**observed.plans, **{each.plan.code: each.plan for each in catalog.plans}}
    if (reason := _no_plan(wanted, catalog, plans)) is not None:
        return Change("refuse", "subscription", wanted.external_id, notes=(reason,))
    theirs = observed.subscriptions.get(wanted.customer, ())
    running = [each for each in theirs if each.status in ("active", "pending")]
    current = next((each for each in running if each.external_id == wanted.external_id and each.is_active), None)
    current = current or next((each for each in running if each.external_id == wanted.external_id), None)
    shown = f"{wanted.plan_code} for {wanted.customer}"
    if current is None:
        if running:
            other = running[0].external_id
            note = (
                f"{wanted.customer} has the subscription {other} of {running[0].plan_code} already, and would be billed"
                f" twice: say subscription: {other}, or end it in Lago"
            )
            return Change("refuse", "subscription", wanted.external_id, notes=(note,))
        fields = [FieldChange("plan", None, shown), FieldChange("billing_time", None, wanted.billing_time)]
        return Change("create", "subscription", wanted.external_id, tuple(fields), wanted=wanted)
    if current.plan_code == wanted.plan_code:
        return Change("keep", "subscription", wanted.external_id, notes=tuple(_kept(current, wanted)))
    if current.next_plan_code == wanted.plan_code:
        note = f"changes from {current.plan_code} to {wanted.plan_code} on {_day(current)}"
        return Change("keep", "subscription", wanted.external_id, notes=(note,))
    fields = [FieldChange("plan", current.plan_code, wanted.plan_code)]
    notes = _change_of_plan(current, plans.get(current.plan_code), plans[wanted.plan_code])
    return Change("update", "subscription", wanted.external_id, tuple(fields), tuple(notes), wanted)


def _no_plan(wanted: WantedSubscription, catalog: Catalog, plans: Mapping[str, Plan]) -> str | None:
    if any(each.kind == "plan" and each.code == wanted.plan_code for each in catalog.refusals):
        return f"its plan {wanted.plan_code} is refused"
    if wanted.plan_code not in plans:
        return f"there is no plan {wanted.plan_code}, neither in the file nor in Lago"
    return None


def _kept(current: Subscription, wanted: WantedSubscription) -> Iterator[str]:
    if current.billing_time != wanted.billing_time:
        yield f"is billed by {current.billing_time}, which cannot be changed while it runs"
    if current.next_plan_code is not None:
        yield f"changes to {current.next_plan_code} on {_day(current)}; cancel that in Lago"


def _day(current: Subscription) -> str:
    return current.downgrade_date or "the next billing day"


def _change_of_plan(current: Subscription, old: Plan | None, new: Plan) -> Iterator[str]:
    if not current.is_active:
        yield "it has not started yet, and starts with the new plan"
    elif old is None:
        yield "Lago changes it at once or at the end of the period, by which of the plans' fees is higher"
    elif _yearly(new) >= _yearly(old):
        yield (
            "an upgrade, at once: Lago bills the old plan and the usage so far now, and the new plan counts from 0."
            " Usage that is not in Lago by then is never billed: run"
            f" `sidecar sync --once --flush {current.customer}` right before"
        )
    else:
        yield "a downgrade: the old plan stays in force until the end of the period"


def _yearly(plan: Plan) -> int:
    return plan.amount_cents * PER_YEAR.get(plan.interval, 12)


def wallet(wanted: WantedWallet, catalog: Catalog, observed: Observed, now_ms: int) -> Change:
    """A wallet is made once, with its credits; what was paid into it since is not compared."""
    wallets = observed.wallets.get(wanted.customer, ())
    found = existing(wanted, wallets)
    missing = [code for code in wanted.metric_codes if code not in observed.metrics]
    missing = [code for code in missing if code not in {each.code for each in catalog.metrics}]
    fields = wallet_fields(wanted, found)
    if missing:
        note = f"there is no metric {', '.join(missing)}, neither in the file nor in Lago"
        return Change("refuse", "wallet", wanted.label, fields, (note,))
    if found is not None:
        return _found(wanted, found, fields)
    if (ended := _ended(wanted, wallets)) is not None:
        when = instant(ended.terminated_at_ms) or "some time ago"
        note = (
            f"ended {when} and is not made again, since its credits would be given twice; a new one needs another code"
        )
        return Change("keep", "wallet", wanted.label, notes=(note,))
    if wanted.expires_at_ms is not None and wanted.expires_at_ms <= now_ms:
        note = f"expiration_at {instant(wanted.expires_at_ms)} has passed: Lago refuses such a wallet"
        return Change("refuse", "wallet", wanted.label, fields, (note,))
    return Change("create", "wallet", wanted.label, fields, tuple(_wallet_notes(wanted, catalog, observed)), wanted)


def _found(wanted: WantedWallet, found: Wallet, fields: tuple[FieldChange, ...]) -> Change:
    if not fields:
        return Change("keep", "wallet", wanted.label)
    fixed = [field.name for field in fields if field.name in ("currency", "rate")]
    if fixed:
        note = (
            f"Lago does not change {' and '.join(fixed)} of a wallet: end it in Lago and give the new one another code"
        )
        return Change("refuse", "wallet", wanted.label, fields, (note,))
    return Change("update", "wallet", wanted.label, fields, wanted=wanted, lago_id=found.lago_id)


def _wallet_notes(wanted: WantedWallet, catalog: Catalog, observed: Observed) -> Iterator[str]:
    if wanted.paid_credits:
        yield "Lago makes an invoice for the paid credits; they are in the wallet when it is paid"
    plans = {**observed.plans, **{each.plan.code: each.plan for each in catalog.plans}}
    codes = [each.plan_code for each in catalog.subscriptions if each.customer == wanted.customer]
    for plan in (plans[code] for code in codes if code in plans):
        if plan.amount_cents and not wanted.metric_codes:
            fee = f"{coins(plan.amount_cents, plan.currency)} {plan.currency}"
            yield f"it pays the fee of {plan.code}, {fee}, too; applies_to: [metrics] keeps it for calls"


def existing(wanted: WantedWallet, wallets: tuple[Wallet, ...]) -> Wallet | None:
    """The customer's active wallet of that code, or else of that name."""
    active = [each for each in wallets if each.is_active]
    return _named(wanted, active)


def _ended(wanted: WantedWallet, wallets: tuple[Wallet, ...]) -> Wallet | None:
    return _named(wanted, [each for each in wallets if not each.is_active])


def _named(wanted: WantedWallet, wallets: list[Wallet]) -> Wallet | None:
    by_code = [each for each in wallets if wanted.code is not None and each.code == wanted.code]
    by_name = [each for each in wallets if wanted.name is not None and each.name == wanted.name]
    return next(iter([*by_code, *by_name]), None)
