"""However many gateways and clients there are, an account spends what it has and not one call more."""

from __future__ import annotations

import asyncio
from pathlib import Path

import orjson
import pytest
from redis.asyncio import Redis

from sidecar.sandbox.openmeter.openmeter_server import OpenMeter
from sidecar.sandbox.server import Server
from tests.chaos.kit import KEYS, METRIC, Answers, Api, gateways, get, load, settings, storm, until
from tests.support.ledger_totals import read_totals
from tests.support.valkey_process import ValkeyProcess

CREDIT = 1_000
SENT = 5_000
CLIENTS = 64


@pytest.mark.parametrize(("processes", "workers"), [(3, 1), (1, 3)], ids=["three gateways", "one of three workers"])
async def test_of_5000_calls_exactly_the_1000_paid_for_pass(
    server: ValkeyProcess, control: Redis, api: Api, tmp_path: Path, processes: int, workers: int
) -> None:
    await load(control, {"tpp": CREDIT})
    meter = OpenMeter()
    async with Server(meter.app()) as openmeter:
        document = settings(
            f"valkey://127.0.0.1:{server.port}", api.url,
            listen={"workers": workers}, metering={"url": openmeter.url, "linger_ms": 20},
        )  # fmt: skip
        answers = Answers()
        async with (
            gateways(tmp_path, *[document] * processes) as running,
            gateways(tmp_path, document, command="control", name="control"),
        ):
            per_gateway = [
                storm(running[n % processes].port, "tpp", 1, SENT // CLIENTS + (n < SENT % CLIENTS), answers)
                for n in range(CLIENTS)
            ]
            await asyncio.gather(*per_gateway)
            assert answers.statuses == {200: CREDIT, 402: SENT - CREDIT}
            assert api.asked == CREDIT, "what cannot be paid for never reaches the API"
            texts = [(await get(each.admin_port, "/metrics"))[1] for each in running]
            assert sum(_value(text, "sidecar_charged_units_total") for text in texts) == CREDIT
            await until(lambda: sum(1 for _ in meter.store.events()) >= CREDIT, meter)
        totals = await read_totals(control, KEYS, ["tpp"])
        assert (totals.settled, totals.held) == ({"tpp": CREDIT}, {"tpp": 0})
        assert totals.alive == frozenset(), "who has left is not waited for by the reaper"
        assert _metered(meter) + totals.events.get("tpp", 0) == CREDIT
        assert _metered(meter) == CREDIT


def _metered(meter: OpenMeter) -> int:
    data = [orjson.loads(event.data) for event in meter.store.events()]
    return sum(int(each["units"]) for each in data if each["metric"] == METRIC)


def _value(text: str, name: str) -> float:
    return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(name))
