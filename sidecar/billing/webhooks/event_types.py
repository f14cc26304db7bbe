"""Every webhook type of Lago and what is done with it (lago-api ``config/webhook_event_types.yml``; Lago's OpenAPI
document, "webhooks").

A type requests a reload where something may have changed that the ledger is loaded from: wallets, plans, subscriptions,
taxes and metadata of customers, invoices that close or reopen periods. It is ignored where it is about documents,
providers or things that end in one of those types anyway. Nothing but names is ever taken from a payload.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final


class ObjectKind(Enum):
    """The kind of object that a payload names: the first part of a reload request's name."""

    ACCOUNT = "account"
    WALLET = "wallet"
    PLAN = "plan"
    SUBSCRIPTION = "subscription"


class Action(Enum):
    """``RELOAD`` what the first path with a name names. ``SWEEP``: anything may be concerned. ``NOTE``: for
    people, in the log."""

    RELOAD = "reload"
    SWEEP = "sweep"
    NOTE = "note"
    IGNORE = "ignore"


@dataclass(frozen=True, slots=True)
class NamePath:
    """The path of a name in a webhook's object."""

    kind: ObjectKind
    path: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Rule:
    """The rule for one type. ``name_paths`` are tried in order."""

    action: Action
    name_paths: tuple[NamePath, ...] = ()


def _paths(kind: ObjectKind, *paths: str) -> tuple[NamePath, ...]:
    return tuple(NamePath(kind, tuple(path.split("."))) for path in paths)


# Where payloads name the customer. Lago has moved and nested it from type to type and from version to version, so every
# rule looks in all these places: in the object, in what it embeds, in the first of what it lists (lago-api
# ``app/serializers/v1/``; ``customer_external_id`` is the former name in alerts).
_EMBEDDED: Final = (
    "invoice", "wallet", "wallet_transaction", "wallet_transaction.wallet", "subscription", "fee", "credit_note",
    "payment", "payment_request", "payable", "subscriptions", "fees", "invoices",
)  # fmt: skip
_ACCOUNT_PATHS: Final = _paths(
    ObjectKind.ACCOUNT,
    "external_customer_id",
    "customer.external_id",
    "customer_external_id",
    "customer.external_customer_id",
    *(f"{inside}.{path}" for inside in _EMBEDDED for path in ("external_customer_id", "customer.external_id")),
)


def _account(*others: NamePath) -> Rule:
    """The account, or else what ``others`` name, in order."""
    return Rule(Action.RELOAD, (*_ACCOUNT_PATHS, *others))


_ACCOUNT: Final = _account(
    *_paths(ObjectKind.SUBSCRIPTION, "external_subscription_id"), *_paths(ObjectKind.WALLET, "lago_wallet_id")
)
# The object is the customer itself, so its own id comes first.
_CUSTOMER: Final = Rule(Action.RELOAD, (*_paths(ObjectKind.ACCOUNT, "external_id"), *_ACCOUNT_PATHS))
_SUBSCRIPTION: Final = _account(*_paths(ObjectKind.SUBSCRIPTION, "external_id", "subscription.external_id"))
_OF_SUBSCRIPTION: Final = _account(
    *_paths(
        ObjectKind.SUBSCRIPTION, "external_subscription_id", "subscription_external_id", "subscription.external_id"
    ),
    *_paths(ObjectKind.WALLET, "lago_wallet_id", "wallet.lago_id"),
)
_WALLET: Final = _account(*_paths(ObjectKind.WALLET, "lago_id", "wallet.lago_id"))
# The embedded wallet came late (lago-api PR #4254); before, only the wallet's own id tells whose transaction it is.
_TRANSACTION: Final = _account(
    *_paths(ObjectKind.WALLET, "lago_wallet_id", "wallet.lago_id", "wallet_transaction.lago_wallet_id")
)
_PLAN: Final = Rule(Action.RELOAD, _paths(ObjectKind.PLAN, "code", "plan.code"))
_SWEEP: Final = Rule(Action.SWEEP)
_NOTE: Final = Rule(Action.NOTE)
_IGNORE: Final = Rule(Action.IGNORE)

OTHER: Final = "other"
"""Label of every type that is not in the table: those names are not ours to bound."""
ANY: Final = Rule(Action.RELOAD, _ACCOUNT_PATHS)
"""For types that are not in the table: an account, where one is named in the usual way."""


def _family(prefix: str, rules: Mapping[str, Rule]) -> dict[str, Rule]:
    return {f"{prefix}.{event}": rule for events, rule in rules.items() for event in events.split()}


EVENT_TYPES: Final[Mapping[str, Rule]] = {
    "alert.triggered": _OF_SUBSCRIPTION,
    **_family("billable_metric", {"created updated deleted": _SWEEP}),
    **_family(
        "customer",
        {
            # A VIES check decides which taxes apply, and prices are loaded with taxes.
            "created updated vies_check": _CUSTOMER,
            "accounting_provider_created accounting_provider_error crm_provider_created crm_provider_error": _IGNORE,
            "payment_provider_created payment_provider_error checkout_url_generated tax_provider_error": _IGNORE,
        },
    ),
    **_family("credit_note", {"created": _ACCOUNT, "generated provider_refund_failure refund_failure": _IGNORE}),
    "dunning_campaign.finished": _IGNORE,
    "event.error": _NOTE,
    "events.errors": _NOTE,
    **_family("feature", {"created updated deleted": _IGNORE}),
    # Fees of charges that are paid in advance debit the wallet at once.
    **_family("fee", {"created": _OF_SUBSCRIPTION, "tax_provider_error": _IGNORE}),
    **_family(
        "invoice",
        {
            "created one_off_created add_on_added paid_credit_added drafted ready_to_finalize": _ACCOUNT,
            "voided deleted payment_dispute_lost payment_status_updated payment_overdue": _ACCOUNT,
            "payment_failure resynced": _ACCOUNT,
            "generated": _IGNORE,
        },
    ),
    "integration.provider_error": _IGNORE,
    **_family("order", {"created executed": _IGNORE}),
    **_family("order_form", {"created signed expired voided": _IGNORE}),
    **_family("payment", {"succeeded": _ACCOUNT, "requires_action": _IGNORE}),
    "payment_provider.error": _IGNORE,
    **_family("payment_receipt", {"created generated": _IGNORE}),
    **_family("payment_request", {"payment_failure payment_status_updated": _ACCOUNT, "created": _IGNORE}),
    **_family("plan", {"created updated deleted": _PLAN}),
    **_family("quote", {"created approved voided": _IGNORE}),
    **_family(
        "subscription",
        {
            "canceled incomplete terminated started updated termination_alert trial_ended": _SUBSCRIPTION,
            "usage_threshold_reached": _SUBSCRIPTION,
        },
    ),
    **_family("wallet", {"created updated terminated depleted_ongoing_balance": _WALLET}),
    **_family("wallet_transaction", {"created updated payment_failure": _TRANSACTION}),
    # Not a type of any Lago that could be found; kept for senders that follow older pages. It may carry a wallet or a
    # customer.
    "credit.exhausted": Rule(
        Action.RELOAD,
        (
            *_TRANSACTION.name_paths,
            *_paths(ObjectKind.ACCOUNT, "external_id"),
            *_paths(ObjectKind.WALLET, "lago_id"),
        ),
    ),
}
