"""All scenarios by name."""

from __future__ import annotations

from typing import Final

from loadtests.scenarios import clients, ordinary, outages
from loadtests.scenarios.scenario import Scenario

SCENARIOS: Final[dict[str, Scenario]] = {
    each.name: each for each in (*ordinary.SCENARIOS, *outages.SCENARIOS, *clients.SCENARIOS)
}
