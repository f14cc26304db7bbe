"""A few rounds of real faults; ``make chaos`` runs hundreds."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.rounds.rounds import rounds_of
from tests.chaos.rounds.servers import Kind

SHORT: dict[Kind, list[str]] = {
    "single": ["data rolled back", "gateway ends in an outage", "machine loses the last second"],
    "sentinel": ["planned failover", "failover to a replica that lags"],
    "cluster": ["primary killed", "gateway stands still"],
}


@pytest.mark.parametrize("topology", SHORT)
async def test_no_fault_costs_more_than_is_promised(topology: Kind, tmp_path: Path) -> None:
    async for each in rounds_of(topology, SHORT[topology], 7, tmp_path):
        assert each.is_as_promised, each
        assert each.served > 100, each
