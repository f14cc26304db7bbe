"""Every scenario, in the order of the table."""

from __future__ import annotations

from typing import Final

from sidecar.cli.verify_billing.scenario import Scenario
from sidecar.cli.verify_billing.scenarios.counting import Duplicates, Surplus
from sidecar.cli.verify_billing.scenarios.doorbell import Webhooks
from sidecar.cli.verify_billing.scenarios.filters import Filters
from sidecar.cli.verify_billing.scenarios.lifecycle import Cancellation, MonthEnd, Upgrade
from sidecar.cli.verify_billing.scenarios.paying import CouponOnce, CreditNoted, ScopedWallets
from sidecar.cli.verify_billing.scenarios.premium import OverriddenPrice
from sidecar.cli.verify_billing.scenarios.prepaid import DottedId, Prepaid, SpendingCap, Tax, TerminatedWallet, TopUp
from sidecar.cli.verify_billing.scenarios.prices import GraduatedPrice, PackagePrice, StandardPrice, VolumePrice
from sidecar.cli.verify_billing.scenarios.subscriptions import TwoSubscriptions

SCENARIOS: Final[tuple[type[Scenario], ...]] = (
    Prepaid,
    TopUp,
    TerminatedWallet,
    DottedId,
    SpendingCap,
    StandardPrice,
    GraduatedPrice,
    PackagePrice,
    VolumePrice,
    Filters,
    TwoSubscriptions,
    Tax,
    ScopedWallets,
    CouponOnce,
    CreditNoted,
    Duplicates,
    Surplus,
    Upgrade,
    Cancellation,
    Webhooks,
    OverriddenPrice,
    MonthEnd,
)
