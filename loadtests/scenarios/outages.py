"""Scenarios with trouble in what surrounds a gateway: Valkey, OpenMeter, the gateway itself restarted."""

from __future__ import annotations

import signal
import subprocess
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from loadtests.scenarios import stack
from loadtests.scenarios.checks import Check, equals, passes, unchecked, within
from loadtests.scenarios.options import ACCOUNTS_PATH, Options
from loadtests.scenarios.ordinary import crowd, plan_of
from loadtests.scenarios.plan import Answers, Call
from loadtests.scenarios.reconciliation import NEED_LEDGER, debited, has_new_period
from loadtests.scenarios.scenario import Evidence, Scenario, Setting, Trouble
from loadtests.scenarios.stack import Fsync, Gateway, ValkeyServer
from loadtests.scenarios.target import CannotRun, Target
from loadtests.scenarios.web import ask

DOWN_S: Final = 1.0
COMMAND_S: Final = 300.0
SECONDS_MIN: Final = 6.0
SLOW_CALL_MS: Final = 200
"""How long the API takes for some of the calls, so that there is always one under way when a gateway stops."""


# Valkey


def stage_valkey_restart(stack_: ExitStack, directory: Path, options: Options) -> Setting:
    _long_enough(options)
    fsync: Fsync = "always" if options.appendfsync == "always" else "everysec"
    server = stack.valkey(stack_, directory, fsync)
    target = crowd(stack.demo(stack_, directory, server.url))
    about = (*target.about, f"on a Valkey of its own with appendonly yes, appendfsync {fsync}")
    troubles = tuple(
        Trouble(at, f"Valkey {number.name}", partial(_end, server, number), DOWN_S, partial(_start, server))
        for at, number in ((0.2, signal.SIGKILL), (0.55, signal.SIGTERM))
    )
    return valkey_restart(replace(target, about=about), options, troubles)


def valkey_restart(target: Target, options: Options, troubles: tuple[Trouble, ...] = ()) -> Setting:
    def judge(evidence: Evidence) -> tuple[Check, ...]:
        answers = evidence.run_counts.answers
        refused = answers.by_status.get("503", 0)
        return (
            only("every answer is 2xx, or 503 meanwhile", answers, "503"),
            passes("the outage was felt", refused > 0, "1 or more 503", f"{refused:,}"),
            _served_after(evidence),
        )

    return Setting(target, plan_of(target, options), troubles or by_command(options), judge)


def _end(server: ValkeyServer, number: signal.Signals) -> tuple[Check, ...]:
    server.end(number)
    return ()


def _start(server: ValkeyServer) -> tuple[Check, ...]:
    server.start()
    return ()


# OpenMeter


def stage_openmeter_outage(stack_: ExitStack, directory: Path, options: Options) -> Setting:
    _long_enough(options)
    target = crowd(stack.demo(stack_, directory))
    faults: dict[str, dict[str, Any]] = {
        "answers 503": {"status": 503},
        "takes events and cuts the connection": {"drop": "after"},
    }
    troubles = tuple(
        Trouble(
            at, f"OpenMeter {words}", partial(_fault, target, fault), options.seconds / 4, partial(_mend, target)
        )
        for at, (words, fault) in zip((0.15, 0.55), faults.items(), strict=True)
    )  # fmt: skip
    about = (*target.about, "outages by the fault controls of its OpenMeter stand-in")
    return openmeter_outage(replace(target, about=about), options, troubles)


def openmeter_outage(target: Target, options: Options, troubles: tuple[Trouble, ...] = ()) -> Setting:
    def judge(evidence: Evidence) -> tuple[Check, ...]:
        return (only("requests were unaffected: every answer is 2xx", evidence.run_counts.answers),)

    return Setting(target, plan_of(target, options), troubles or by_command(options), judge)


def _fault(target: Target, fault: dict[str, Any]) -> tuple[Check, ...]:
    plan = {"script": [], "chances": [{"probability": 1.0, "fault": fault}]}
    ask("OpenMeter", "POST", f"{target.openmeter}/sandbox/faults", body=plan)
    return ()


def _mend(target: Target) -> tuple[Check, ...]:
    struck = int(ask("OpenMeter", "GET", f"{target.openmeter}/sandbox/faults")["struck"])
    ask("OpenMeter", "DELETE", f"{target.openmeter}/sandbox/faults")
    return (passes("the outage was felt", struck > 0, "1 or more deliveries failed", f"{struck:,} so far"),)


# Gateways


