"""What each scenario asserts besides the counts: a broken promise must be a failed check."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal

import pytest

from loadtests.scenarios.catalog import SCENARIOS
from loadtests.scenarios.checks import Verdict
from loadtests.scenarios.clients import GROWN_MB_MAX
from loadtests.scenarios.options import Options
from loadtests.scenarios.outages import all_answered
from loadtests.scenarios.plan import Answers, Call, Caller, Latency, Second
from loadtests.scenarios.reconciliation import Counts, RunCounts
from loadtests.scenarios.running import make_trouble
from loadtests.scenarios.scenario import Evidence, Mark, Trouble
from loadtests.scenarios.target import CannotRun, Secret, Target
from tests.unit.loadtests.scenarios.kit import TPP, account

TARGET = Target(
    ("http://127.0.0.1:1",), (Caller(TPP, "key"),), (Call("/a"),), lago="http://127.0.0.1:2", lago_key=Secret("k")
)


def failed(name: str, evidence: Evidence, **options: object) -> set[str]:
    """Names of the failed checks of a scenario against a deployment."""
    given = replace(Options(name, disrupt="true", echo="/echo", blob="/blob"), **options)  # type: ignore[arg-type]
    setting = SCENARIOS[name].adopt(TARGET, given)
    return {check.name for check in setting.judge(evidence) if check.verdict is Verdict.FAILED}


def evidence(
    by_status: Mapping[str, int],
    *,
    charged: int = 10,
    debited: int = 10,
    left: str = "0.00",
    broken: int = 0,
    notes: Mapping[str, int] | None = None,
    passed_after: int = 1,
    grown_mb: float | None = None,
    p99_ms: float = 1.0,
) -> Evidence:
    answers = Answers(
        by_status, {TPP: charged}, broken=broken, notes=notes or {}, latency=Latency(p99=p99_ms),
        seconds=(Second(0, 5), Second(4, passed_after)),
    )  # fmt: skip
    before, after = Counts({TPP: account(0, available="1.00")}), Counts({TPP: account(debited, available=left)})
    marks = (Mark("outage", 1.0, 2.0),)
    return Evidence(RunCounts(before, after, answers), marks, grown_mb, first_left=9, price=Decimal("0.10"))


def test_steady_fails_on_any_status_but_2xx() -> None:
    assert failed("steady", evidence({"200": 10, "201": 2})) == set()
    assert failed("steady", evidence({"200": 10, "502": 1})) == {"every answer has a status of 2xx"}


def test_herd_holds_when_exactly_the_paid_calls_pass() -> None:
    assert failed("herd", evidence({"200": 10, "402": 5})) == set()


@pytest.mark.parametrize(
    ("found", "name"),
    [
        (evidence({"200": 11, "402": 5}), "exactly the paid calls passed"),
        (evidence({"200": 9, "402": 5}), "exactly the paid calls passed"),
        (evidence({"200": 10}), "the herd went on beyond the end of the credit"),
        (evidence({"200": 10, "402": 5, "503": 1}), "all other answers are 402"),
        (evidence({"200": 10, "402": 5}, left="0.10"), "the balance is zero"),
        (evidence({"200": 10, "402": 5}, left="-0.10"), "the balance is zero"),
    ],
)
def test_herd_fails_on_one_call_too_many_too_few_or_otherwise(found: Evidence, name: str) -> None:
    assert failed("herd", found) == {name}


def test_what_the_user_says_was_paid_goes_before_what_the_gateway_says() -> None:
    assert failed("herd", evidence({"200": 10, "402": 5}), paid=11) == {"exactly the paid calls passed"}


def test_topup_reckons_credit_and_top_ups_against_what_was_spent_and_is_left() -> None:
    assert failed("topup", evidence({"200": 10, "402": 5})) == set()
    for broken in (evidence({"200": 10, "402": 5}, debited=11), evidence({"200": 10, "402": 5}, left="0.10")):
        assert failed("topup", broken) == {"spent + left = credit + top-ups, account by account"}


def test_valkey_restart_allows_503_and_nothing_else_and_wants_it_over() -> None:
    assert failed("valkey-restart", evidence({"200": 10, "503": 3})) == set()
    assert failed("valkey-restart", evidence({"200": 10, "503": 3, "500": 1})) == {
        "every answer is 2xx, or 503 meanwhile"
    }
    assert failed("valkey-restart", evidence({"200": 10})) == {"the outage was felt"}
    over = evidence({"200": 10, "503": 3}, passed_after=0)
    assert failed("valkey-restart", over) == {"requests pass again afterwards"}


def test_openmeter_outage_must_not_be_felt_by_requests() -> None:
    assert failed("openmeter-outage", evidence({"200": 10, "503": 1})) == {
        "requests were unaffected: every answer is 2xx"
    }


def test_rolling_restart_fails_on_an_answer_that_broke_off_and_on_a_charge_without_one() -> None:
    assert failed("rolling-restart", evidence({"200": 10, "cut without an answer": 1})) == set()
    assert failed("rolling-restart", evidence({"200": 10}, broken=1)) == {"answers that began and broke off"}
    assert failed("rolling-restart", evidence({"200": 10}, debited=11)) == {
        "no request was accepted and not answered: debits = answers"
    }
    assert failed("rolling-restart", evidence({"200": 10, "502": 1})) == {"every answer is 2xx"}


@pytest.mark.parametrize("logged", [{"200": 11}, {"200": 9}, {"200": 10, "499": 1}, {"200": 9, "502": 1}])
def test_a_request_that_a_gateway_took_on_and_nobody_got_an_answer_to_is_found(logged: Mapping[str, int]) -> None:
    answers = Answers({"200": 10, "cut without an answer": 1})
    assert all_answered({"200": 10}, answers).verdict is Verdict.HOLDS
    assert all_answered(logged, answers).verdict is Verdict.FAILED


def test_slow_clients_fails_on_one_that_was_left_to_itself_and_on_memory() -> None:
    ended = {f"{way}: ended by the gateway": 3 for way in ("trickle head", "stall body", "read nothing")}
    assert failed("slow-clients", evidence({"200": 10}, notes=ended, grown_mb=1.0)) == set()
    left = {**ended, "stall body: left to itself": 1}
    assert failed("slow-clients", evidence({"200": 10}, notes=left)) == {"ended by the gateway: stall body"}
    big = evidence({"200": 10}, notes=ended, grown_mb=GROWN_MB_MAX + 1.0)
    assert failed("slow-clients", big) == {"memory of the gateway grew by"}


def test_big_bodies_fails_on_other_bytes() -> None:
    ways = ("PUT by length", "PUT chunked", "GET by length", "GET chunked")
    same = {f"{way}: same bytes": 3 for way in ways}
    assert failed("big-bodies", evidence({"200": 12}, notes=same)) == set()
    other = {**same, "PUT chunked: other bytes": 1}
    assert failed("big-bodies", evidence({"200": 12}, notes=other)) == {"what comes out is what went in: PUT chunked"}


def test_memory_that_nobody_may_look_at_is_not_checked() -> None:
    setting = SCENARIOS["big-bodies"].adopt(TARGET, Options("big-bodies", echo="/echo"))
    verdicts = {check.name: check.verdict for check in setting.judge(evidence({"200": 1}))}
    assert verdicts["memory of the gateway grew by"] is Verdict.UNCHECKED


@pytest.mark.parametrize("name", ["valkey-restart", "openmeter-outage", "rolling-restart", "big-bodies"])
def test_against_a_deployment_a_scenario_says_what_it_cannot_do_without(name: str) -> None:
    with pytest.raises(CannotRun, match="needs --"):
        SCENARIOS[name].adopt(TARGET, Options(name))


def test_a_trouble_that_fails_to_begin_is_ended_all_the_same() -> None:
    ended: list[str] = []

    def begin() -> tuple[()]:
        raise CannotRun("it does not begin")

    def end() -> tuple[()]:
        ended.append("ended")
        return ()

    with pytest.raises(CannotRun):
        make_trouble((Trouble(0.0, "outage", begin, 0.0, end),), 1.0, lambda _: None)
    assert ended == ["ended"]
