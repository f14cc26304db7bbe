"""``sidecar catalog`` as its users run it: what it prints, when it asks, how it ends."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sidecar.sandbox.lago.lago_server import Lago, LagoConfig, LagoFault
from sidecar.sandbox.openmeter.openmeter_server import OpenMeter, OpenMeterConfig
from sidecar.sandbox.server import Server
from tests.support.processes import START_TIMEOUT_S, sidecar

EXAMPLE = str(Path(__file__).parents[3] / "examples" / "catalog.yaml")
KEY = "a-key-that-nobody-should-see"


@dataclass(frozen=True)
class Bench:
    lago: Lago
    config: str
    sections: dict[str, Any]
    write: Callable[[str], str]

    async def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        ended = await asyncio.to_thread(sidecar, "catalog", *arguments, "-c", self.config)
        assert "Traceback" not in ended.stderr
        assert KEY not in ended.stdout + ended.stderr
        return ended

    async def json(self, *arguments: str) -> tuple[int, Any]:
        ended = await self.run(*arguments, "--json")
        return ended.returncode, json.loads(ended.stdout)


def write_config(path: Path, **sections: object) -> str:
    document = {"upstream": {"url": "http://127.0.0.1:9"}, "valkey": "valkey://127.0.0.1:9", **sections}
    path.write_text(json.dumps(document))
    return str(path)


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    lago, openmeter = Lago(LagoConfig(api_key=KEY)), OpenMeter(OpenMeterConfig(meters=()))

    def write(text: str) -> str:
        path = tmp_path / "catalog.yaml"
        path.write_text(text)
        return str(path)

    async with Server(lago.app()) as lago_server, Server(openmeter.app()) as openmeter_server:
        sections = {
            "lago": {"url": lago_server.url, "api_key": KEY, "attempts_max": 1},
            "metering": {"url": openmeter_server.url},
        }
        yield Bench(lago, write_config(tmp_path / "gateway.yaml", **sections), sections, write)


async def test_the_example_is_shown_then_applied_then_as_it_should_be(bench: Bench) -> None:
    shown = await bench.run("diff", EXAMPLE)
    assert shown.returncode == 0, shown.stderr
    assert "+ plan              api_pro\n" in shown.stdout
    assert "      charges.api_calls: graduated: to 10000 0, then 0.001\n" in shown.stdout
    assert shown.stdout.endswith("16 to create, 0 to change, 0 unchanged, 0 refused\n")
    assert not bench.lago.store.customers

    applied = await bench.run("apply", EXAMPLE, "--yes")
    assert applied.returncode == 0, applied.stderr
    assert applied.stdout.endswith("16 changes written\n")
    assert set(bench.lago.store.customers) == {"tpp-12345", "tpp-pro", "tpp-trusted"}

    again = await bench.run("apply", EXAMPLE, "--yes")
    assert (again.returncode, again.stdout.splitlines()) == (
        0,
        ["0 to create, 0 to change, 16 unchanged, 0 refused", "There is nothing to change."],
    )


async def test_settings_may_come_from_the_environment_alone(bench: Bench) -> None:
    environment = {
        "SIDECAR_CONFIG": "",
        "SIDECAR_VALKEY": "valkey://127.0.0.1:9",
        "SIDECAR_LAGO__URL": bench.sections["lago"]["url"],
        "SIDECAR_LAGO__API_KEY": KEY,
        "SIDECAR_METERING__URL": bench.sections["metering"]["url"],
    }
    shown = await asyncio.to_thread(sidecar, "catalog", "diff", EXAMPLE, environment=environment)
    assert (shown.returncode, "+ plan              api_pro\n" in shown.stdout) == (0, True), shown.stderr


async def test_json_has_every_change_and_what_became_of_it(bench: Bench) -> None:
    file = bench.write("metrics: [{code: api_calls}]")
    code, shown = await bench.json("diff", file)
    assert code == 0
    assert shown["summary"] == {"create": 2, "update": 0, "keep": 0, "refuse": 0}
    assert [(each["action"], each["kind"], each["code"]) for each in shown["changes"]] == [
        ("create", "metric", "api_calls"),
        ("create", "meter", "api_calls"),
    ]
    assert {"name": "field_name", "before": None, "after": "calls"} in shown["changes"][0]["fields"]
    code, applied = await bench.json("apply", file, "--yes")
    assert (code, applied["failed"], applied["left"]) == (0, None, [])
    assert applied["done"] == [{"kind": "metric", "code": "api_calls"}, {"kind": "meter", "code": "api_calls"}]


REFUSED = "metrics: [{code: api_calls, aggregation_type: count_agg}]\ncustomers: [{id: t}]"


async def test_while_something_is_refused_nothing_is_written(bench: Bench) -> None:
    file = bench.write(REFUSED)
    shown = await bench.run("diff", file)
    assert shown.returncode == 0
    assert "! metric            api_calls  refused" in shown.stdout
    assert f"{file}:1: metrics[0].aggregation_type: count_agg counts events, not calls" in shown.stdout
    assert "instead: {code: api_calls, aggregation_type: sum_agg, field_name: calls}" in shown.stdout
    applied = await bench.run("apply", file, "--yes")
    assert applied.returncode == 1
    assert "The command wrote nothing. Lago or OpenMeter cannot take 1 entry of the file." in applied.stderr
    assert not bench.lago.store.customers
    code, document = await bench.json("apply", file, "--yes")
    assert (code, document["done"], document["left"]) == (1, [], [{"kind": "customer", "code": "t"}])


async def test_a_change_shows_both_values_and_what_follows(bench: Bench) -> None:
    text = (
        "metrics: [{code: c}]\n"
        "plans: [{code: p, currency: GBP, charges: [{metric: c, model: standard, amount: '1'}]}]\n"
        "customers: [{id: t, plan: p}]"
    )
    assert (await bench.run("apply", bench.write(text), "--yes")).returncode == 0
    shown = await bench.run("diff", bench.write(text.replace("'1'", "'2'")))
    assert "~ plan              p\n      charges.c: standard: 1 -> standard: 2\n" in shown.stdout
    assert "1 active subscription: Lago bills the whole running period at the new prices" in shown.stdout


async def test_a_failure_says_what_was_done_and_what_was_not(bench: Bench) -> None:
    bench.lago.faults.script(LagoFault(path="/api/v1/customers", method="POST", status=500))
    file = bench.write("metrics: [{code: api_calls}]\ncustomers: [{id: t}, {id: u}]")
    ended = await bench.run("apply", file, "--yes")
    assert ended.returncode == 1
    assert "error: customer t: POST /customers: 500" in ended.stderr
    assert "done: metric api_calls, meter api_calls\n" in ended.stderr
    assert "not done: customer t, customer u" in ended.stderr
    assert (await bench.run("apply", file, "--yes")).returncode == 0


async def test_without_a_terminal_nothing_is_written_unless_yes_is_said(bench: Bench) -> None:
    for arguments in (("apply", EXAMPLE), ("apply", EXAMPLE, "--json")):
        ended = await bench.run(*arguments)
        assert ended.returncode == 2
        assert "--yes" in ended.stderr
    assert not bench.lago.requests


@pytest.mark.parametrize(("answer", "code", "made"), [("y\n", 0, True), ("n\n", 1, False), ("\n", 1, False)])
async def test_at_a_terminal_it_asks_before_it_writes(bench: Bench, answer: str, code: int, made: bool) -> None:
    file = bench.write("customers: [{id: t}]")

    def run() -> subprocess.CompletedProcess[str]:
        ours, theirs = pty.openpty()
        try:
            os.write(ours, answer.encode())
            return subprocess.run(
                [sys.executable, "-m", "sidecar", "catalog", "apply", file, "-c", bench.config],
                stdin=theirs, capture_output=True, text=True, timeout=START_TIMEOUT_S, check=False,
            )  # fmt: skip
        finally:
            os.close(ours)
            os.close(theirs)

    ended = await asyncio.to_thread(run)
    assert ended.returncode == code, ended.stderr
    assert "Write this?" in ended.stderr
    assert ("The command wrote nothing." in ended.stderr) is not made
    assert bool(bench.lago.store.customers) is made


async def test_without_openmeter_its_meters_are_left_out_and_said_so(tmp_path: Path, bench: Bench) -> None:
    lago = bench.sections["lago"] | {"sync": {"enabled": False}}
    config = write_config(tmp_path / "lago-only.yaml", lago=lago)
    file = bench.write("metrics: [{code: api_calls}]")
    ended = await asyncio.to_thread(sidecar, "catalog", "diff", file, "-c", config)
    assert ended.returncode == 0, ended.stderr
    assert "metering.url is not set" in ended.stdout
    assert ended.stdout.endswith("1 to create, 0 to change, 0 unchanged, 0 refused\n")


def test_a_mistake_in_the_file_is_told_by_line_and_key_even_without_a_lago(tmp_path: Path) -> None:
    path = tmp_path / "catalog.yaml"
    path.write_text("metrics:\n  - cod: api_calls\n")
    ended = sidecar("catalog", "diff", str(path))
    assert ended.returncode == 2
    assert f"{path}:2: metrics[0].cod: is not a known key; did you mean code?" in ended.stderr
    assert "Traceback" not in ended.stderr


UNUSABLE = {
    "no configuration": (None, 2, "give -c FILE (or set SIDECAR_CONFIG)"),
    "no Lago": ({}, 2, "lago.url is not set"),
    "a Lago that is not there": ({"lago": {"url": "http://127.0.0.1:9", "api_key": "k", "attempts_max": 1}}, 1, "Lago"),
    "a key's file that is not there": (
        {"lago": {"url": "http://127.0.0.1:9", "api_key_file": "/nowhere"}},
        1,
        "/nowhere",
    ),
}


@pytest.mark.parametrize(("sections", "code", "words"), UNUSABLE.values(), ids=UNUSABLE.keys())
def test_a_lago_that_cannot_be_used_is_named(
    tmp_path: Path, sections: dict[str, object] | None, code: int, words: str
) -> None:
    arguments = []
    if sections is not None:
        metering = {"metering": {"url": "http://127.0.0.1:9"}} if sections else {}
        arguments = ["-c", write_config(tmp_path / "gateway.yaml", **sections, **metering)]
    ended = sidecar("catalog", "diff", EXAMPLE, *arguments)
    assert ended.returncode == code, ended.stderr
    assert words in ended.stderr
    assert "Traceback" not in ended.stderr


async def test_a_wrong_api_key_is_told_without_being_shown(tmp_path: Path, bench: Bench) -> None:
    lago = bench.sections["lago"] | {"api_key": "hunter2"}
    config = write_config(tmp_path / "wrong.yaml", **(bench.sections | {"lago": lago}))
    ended = await asyncio.to_thread(sidecar, "catalog", "diff", EXAMPLE, "-c", config)
    assert ended.returncode == 1
    assert "401" in ended.stderr
    assert "hunter2" not in ended.stdout + ended.stderr
