"""What the bank enforces for an account: from the customer's metadata in Lago, else the plan's policy in the
configuration. The mode of an account for which neither says it is prepaid if Lago lists a wallet of the customer, else
``lago.default_mode``.

Metadata of a customer (Lago allows keys of 20 characters): ``quota_mode``, ``quota_status`` (active, suspended,
closed), ``quota_overdraft``, ``quota_spending_cap``, ``quota_credit_limit``, ``quota_rate`` (requests per second),
``quota_burst``, ``quota_per_day``, and ``quota_api_key``, ``quota_api_key_2`` … (SHA-256 in hexadecimal).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Final, TypeVar, get_args

from sidecar.billing.lago.models import Customer, Plan
from sidecar.billing.reconcile.alerts import BillingRefused
from sidecar.billing.settings import LagoSettings, PlanPolicy
from sidecar.ledger.accounts.account_spec import (
    API_KEYS_MAX,
    BURST_MAX,
    DAY_LIMIT_MAX,
    RATE_MAX,
    RATE_MIN,
    Mode,
    RateLimits,
    Status,
)

T = TypeVar("T")

_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_API_KEY: Final = re.compile(r"quota_api_key(?:_\d{1,3})?")
_NO_POLICY: Final = PlanPolicy(code="-")
_KNOWN: Final = frozenset(
    ("quota_mode", "quota_status", "quota_overdraft", "quota_spending_cap", "quota_credit_limit", "quota_rate",
     "quota_burst", "quota_per_day")
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class EnforcementPolicy:
    """Money in units of the account's currency; ``api_keys`` None: the ledger's stay."""

    mode: Mode
    status: Status
    overdraft: Decimal
    spending_cap: Decimal | None
    credit_limit: Decimal | None
    limits: RateLimits
    api_keys: tuple[str, ...] | None


def enforcement_policy(
    customer: Customer, plan: Plan | None, has_wallet: bool, settings: LagoSettings
) -> EnforcementPolicy:
    """The policy of an account. ``has_wallet``: Lago lists a wallet of the customer, be it a terminated one: who has
    paid in advance once must not be served without money when the last wallet ends.

    Raises:
        BillingRefused: a value of the metadata cannot be read, or a ``quota_`` key is not known; it is named. Or
            nothing says the mode, and ``lago.default_mode`` is not set.
    """
    metadata = customer.metadata
    for key in metadata:
        if key.startswith("quota_") and key not in _KNOWN and not _API_KEY.fullmatch(key):
            raise BillingRefused("policy", f"metadata {key}: there is no such setting")
    planned = next((each for each in settings.plan_policies if plan is not None and each.code == plan.code), _NO_POLICY)

    def read(key: str, parse: Callable[[str], T], otherwise: T) -> T:
        text = metadata.get(key, "").strip()
        if not text:
            return otherwise
        try:
            return parse(text)
        except (ValueError, InvalidOperation, KeyError) as error:
            why = f": {error}" if isinstance(error, ValueError) else ""
            raise BillingRefused("policy", f"metadata {key}: {text[:40]!r} cannot be used{why}") from None

    mode = read("quota_mode", _mode, planned.mode or ("prepaid" if has_wallet else settings.default_mode))
    if mode is None:
        raise BillingRefused(
            "policy",
            "nothing says its mode: the customer has no wallet and no metadata quota_mode, plan"
            f" {plan.code if plan is not None else '-'} has no lago.plan_policies[].mode, and lago.default_mode is not"
            " set",
        )
    rate = read("quota_rate", _rate, planned.requests_per_second or Decimal(0))
    return EnforcementPolicy(
        mode=mode,
        status=read("quota_status", Status.of, Status.ACTIVE),
        overdraft=read("quota_overdraft", _money, planned.overdraft or Decimal(0)),
        spending_cap=read("quota_spending_cap", _money, planned.spending_cap),
        credit_limit=read("quota_credit_limit", _money, planned.credit_limit),
        limits=RateLimits(
            rate,
            read("quota_burst", _whole(BURST_MAX), planned.burst),
            read("quota_per_day", _whole(DAY_LIMIT_MAX), planned.requests_per_day),
        ),
        api_keys=_api_keys(metadata),
    )


def _mode(text: str) -> Mode | None:
    for mode in get_args(Mode):
        if text == mode:
            found: Mode = mode
            return found
    raise ValueError("one of prepaid, overage, postpaid")


def _money(text: str) -> Decimal:
    value = Decimal(text)
    if not value.is_finite() or value < 0:
        raise ValueError("an amount of money that is not negative")
    return value


def _rate(text: str) -> Decimal:
    value = Decimal(text)
    if not value.is_finite() or not RATE_MIN <= value <= RATE_MAX:
        raise ValueError(f"between {RATE_MIN} and {RATE_MAX} requests per second")
    return value


def _whole(largest: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isascii() or not text.isdigit() or len(text) > 15 or int(text) > largest:
            raise ValueError(f"a whole number up to {largest}")
        return int(text)

    return parse


def _api_keys(metadata: Mapping[str, str]) -> tuple[str, ...] | None:
    digests = {key: text.strip() for key, text in metadata.items() if _API_KEY.fullmatch(key) and text.strip()}
    if not digests:
        return None
    for key, digest in digests.items():
        # The value may be the API key itself, so it is not shown.
        if not _SHA256.fullmatch(digest):
            raise BillingRefused("policy", f"metadata {key}: not a SHA-256 in lower-case hexadecimal")
    if len(digests) > API_KEYS_MAX:
        raise BillingRefused("policy", f"metadata has {len(digests)} API keys, at most {API_KEYS_MAX} are allowed")
    return tuple(sorted(set(digests.values())))
