"""How requests are counted by how they ended."""

from __future__ import annotations

import pytest

from loadtests.scenarios.plan import Answers, Call, Caller, Latency, Plan, Second, merged
from loadtests.scenarios.result_counter import End, Reply, ResultCounter, latency_of

CHARGED = {"x-credits-charged": "0.10"}
REPEATED = {**CHARGED, "x-credits-repeat": "true"}


def counted(*replies: Reply) -> Answers:
    results = ResultCounter()
    for reply in replies:
        results.record(reply, account="tpp", units=2, at_s=0.5, took_ms=1.0)
    return results.answers()


@pytest.mark.parametrize(
    ("reply", "charged", "unsure"),
    [
        (Reply(End.ANSWERED, 200, CHARGED), 2, 0),
        (Reply(End.ANSWERED, 404, CHARGED), 0, 0),
        (Reply(End.ANSWERED, 200, REPEATED), 0, 0),
        (Reply(End.ANSWERED, 200, {}), 0, 0),
        (Reply(End.ANSWERED, 402, {"x-credits-remaining": "0.00"}), 0, 0),
        (Reply(End.ANSWERED, 503, CHARGED), 0, 0),
        (Reply(End.REFUSED), 0, 0),
        (Reply(End.CUT), 0, 2),
        (Reply(End.BROKEN, 200, CHARGED), 0, 2),
        (Reply(End.UNREAD), 0, 2),
    ],
)
def test_what_is_charged_for_sure_and_what_may_be(reply: Reply, charged: int, unsure: int) -> None:
    answers = counted(reply)
    assert (answers.charged.get("tpp", 0), answers.unsure.get("tpp", 0)) == (charged, unsure)


def test_statuses_and_ends_without_one_are_counted_apart() -> None:
    answers = counted(Reply(End.ANSWERED, 200), Reply(End.ANSWERED, 402), Reply(End.CUT), Reply(End.BROKEN, 200))
    assert answers.by_status == {"200": 1, "402": 1, "cut without an answer": 1, "answer broke off": 1}
    assert (answers.broken, answers.total, answers.statuses("2")) == (1, 4, 1)


def test_seconds_have_no_gaps_and_tell_passed_from_refused_and_lost() -> None:
    results = ResultCounter()
    for at_s, reply in ((1.2, Reply(End.ANSWERED, 201)), (1.9, Reply(End.ANSWERED, 503)), (3.0, Reply(End.CUT))):
        results.record(reply, account="tpp", units=1, at_s=at_s, took_ms=1.0)
    assert results.answers().seconds == (Second(1, 1, 1, 0), Second(2), Second(3, 0, 0, 1))


def test_latency_is_that_of_answers_that_passed() -> None:
    results = ResultCounter()
    for status, took_ms in ((200, 5.0), (402, 900.0)):
        results.record(Reply(End.ANSWERED, status), account="tpp", units=1, at_s=0, took_ms=took_ms)
    assert results.answers().latency == Latency(5.0, 5.0, 5.0, 5.0)


def test_percentiles_are_those_of_the_nearest_rank() -> None:
    assert latency_of([float(value) for value in range(100, 0, -1)]) == Latency(51.0, 91.0, 100.0, 100.0)
    assert latency_of([]) == Latency()


def test_the_first_calls_count_with_the_others() -> None:
    first, run = counted(Reply(End.ANSWERED, 200, CHARGED)), counted(Reply(End.ANSWERED, 200, CHARGED), Reply(End.CUT))
    both = merged(run, first)
    assert (both.charged, both.unsure, both.by_status["200"]) == ({"tpp": 4}, {"tpp": 2}, 2)


def test_a_plan_and_its_answers_come_out_of_the_pipe_as_they_went_in() -> None:
    caller, call = Caller("tpp", "secret-key"), Call("/a", "POST", "{}", fields={"x-sandbox-delay-ms": "5"})
    plan = Plan("calls", ("http://a",), (caller,), (call,), 3, 2.0)
    answers = counted(Reply(End.ANSWERED, 200, CHARGED), Reply(End.CUT))
    assert Plan.parse(plan.as_json()) == plan
    assert Answers.parse(answers.as_json()) == answers
    assert "secret-key" not in repr(plan)
