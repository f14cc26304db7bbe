"""Counts, answers and outcomes to change one figure in."""

from __future__ import annotations

from decimal import Decimal

from loadtests.scenarios.checks import Check
from loadtests.scenarios.outcome import Outcome
from loadtests.scenarios.plan import Answers, Latency, Second
from loadtests.scenarios.reconciliation import Account, Counts, Events, RunCounts, UsageEvent
from loadtests.scenarios.scenario import Mark

TPP = "tpp"


def account(settled: int, held: int = 0, period: int = 1, available: str | None = "1.00") -> Account:
    return Account(settled, held, period, None if available is None else Decimal(available))


def events(count: int, account: str = TPP) -> tuple[UsageEvent, ...]:
    return tuple(UsageEvent(f"i.p00.1.{number}", account, 1) for number in range(count))


def answers(charged: int, unsure: int = 0, **by_status: int) -> Answers:
    return Answers(
        by_status={status.lstrip("_"): count for status, count in by_status.items()} or {"200": charged},
        charged={TPP: charged},
        unsure={TPP: unsure} if unsure else {},
    )


def run_counts(
    *, charged: int = 10, unsure: int = 0, debited: int = 10, held: int = 0, evented: int = 10, metered: int = 10
) -> RunCounts:
    """A run on an account that had used 5 units before."""
    before = Counts({TPP: account(5)}, Events(), {TPP: 5})
    after = Counts({TPP: account(5 + debited, held)}, Events((), events(evented)), {TPP: 5 + metered})
    return RunCounts(before, after, answers(charged, unsure))


def outcome(*checks: Check, seconds: tuple[Second, ...] = (), marks: tuple[Mark, ...] = ()) -> Outcome:
    return Outcome(
        scenario="herd", about="All at once.", asserts="Exactly the paid calls.", started_at=1_795_743_937.0,
        urls=("http://127.0.0.1:8080",), release="1.2.3 (compiled)", machine="Some CPU (x86_64), 2 cores, Linux 6.1",
        python="CPython 3.11.2", is_local=True, notes=("sidecar demo",), users=20, seconds=3.04, seconds_asked=3.0,
        answers=Answers({"200": 10, "402": 3}, {TPP: 10}, latency=Latency(1.0, 2.0, 3.0, 4.0), seconds=seconds),
        checks=checks, marks=marks,
    )  # fmt: skip
