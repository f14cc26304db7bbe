"""Runs one scenario: counts, first calls, load with its troubles, counts again until they agree, checks."""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

from loadtests.kit import machine
from loadtests.kit.processes import running as process
from loadtests.scenarios.adopting import First, probe
from loadtests.scenarios.checks import Check, Verdict
from loadtests.scenarios.options import Options
from loadtests.scenarios.outcome import Outcome
from loadtests.scenarios.plan import Answers, merged
from loadtests.scenarios.reconciliation import Counts, RunCounts, judge
from loadtests.scenarios.result_counter import ResultCounter
from loadtests.scenarios.scenario import Evidence, Mark, Scenario, Setting, Trouble
from loadtests.scenarios.sources import Sources
from loadtests.scenarios.target import CannotRun, Target
from loadtests.scenarios.web import NoAnswer, ask

MARGIN_S: Final = 180.0
"""How much longer than its load the load process may take before it is ended."""

BEYOND: Final = 10
"""How often each client of a herd calls after the credit has ended, on average."""

LOOK_S: Final = 0.25
QUIET_S: Final = 1.0
"""Between two looks that must find the same: longer than a batch of charges or of events is under way."""

STARTED_S: Final = 60.0
Say = Callable[[str], None]


def run(scenario: Scenario, setting: Setting, options: Options, directory: Path, say: Say) -> Outcome:
    """Raises CannotRun."""
    target, sources = setting.target, Sources(setting.target)
    sources.mark()
    before = sources.counts()
    busy = [account for account, entry in (before.ledger or {}).items() if entry.held]
    if busy:
        raise CannotRun(f"{busy[0]} is in use: units are held. Its counts would include the calls of others")
    results = ResultCounter()
    first = probe(target, results)
    plan = setting.plan
    if plan.kind == "herd":
        paid = options.paid if options.paid is not None else first.left or 0
        plan = replace(plan, attempts_max=paid + plan.users * BEYOND)
    setting = replace(setting, plan=plan)
    memory = {pid: resident_bytes(pid, "VmRSS") for pid in target.pids}
    say(f"{scenario.name}: {plan.users} clients, {plan.seconds:g} s, {len(target.accounts)} accounts")
    started_at = time.time()
    answers, marks, acted = _load(setting, directory, say)
    grown = [resident_bytes(pid, "VmHWM") - was for pid, was in memory.items()]
    answers = merged(answers, results.answers())
    say(f"{answers.total:,} requests; waiting until the counts agree")
    evidence, checks = _settle(setting, sources, before, answers, marks, grown, first, options.settle_timeout_s)
    return Outcome(
        scenario=scenario.name, about=scenario.about, asserts=scenario.asserts, started_at=started_at,
        urls=target.urls, release=release_of(target), machine=machine.describe(), python=machine.python(),
        is_local=not options.urls,
        notes=target.about, users=plan.users, seconds=answers.took_s, seconds_asked=plan.seconds, answers=answers,
        marks=marks,
        grown_mb=evidence.grown_mb, checks=(*checks, *acted),
    )  # fmt: skip


def _settle(
    setting: Setting, sources: Sources, before: Counts, answers: Answers, marks: tuple[Mark, ...], grown: list[int],
    first: First, settle_timeout_s: float,
) -> tuple[Evidence, tuple[Check, ...]]:  # fmt: skip
    """Reads the counts until everything holds, for ``settle_timeout_s`` at most: events take a while. What holds must
    hold at a second reading too, since something charged twice may come late.
    """
    until, held = time.monotonic() + settle_timeout_s, False
    while True:
        run_counts = RunCounts(before, sources.counts(), answers)
        grown_mb = max(grown) / 1e6 if grown else None
        evidence = Evidence(run_counts, marks, grown_mb, first.left, first.price)
        checks = (*judge(run_counts), *setting.judge(evidence))
        holds = all(check.verdict is not Verdict.FAILED for check in checks)
        if (holds and held) or (not holds and time.monotonic() > until):
            return evidence, checks
        held = holds
        time.sleep(QUIET_S if holds else LOOK_S)


def _load(setting: Setting, directory: Path, say: Say) -> tuple[Answers, tuple[Mark, ...], tuple[Check, ...]]:
    log = directory / "load.log"
    with process([sys.executable, "-m", "loadtests.scenarios.load"], log=log) as loading:
        assert loading.stdin is not None
        assert loading.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            loading.stdin.write(json.dumps(setting.plan.as_json()) + "\n")
            loading.stdin.flush()
        alarm = threading.Timer(STARTED_S + setting.plan.seconds + MARGIN_S + 3 * setting.plan.limit_s, loading.kill)
        alarm.start()
        try:
            if not loading.stdout.readline():
                raise CannotRun(f"the load process ended at once: {_last_line(log)}")
            marks, acted = make_trouble(setting.troubles, setting.plan.seconds, say)
            line = loading.stdout.readline()
        finally:
            alarm.cancel()
    if not line:
        raise CannotRun(f"the load process ended before it had an answer: {_last_line(log)}")
    return Answers.parse(json.loads(line)), marks, acted


def make_trouble(troubles: tuple[Trouble, ...], seconds: float, say: Say) -> tuple[tuple[Mark, ...], tuple[Check, ...]]:
    """Makes each trouble at its time. What began is ended, whatever happens."""
    began = time.monotonic()
    marks: list[Mark] = []
    checks: list[Check] = []
    for trouble in troubles:
        time.sleep(max(0.0, trouble.at * seconds - (time.monotonic() - began)))
        at = time.monotonic() - began
        say(f"{at:5.1f} s  {trouble.label}")
        try:
            checks += trouble.begin()
            time.sleep(trouble.lasts_s)
        finally:
            checks += trouble.end()
        marks.append(Mark(trouble.label, round(at, 2), round(time.monotonic() - began, 2)))
    return tuple(marks), tuple(checks)


def release_of(target: Target) -> str:
    """Release and build of the gateway, as ``sidecar.basics.build.describe`` has it there; "" where nobody may look."""
    if not target.admin:
        return ""
    try:
        status = ask("the admin side", "GET", f"{target.admin}/v1/status", token=target.admin_token)
        return f"{status['version']} ({status['request_path']})"
    except (NoAnswer, KeyError):  # a release that did not say it yet
        return ""


def resident_bytes(pid: int, what: str) -> int:
    """``VmRSS``: memory that a process has now; ``VmHWM``: the most that it ever had. Raises CannotRun."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        raise CannotRun(f"--pid: there is no process {pid}") from None
    return int(status.partition(f"{what}:")[2].split()[0]) * 1024


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
    return lines[-1] if lines else "it said nothing"
