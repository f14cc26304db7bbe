"""Scenarios as they are run: against a demo of their own, and against one that was running. Nothing here is timed."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from loadtests.scenarios.reconciliation import DEBITS
from tests.support.processes import Running, running

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("locust") is None, reason="locust is not installed (the extra load, or test)"
)
ROOT = Path(__file__).parents[3]
TIMEOUT_S = 120


@dataclass(frozen=True, slots=True)
class Run:
    """A scenario that has been run."""

    status: int
    said: str
    document: dict[str, Any]
    report: str

    def verdicts(self) -> dict[str, str]:
        return {check["name"]: check["verdict"] for check in self.document["checks"]}

    def failed(self) -> list[str]:
        return [name for name, verdict in self.verdicts().items() if verdict == "FAILED"]


def scenario(directory: Path, *words: str) -> Run:
    result, report = directory / "result.json", directory / "report.html"
    done = subprocess.run(
        [sys.executable, "-m", "loadtests.scenarios", *words, "--json", str(result), "--report", str(report)],
        cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
    )  # fmt: skip
    return Run(
        done.returncode,
        done.stdout + done.stderr,
        json.loads(result.read_text()) if result.exists() else {},
        report.read_text() if report.exists() else "",
    )


@pytest.fixture(scope="module")
def demo() -> Iterator[Running]:
    with running("demo", "--proxy-port", "0", "--admin-port", "0", "--json") as started:
        yield started


def key_of(demo: Running, account: str) -> str:
    return next(str(each["api_key"]) for each in demo.ready["accounts"] if each["id"] == account)


def access(demo: Running) -> tuple[str, ...]:
    ready = demo.ready
    return ("--url", ready["proxy"], "--admin", ready["admin"], "--valkey", ready["valkey"], "--openmeter",
            ready["openmeter"])  # fmt: skip


def test_of_a_herd_exactly_the_paid_calls_pass(tmp_path: Path) -> None:
    run = scenario(tmp_path, "herd", "--paid", "60", "--users", "8", "--seconds", "10")
    assert run.status == 0, run.said
    assert set(run.verdicts().values()) == {"holds"}
    assert run.document["answers"]["by_status"]["200"] == 60
    assert run.document["answers"]["charged"] == {"tpp-herd": 60}
    assert "all checks hold" in run.report


def test_a_deployment_that_runs_already_is_checked_and_its_secrets_are_not_shown(demo: Running, tmp_path: Path) -> None:
    key = key_of(demo, "tpp-postpaid")
    run = scenario(tmp_path, "steady", *access(demo), "--key", key, "--users", "4", "--seconds", "1")
    assert run.status == 0, run.said
    assert set(run.verdicts().values()) == {"holds"}
    answers = run.document["answers"]
    assert answers["charged"] == {"tpp-postpaid": answers["by_status"]["200"]}
    for text in (run.said, json.dumps(run.document), run.report):
        assert key not in text


def test_an_expectation_that_is_not_met_is_exit_status_1(demo: Running, tmp_path: Path) -> None:
    """The account can pay for ten calls."""
    words = (
        *access(demo),
        "--key",
        key_of(demo, "tpp-prepaid"),
        "--users",
        "4",
        "--seconds",
        "2",
        "--settle-timeout",
        "1",
    )
    run = scenario(tmp_path, "herd", *words, "--paid", "11")
    assert run.status == 1, run.said
    assert run.failed() == ["exactly the paid calls passed"]
    assert ">FAILED<" in run.report


def test_a_debit_that_no_client_was_told_of_is_exit_status_1(demo: Running, tmp_path: Path) -> None:
    """One call is made behind the clients' backs, in the middle of the run."""
    key, url = key_of(demo, "tpp-postpaid"), f"{demo.ready['proxy']}/open-banking/v3.1/aisp/accounts"
    unseen = tmp_path / "unseen.py"
    unseen.write_text(
        f"import urllib.request as u; u.urlopen(u.Request({url!r}, headers={{'X-API-Key': {key!r}}})).read()"
    )
    words = ("--key", key, "--users", "2", "--seconds", "2", "--settle-timeout", "1", "--lasts", "0")
    run = scenario(tmp_path, "rolling-restart", *access(demo), *words, "--disrupt", f"{sys.executable} {unseen}")
    assert run.status == 1, run.said
    assert run.failed() == [DEBITS, "no request was accepted and not answered: debits = answers"]


def test_what_was_given_no_access_to_is_not_checked(demo: Running, tmp_path: Path) -> None:
    words = ("--url", demo.ready["proxy"], "--key", key_of(demo, "tpp-postpaid"), "--users", "2", "--seconds", "0.5")
    run = scenario(tmp_path, "steady", *words)
    assert run.status == 0, run.said
    assert list(run.verdicts().values()).count("not checked") == len(run.verdicts()) - 1


def test_a_key_that_is_not_known_and_a_gateway_that_is_not_there_are_one_line_and_exit_status_2(
    demo: Running, tmp_path: Path
) -> None:
    for url, says in ((demo.ready["proxy"], "401"), ("http://127.0.0.1:1", "Connection refused")):
        run = scenario(tmp_path, "steady", "--url", url, "--key", "no-such-key")
        assert run.status == 2
        assert says in run.said
        assert len(run.said.splitlines()) == 1
        assert "no-such-key" not in run.said