def stage_rolling_restart(stack_: ExitStack, directory: Path, options: Options) -> Setting:
    _long_enough(options)
    demo = stack.demo(stack_, directory)
    gateways = stack.gateways(stack_, demo, directory, 2, access="all")
    target = crowd(demo)
    calls = (Call(ACCOUNTS_PATH, weight=3), Call(ACCOUNTS_PATH, fields={"x-sandbox-delay-ms": str(SLOW_CALL_MS)}))
    about = (
        *target.about,
        f"{len(gateways)} × sidecar run on its Valkey and API; clients change over as a balancer does",
    )
    troubles = tuple(
        Trouble(at, f"{gateway.name} SIGTERM", partial(_drain, gateway), 0.0, partial(_again, gateway))
        for at, gateway in zip((0.15, 0.4, 0.6, 0.8), gateways * 2, strict=True)
    )
    urls = tuple(gateway.url for gateway in gateways)
    setting = rolling_restart(replace(target, urls=urls, calls=calls, about=about), options, troubles)

    def judge(evidence: Evidence) -> tuple[Check, ...]:
        logged = sum((gateway.requests() for gateway in gateways), Counter[str]())
        return (*setting.judge(evidence), all_answered(logged, evidence.run_counts.answers))

    return replace(setting, judge=judge)


def rolling_restart(target: Target, options: Options, troubles: tuple[Trouble, ...] = ()) -> Setting:
    def judge(evidence: Evidence) -> tuple[Check, ...]:
        answers = evidence.run_counts.answers
        return (
            only("every answer is 2xx", answers),
            equals("answers that began and broke off", 0, answers.broken),
            _cut_were_not_accepted(evidence),
            _served_after(evidence),
        )

    return Setting(target, plan_of(target, options), troubles or by_command(options), judge)


def all_answered(logged: Mapping[str, int], answers: Answers) -> Check:
    """Every request that a gateway took on, by its access log, arrived at a client with the status that it logged."""
    arrived = {status: count for status, count in answers.by_status.items() if status.isdigit()}
    return equals("every request that a gateway took on was answered", _counts(logged), _counts(arrived))


def _counts(statuses: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} × {status}" for status, count in sorted(statuses.items())) or "none"


def _cut_were_not_accepted(evidence: Evidence) -> Check:
    """A gateway that closes an idle connection may cross a request on its way, which it never reads (RFC 9112 section
    9.5). One that it accepted and did not answer would be charged without an answer.
    """
    name, run_counts = "no request was accepted and not answered: debits = answers", evidence.run_counts
    before, after, charged = run_counts.before.ledger, run_counts.after.ledger, run_counts.answers.charged
    if before is None or after is None or has_new_period(before, after):
        return unchecked(name, f"{sum(charged.values()):,}", NEED_LEDGER)
    return within(name, charged, charged, debited(before, after))


def _drain(gateway: Gateway) -> tuple[Check, ...]:
    return (equals(f"{gateway.name} drained, exit status", 0, gateway.terminate()),)


def _again(gateway: Gateway) -> tuple[Check, ...]:
    gateway.start()
    return ()


# What they share


def by_command(options: Options) -> tuple[Trouble, ...]:
    """The trouble that a user's commands make. Raises CannotRun: none was given."""
    if not options.disrupt:
        raise CannotRun(f"{options.scenario} needs --disrupt COMMAND (and --restore COMMAND) against a deployment")
    end = partial(_command, "--restore", options.restore) if options.restore else tuple
    return (
        Trouble(0.25, "disrupted by command", partial(_command, "--disrupt", options.disrupt), options.lasts_s, end),
    )


def _command(option: str, command: str) -> tuple[Check, ...]:
    try:
        done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=COMMAND_S)
    except subprocess.TimeoutExpired:
        raise CannotRun(f"the command of {option} takes longer than {COMMAND_S:g} s") from None
    if done.returncode:
        said = done.stderr.strip().splitlines()
        why = said[-1] if said else "it said nothing"
        raise CannotRun(f"the command of {option} ended with status {done.returncode}: {why}")
    return ()


def only(name: str, answers: Answers, *also: str) -> Check:
    others = {
        status: count
        for status, count in answers.by_status.items()
        if status.isdigit() and status[0] != "2" and status not in also
    }
    return equals(name, "none other", _counts(others) if others else "none other")


def _served_after(evidence: Evidence) -> Check:
    last = max((mark.ended_s for mark in evidence.marks), default=0.0)
    passed = sum(second.passed for second in evidence.run_counts.answers.seconds if second.at > last)
    return passes("requests pass again afterwards", passed > 0, "1 or more", f"{passed:,}")


def _long_enough(options: Options) -> None:
    if options.seconds < SECONDS_MIN:
        raise CannotRun(f"{options.scenario} needs --seconds {SECONDS_MIN:g} or more")


SCENARIOS: Final = (
    Scenario(
        "valkey-restart", "Valkey is ended under load (SIGKILL, then SIGTERM) and started again on its data.",
        "Nothing lost, nothing double: answers, debits, events and meters are equal; 503 meanwhile, 2xx afterwards.",
        stage_valkey_restart, valkey_restart,
    ),
    Scenario(
        "openmeter-outage", "OpenMeter refuses deliveries, then takes them and cuts the connection, under load.",
        "Requests are unaffected; every event arrives, and counts once.",
        stage_openmeter_outage, openmeter_outage,
    ),
    Scenario(
        "rolling-restart", "Gateways are stopped (SIGTERM) and started again in turn under load.",
        "No request that was accepted breaks, gateways drain and exit with 0, debits = answers.",
        stage_rolling_restart, rolling_restart,
    ),
)  # fmt: skip
