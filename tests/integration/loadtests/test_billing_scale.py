"""What the control plane asks for, by the number of accounts: the load test at a small scale."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from loadtests.billing_scale.bank import Bank, Moment
from loadtests.billing_scale.phases import PHASES

SMALL, LARGE = 500, 2_000
METRICS, SWEPT_FIRST, READINGS = 3, 100, 50
READING = {
    "GET /customers/{id}": 1,
    "GET /subscriptions": 1,
    "GET /subscriptions/{id}": 1,
    "GET /subscriptions/{id}/fixed_charges": 1,
    "GET /customers/{id}/current_usage": 1,
    "GET /wallets": 1,
    "GET /invoices": 2,
}
"""Requests of one reading."""

Phases = dict[str, dict[str, Any]]


def measured(accounts: int, folder: Path) -> Phases:
    found = folder / f"{accounts}.json"
    arguments = (
        "--accounts", str(accounts), "--days", "1", "--swept-first", str(SWEPT_FIRST), "--readings", str(READINGS),
        "--json", str(found),
    )  # fmt: skip
    command = [sys.executable, "-m", "loadtests.billing_scale", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "first sweep" in done.stdout
    return {phase["name"]: phase for phase in json.loads(found.read_text())["phases"]}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Phases:
    return measured(SMALL, tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Phases:
    return measured(LARGE, tmp_path_factory.mktemp("large"))


def lists(accounts: int) -> dict[str, int]:
    """Requests for a look at Lago's lists, a hundred to a page."""
    return dict.fromkeys(("GET /customers", "GET /subscriptions", "GET /wallets"), accounts // 100)


def added(*parts: dict[str, int]) -> dict[str, int]:
    return {name: sum(part.get(name, 0) for part in parts) for name in set().union(*parts)}


def times(number: int, part: dict[str, int]) -> dict[str, int]:
    return {name: number * count for name, count in part.items()}


def test_every_phase_is_measured(small: Phases) -> None:
    assert len(small) == len(PHASES)
    for phase in small.values():
        assert not phase["found"].get("failed"), phase["name"]
        assert not phase["found"].get("stopped"), phase["name"]


def test_a_first_sweep_reads_each_account_once(small: Phases) -> None:
    phase = small["first sweep"]
    once = {"GET /taxes": 1, "GET /billable_metrics": 1}
    assert phase["lago"] == added(lists(SWEPT_FIRST), times(SWEPT_FIRST, READING), once)
    assert phase["openmeter_queries"] == METRICS * SWEPT_FIRST


@pytest.mark.parametrize("accounts", [SMALL, LARGE])
def test_an_idle_sweep_reads_lists_alone(accounts: int, request: pytest.FixtureRequest) -> None:
    phases: Phases = request.getfixturevalue("small" if accounts == SMALL else "large")
    phase = phases["idle sweep"]
    assert phase["lago"] == lists(accounts)
    assert phase["openmeter_queries"] == 0
    assert phase["valkey"]["hget"] <= 3 * accounts


def test_a_sweep_reads_what_has_changed(large: Phases) -> None:
    asked = dict(large["sweep, 1 in 100 changed"]["lago"])
    for name in ("GET /taxes", "GET /billable_metrics"):  # once a minute
        asked.pop(name, None)
    assert asked == added(lists(LARGE), times(LARGE // 100, READING))


def test_the_sync_asks_openmeter_for_all_accounts_at_once(small: Phases, large: Phases) -> None:
    for name in ("first sync", "sync of an hour", "sync, nothing new", "month end, first look", "month end, next look"):
        assert small[name]["openmeter_queries"] == large[name]["openmeter_queries"] <= 10 * METRICS, name


def test_the_sync_sends_full_batches(large: Phases) -> None:
    for name in ("sync of an hour", "month end, first look"):
        phase = large[name]
        assert phase["found"]["events"] == sum(1 + number % METRICS for number in range(LARGE))
        # The last batch of each group of accounts is not full, and a page of 500 accounts is two of them.
        assert phase["lago"]["POST /events/batch"] <= phase["found"]["events"] // 100 + 2 * LARGE // 500


def test_a_round_with_nothing_new_reads_and_writes_nothing_else(large: Phases) -> None:
    phase = large["sync, nothing new"]
    assert phase["lago"] == {"GET /billable_metrics/{id}": METRICS}
    assert phase["found"].get("events", 0) == 0
    states = {"hgetall": 2, "eval": 1, "get": 1, "hmget": 1}  # reconcile and sync state; counts, by a script
    assert {name: count / LARGE for name, count in phase["valkey"].items() if name in states} == states
    assert not {"hset", "set", "hdel"} & phase["valkey"].keys()


def test_an_audit_asks_once_for_each_metric_and_hour(small: Phases, large: Phases) -> None:
    for phases in (small, large):
        assert phases["audit of an hour"]["openmeter_queries"] == 2 * METRICS + 1  # meter and usage; watermarks
        assert phases["audit, nothing new"]["openmeter_queries"] == 0
        assert phases["audit of an hour"]["found"]["states"] == ["agreed"]


def test_after_the_month_each_account_is_read_with_its_new_invoice(large: Phases) -> None:
    phase = large["month end, readings"]
    asked = dict(phase["lago"])
    for name in ("GET /taxes", "GET /billable_metrics"):
        asked.pop(name, None)
    assert asked == added(times(READINGS, READING), {"GET /invoices/{id}": READINGS})
    assert phase["found"] == {"loaded": READINGS}


def test_invoices_are_compared_once_each(large: Phases) -> None:
    phase = large["month end, sync and invoices"]
    assert phase["lago"]["GET /invoices/{id}"] == READINGS
    assert METRICS * READINGS < phase["openmeter_queries"] <= METRICS * (READINGS + 10)


def test_memory_does_not_grow_with_the_number_of_accounts(small: Phases, large: Phases) -> None:
    """A few numbers of every account are kept; 20 kB would be its states, or its rows."""
    for name in small:
        more_kb = (large[name]["memory_peak_mb"] - small[name]["memory_peak_mb"]) * 1000 / (LARGE - SMALL)
        assert more_kb < 20, name


def test_usage_is_the_same_by_the_hour_and_in_all() -> None:
    bank = Bank(10, 4, 3, 0)
    for number in range(10):
        used = set(bank.used(number))
        assert len(used) == 1 + number % 3
        assert used == {metric for metric in range(4) if bank.uses(number, metric)}
        moment = Moment(0, hours=(5, 8), times=2)
        for metric in range(4):
            total = 2 * sum(bank.units(number, metric, hour) for hour in (5, 6, 7)) if metric in used else 0
            assert moment.total(bank, number, metric) == total
