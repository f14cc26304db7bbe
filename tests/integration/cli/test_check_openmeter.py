"""``sidecar check`` reaches OpenMeter and Lago as the control plane does, and finds what would count nothing."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiohttp import web

from sidecar.app.configuration import Config
from sidecar.cli.checks import ledger, openmeter, services
from sidecar.cli.checks.finding import Finding
from sidecar.ledger.store import Store
from sidecar.sandbox.lago.lago_server import Lago, LagoConfig
from sidecar.sandbox.openmeter.meters import DEFAULT_METERS, Meter
from sidecar.sandbox.openmeter.openmeter_server import OpenMeter, OpenMeterConfig
from sidecar.sandbox.server import Server
from tests.integration.ledger_loader.certificates import Pair, self_signed
from tests.support.processes import sidecar

TOKEN = "the-right-token"
CALLS = DEFAULT_METERS[0]
LATER = datetime(2100, 1, 1, tzinfo=UTC)
Check = Callable[[Config], Awaitable[list[Finding]]]
Found = dict[str, tuple[bool | None, str]]


async def found(check: Check, **sections: Any) -> Found:
    """Findings by what they are about; of a control plane, unless ``upstream`` is given."""
    config = Config.model_validate({"valkey": "valkey://127.0.0.1:9", "admin": {"port": 0}, **sections})
    return {each.what: (each.ok, each.detail) for each in await check(config)}


@asynccontextmanager
async def served(*meters: Meter, tls: Pair | None = None, **changes: Any) -> AsyncIterator[str]:
    context = None
    if tls is not None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(tls.certificate_file, tls.key_file)
    async with Server(OpenMeter(OpenMeterConfig(meters=meters, **changes)).app(), tls=context) as server:
        yield server.url


async def checked_meter(meter: Meter, metric: str = "api_calls") -> list[tuple[bool | None, str]]:
    """What the check says of one meter."""
    async with served(meter) as url:
        config = Config.model_validate({"valkey": "valkey://127.0.0.1:9", "metering": {"url": url}})
        return [(each.ok, each.detail) for each in await openmeter.openmeter(config) if metric in each.what]


# How it is reached


@pytest.mark.parametrize("how", ["token", "token_file"])
async def test_the_token_is_shown_whichever_setting_has_it(tmp_path: Path, how: str) -> None:
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    metering = {"token": TOKEN} if how == "token" else {"token_file": str(tmp_path / "token")}
    async with served(CALLS, token=TOKEN) as url:
        says = await found(openmeter.openmeter, metering={"url": url, **metering})
    assert says == {"openmeter": (True, f"{url} answers; meters: api_calls")}


async def test_an_authority_of_the_configuration_is_trusted_and_no_other_is(tmp_path: Path) -> None:
    pair, other = self_signed(tmp_path, "openmeter"), self_signed(tmp_path, "other")
    async with served(CALLS, tls=pair) as url:
        for ca_file, ok in ((pair.certificate_file, True), (other.certificate_file, False), (None, False)):
            metering = {"url": url} if ca_file is None else {"url": url, "ca_file": str(ca_file)}
            says = await found(openmeter.openmeter, metering=metering)
            assert list(says) == ["openmeter"]
            assert says["openmeter"][0] is ok
            assert ok or "the certificate is not accepted: self-signed certificate" in says["openmeter"][1]


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"token_file": "{dir}/none"}, "metering.token_file: {dir}/none: No such file or directory"),
        ({"token_file": "{dir}"}, "metering.token_file: {dir}: Is a directory"),
        ({"ca_file": "{dir}/none"}, "metering.ca_file: {dir}/none: No such file or directory"),
        ({"ca_file": "{dir}/wrong"}, "metering.ca_file: {dir}/wrong holds no certificate in PEM"),
        ({"token_file": "{dir}/wrong"}, "{url}: OpenMeter refuses the token (401): check metering.token_file"),
        ({"token": "wrong"}, "{url}: OpenMeter refuses the token (401): check metering.token"),
        ({}, "{url}: OpenMeter wants a token (401): set metering.token_file"),
    ],
)
async def test_what_keeps_the_control_plane_from_openmeter_is_one_line(
    tmp_path: Path, settings: dict[str, str], line: str
) -> None:
    (tmp_path / "wrong").write_text("wrong")
    async with served(CALLS, token=TOKEN) as url:
        metering = {"url": url, **{name: text.format(dir=tmp_path) for name, text in settings.items()}}
        says = await found(openmeter.openmeter, metering=metering)
        expected = line.format(dir=tmp_path, url=f"metering.url: {url}")
    assert says == {"openmeter": (False, expected)}


@pytest.mark.parametrize("name", ["token_file", "ca_file"])
async def test_a_file_that_only_control_planes_have_is_no_fault_of_a_gateway(tmp_path: Path, name: str) -> None:
    metering = {"url": "http://127.0.0.1:9", name: str(tmp_path / "none")}
    for check in (openmeter.openmeter, openmeter.dedupe):
        ((ok, detail),) = (await found(check, metering=metering, upstream={"url": "http://127.0.0.1:9"})).values()
        assert ok is None
        assert detail.endswith(
            f"metering.{name}: {tmp_path}/none is not there; a control plane needs it, a gateway does not"
        )


async def test_what_has_no_api_of_openmeter_v1_is_said_to_be_none() -> None:
    async with Server(web.Application()) as server:
        ok, detail = (await found(openmeter.openmeter, metering={"url": server.url}))["openmeter"]
    assert ok is False
    assert "no API of OpenMeter at /api/v1 (404): check metering.url; managed OpenMeter (Kong Konnect, v3)" in detail


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"api_key_file": "{dir}/key", "ca_file": "{dir}/lago.crt"}, None),
        ({"api_key_file": "{dir}/key", "ca_file": "{dir}/other.crt"}, "the certificate is not accepted"),
        ({"api_key_file": "{dir}/key"}, "the certificate is not accepted"),
        ({"api_key_file": "{dir}/key", "ca_file": "{dir}/none"}, "lago.ca_file: {dir}/none: No such file"),
        ({"api_key_file": "{dir}/none", "ca_file": "{dir}/lago.crt"}, "lago.api_key_file: {dir}/none: No such file"),
        ({"api_key_file": "{dir}", "ca_file": "{dir}/lago.crt"}, "lago.api_key_file: {dir}: Is a directory"),
        ({"api_key_file": "{dir}/lago.crt", "ca_file": "{dir}/lago.crt"}, "lago.api_key_file: {dir}/lago.crt: a token"),
        (
            {"api_key_file": "{dir}/wrong", "ca_file": "{dir}/lago.crt"},
            "Lago refuses the API key (401): check lago.api_key_file",
        ),
    ],
)
async def test_lago_is_reached_with_the_key_and_the_authority_of_the_configuration(
    tmp_path: Path, settings: dict[str, str], line: str | None
) -> None:
    pair = self_signed(tmp_path, "lago")
    self_signed(tmp_path, "other")
    (tmp_path / "key").write_text(f"{TOKEN}\n")
    (tmp_path / "wrong").write_text("wrong")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pair.certificate_file, pair.key_file)
    async with Server(Lago(LagoConfig(api_key=TOKEN)).app(), tls=context) as server:
        files = {name: text.format(dir=tmp_path) for name, text in settings.items()}
        lago = {"url": server.url, **files, "attempts_max": 1, "sync": {"enabled": False}}
        says = await found(services.lago, lago=lago)
    ok, detail = says["lago"]
    assert ok is (line is None)
    if line is not None:
        assert list(says) == ["lago"]
        assert line.format(dir=tmp_path) in detail
        assert "\n" not in detail


# What its meters count


@pytest.mark.parametrize("path", ["$.data.metric", "$.other", None])
async def test_a_meter_that_cannot_tell_metrics_apart_counts_nothing(path: str | None) -> None:
    groups = {group: each for group, each in CALLS.group_by.items() if group != "metric"}
    meter = replace(CALLS, group_by=groups if path is None else {**groups, "metric": path})
    ((ok, detail),) = await checked_meter(meter)
    assert ok is False
    assert f"groupBy metric is {path or 'not set'} instead of $.metric" in detail
    assert "it counts nothing; `sidecar catalog apply` changes it" in detail


async def test_a_wrong_path_of_another_group_is_a_warning_and_a_missing_group_is_none() -> None:
    ((ok, detail),) = await checked_meter(replace(CALLS, group_by={**CALLS.group_by, "endpoint": "$.data.endpoint"}))
    assert (ok, "groupBy endpoint is $.data.endpoint instead of $.endpoint" in detail) == (None, True)
    assert await checked_meter(replace(CALLS, group_by={"metric": "$.metric", "bank": "$.bank"})) == []


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"event_type": "other"}, "eventType is other instead of api.call"),
        ({"aggregation": "MAX"}, "aggregation is MAX instead of SUM"),
        ({"value_property": "$.data.units"}, "valueProperty is $.data.units instead of $.units"),
        ({"event_from": LATER}, "eventFrom is 2100-01-01T00:00:00Z: no event of before counts"),
    ],
)
async def test_a_meter_that_counts_other_units_is_found_with_what_to_do(changes: dict[str, Any], says: str) -> None:
    ((ok, detail),) = await checked_meter(replace(CALLS, **changes))
    assert ok is False
    assert detail == f"{says}; OpenMeter cannot change this of a meter: delete it and run `sidecar catalog apply`"


async def test_all_that_is_wrong_of_a_meter_is_said() -> None:
    requests = Meter("api_calls", "other", "COUNT", group_by={"metric": "$.data.metric"}, event_from=LATER)
    assert [ok for ok, _ in await checked_meter(requests)] == [False] * 5


async def test_a_meter_that_has_begun_to_count_or_that_no_route_needs_is_no_finding() -> None:
    assert await checked_meter(replace(CALLS, event_from=datetime(2020, 1, 1, tzinfo=UTC))) == []
    assert await checked_meter(replace(CALLS, slug="payments", event_type="other"), "meter payments") == []


# Its version, and clocks


async def test_a_version_that_takes_whole_minutes_only_is_too_old() -> None:
    async with served(CALLS, seconds=False) as url:
        ok, detail = (await found(openmeter.openmeter, metering={"url": url}))["openmeter version"]
    assert ok is False
    assert "older than 2025-03-06" in detail


@pytest.mark.parametrize(("date", "way"), [("Thu, 01 Jan 2026", "ahead of"), ("Fri, 01 Jan 2100", "behind")])
async def test_a_clock_that_differs_from_openmeters_is_a_warning(date: str, way: str) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        return web.json_response([], headers={"Date": f"{date} 00:00:00 GMT"})

    app = web.Application()
    app.router.add_get("/api/v1/meters", handler)
    async with Server(app) as server:
        ok, detail = (await found(openmeter.openmeter, metering={"url": server.url}))["openmeter clock"]
    assert ok is None
    assert f" s {way} OpenMeter's; set both by NTP: Kafka 4 refuses usage events of more than 1 h ahead" in detail


async def test_a_clock_that_differs_from_valkeys_is_a_warning() -> None:
    async def at(seconds: float) -> list[Finding]:
        async def time() -> tuple[int, int]:
            return int(seconds), 0

        return await ledger.clock_findings(cast(Store, SimpleNamespace(client=SimpleNamespace(time=time))))

    now_s = datetime.now(UTC).timestamp()
    assert await at(now_s) == []
    (finding,) = await at(now_s + 600)
    assert (finding.what, finding.ok) == ("valkey clock", None)
    assert "behind Valkey's; set both by NTP" in finding.detail
    assert "Kafka" not in finding.detail


# The probe


@pytest.mark.parametrize(
    ("dedupe", "ok", "says"),
    [(True, True, "is counted once"), (False, False, "is counted twice: set sink.dedupe.enabled and driver redis")],
)
async def test_nothing_is_sent_unless_the_probe_is_asked_for(tmp_path: Path, dedupe: bool, ok: bool, says: str) -> None:
    there = OpenMeter(OpenMeterConfig(meters=(CALLS,), dedupe=dedupe, token=TOKEN))
    (tmp_path / "token").write_text(TOKEN)
    async with Server(there.app()) as server:
        document = {
            "valkey": "valkey://127.0.0.1:9",
            "metering": {"url": server.url, "token_file": str(tmp_path / "token")},
        }
        (tmp_path / "gateway.yaml").write_text(json.dumps(document))
        arguments = ("check", "-c", str(tmp_path / "gateway.yaml"), "--json")
        plain = json.loads((await asyncio.to_thread(sidecar, *arguments)).stdout)
        assert not [each for each in plain["findings"] if "dedupe" in each["what"]]
        assert there.counts.requests == 0
        probed = json.loads((await asyncio.to_thread(sidecar, *arguments, "--probe")).stdout)
    (finding,) = [each for each in probed["findings"] if each["what"] == "openmeter dedupe"]
    assert finding["ok"] is ok
    assert says in finding["detail"]
    assert repr(there.meters) == "MeterRegistry(api_calls)"


async def test_a_probe_that_openmeter_refuses_says_why() -> None:
    async with served(CALLS, token=TOKEN) as url:
        says = await found(openmeter.dedupe, metering={"url": url, "token": "wrong"})
    assert says == {"openmeter dedupe": (False, "OpenMeter refuses the token (401): check metering.token")}
