"""Every scenario, in the order of the table. The one that moves the clock is the last: nothing holds after it."""

from __future__ import annotations

from sidecar.cli.verify_billing.scenario import Scenario
from sidecar.cli.verify_billing.scenarios.prepaid import Prepaid


def all_scenarios() -> tuple[Scenario, ...]:
    """New ones, for one run."""
    return (Prepaid(),)
