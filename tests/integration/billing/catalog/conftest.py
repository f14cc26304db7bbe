"""A Lago and an OpenMeter (stand-ins, on real sockets), and a catalog brought there."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from sidecar.billing.catalog.apply import ApplyOutcome, apply
from sidecar.billing.catalog.changes import Change, Observed
from sidecar.billing.catalog.current_state import read
from sidecar.billing.catalog.diff import diff
from sidecar.billing.catalog.document import load_catalog
from sidecar.billing.catalog.values import Catalog
from sidecar.billing.lago.client import LagoClient
from sidecar.billing.settings import LagoSettings
from sidecar.metering.openmeter.meter_query import MeterQuery
from sidecar.metering.settings import MeteringSettings
from sidecar.sandbox.lago.lago_server import Lago, LagoConfig
from sidecar.sandbox.openmeter.openmeter_server import OpenMeter, OpenMeterConfig
from sidecar.sandbox.server import Server

EVENT_TYPE = "api.call"


@dataclass
class World:
    """``lago`` and ``openmeter`` are the stand-ins, ``client`` and ``query`` how the catalog sees them."""

    lago: Lago
    openmeter: OpenMeter
    client: LagoClient
    query: MeterQuery
    directory: Path
    url: str
    observed: Observed = field(default_factory=Observed)

    def catalog(self, text: str) -> Catalog:
        path = self.directory / "catalog.yaml"
        path.write_text(text)
        return load_catalog(path)

    async def diff(self, catalog: Catalog) -> tuple[Change, ...]:
        self.observed = await read(self.client, self.query, catalog)
        return diff(catalog, self.observed, EVENT_TYPE, time.time_ns() // 1_000_000)

    async def apply(self, text: str) -> ApplyOutcome:
        """Compares and writes."""
        changes = await self.diff(self.catalog(text))
        return await apply(changes, self.observed, self.client, self.query)

    async def actions(self, text: str) -> set[str]:
        return {change.action for change in await self.diff(self.catalog(text))}

    def written(self) -> int:
        """How many requests but GETs Lago has had."""
        return sum(count for name, count in self.lago.requests.items() if not name.startswith("GET"))


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    lago, openmeter = Lago(LagoConfig()), OpenMeter(OpenMeterConfig(meters=()))
    async with Server(lago.app()) as lago_server, Server(openmeter.app()) as openmeter_server:
        settings = LagoSettings.model_validate(
            {"url": lago_server.url, "api_key": lago.config.api_key, "attempts_max": 1, "requests_per_second": 1000}
        )
        metering = MeteringSettings.model_validate({"url": openmeter_server.url})
        async with LagoClient(settings) as client, MeterQuery(metering) as query:
            yield World(lago, openmeter, client, query, tmp_path, lago_server.url)
