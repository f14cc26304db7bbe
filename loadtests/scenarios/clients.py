"""Scenarios with difficult clients: those that are slow, and those with big bodies."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Final

from loadtests.scenarios import bodies, slow, stack
from loadtests.scenarios.checks import Check, passes, unchecked
from loadtests.scenarios.options import Options
from loadtests.scenarios.ordinary import crowd, plan_of
from loadtests.scenarios.outages import only
from loadtests.scenarios.plan import Call
from loadtests.scenarios.scenario import Evidence, Scenario, Setting
from loadtests.scenarios.target import CannotRun, Target

ECHO, BLOB = "/open-banking/echo", "/open-banking/blob"
LIMIT_S: Final = 2.0
LIMITS: Final = {"header_timeout_ms": 1_500, "body_timeout_ms": 1_500, "write_timeout_ms": 2_000}
GROWN_MB_MAX: Final = 64
"""What a gateway may take more, however much passes through it (README, "Numbers")."""

P99_MS_MAX: Final = 5_000
"""Far above what a busy machine needs; clients that wait for slow ones take longer."""

ODD_BYTES: Final = 12_345
"""So that no body is a whole number of blocks."""


def stage_slow(stack_: ExitStack, directory: Path, options: Options) -> Setting:
    target = _beside(stack_, directory, "limits of 1.5 s for heads and bodies, 2 s for writing", LIMITS)
    return slow_clients(target, replace(options, limit_s=LIMIT_S, echo=ECHO, blob=BLOB))


def slow_clients(target: Target, options: Options) -> Setting:
    if options.users < 2:
        raise CannotRun("slow-clients needs --users 2 or more: half of them are slow")
    plan = replace(
        plan_of(target, options), kind="slow", limit_s=options.limit_s, echo=options.echo, blob=options.blob
    )  # fmt: skip

    def judge(evidence: Evidence) -> tuple[Check, ...]:
        answers = evidence.run_counts.answers
        ended = [_ended(way.__name__, answers.notes) for way in slow.ways(plan)]
        p99 = answers.latency.p99
        return (
            *ended,
            only("every answer to the others is 2xx", answers),
            passes("the others are served meanwhile", p99 <= P99_MS_MAX, f"p99 ≤ {P99_MS_MAX:,} ms", f"p99 {p99} ms"),
            memory(evidence),
        )

    return Setting(target, plan, judge=judge)


def _ended(way: str, notes: Mapping[str, int]) -> Check:
    ended, left = notes.get(slow.note(way, True), 0), notes.get(slow.note(way, False), 0)
    name = f"ended by the gateway: {way.replace('_', ' ')}"
    if not ended + left:
        return unchecked(name, "all", "more --seconds or --users")
    return passes(name, not left, "all", f"all {ended:,}" if not left else f"{ended:,} of {ended + left:,}")


def stage_bodies(stack_: ExitStack, directory: Path, options: Options) -> Setting:
    target = _beside(stack_, directory, "no limit for bodies", {"body_bytes_max": None})
    return big_bodies(target, replace(options, echo=ECHO, blob=BLOB))


def big_bodies(target: Target, options: Options) -> Setting:
    if not (options.echo or options.blob):
        raise CannotRun("big-bodies needs --echo PATH or --blob PATH of an API that answers what it got (README)")
    first = Call(options.echo, "PUT", "first") if options.echo else Call(f"{options.blob}?bytes=1")
    target = replace(target, calls=(replace(first, units=options.units),))
    size = options.body_mb * 1_000_000 + ODD_BYTES
    plan = replace(
        plan_of(target, options), kind="bodies", body_bytes=size, echo=options.echo, blob=options.blob
    )  # fmt: skip

    def judge(evidence: Evidence) -> tuple[Check, ...]:
        answers = evidence.run_counts.answers
        same = [_same(way, answers.notes) for way in bodies.ways(plan)]
        return (*same, only("every answer is 2xx", answers), memory(evidence))

    return Setting(target, plan, judge=judge)


def _same(way: bodies.Way, notes: Mapping[str, int]) -> Check:
    same, other = notes.get(bodies.note(way, True), 0), notes.get(bodies.note(way, False), 0)
    name = f"what comes out is what went in: {way.name}"
    if not same + other:
        return unchecked(name, "all", "more --seconds")
    return passes(name, not other, "all", f"all {same:,}" if not other else f"{same:,} of {same + other:,}")


def memory(evidence: Evidence) -> Check:
    name, expected = "memory of the gateway grew by", f"≤ {GROWN_MB_MAX} MB"
    if evidence.grown_mb is None:
        return unchecked(name, expected, "--pid")
    return passes(name, evidence.grown_mb <= GROWN_MB_MAX, expected, f"{evidence.grown_mb:.1f} MB")


def _beside(stack_: ExitStack, directory: Path, words: str, limits: Mapping[str, int | None]) -> Target:
    """A gateway with its own limits on a demo's Valkey and API."""
    demo = stack.demo(stack_, directory)
    (gateway,) = stack.gateways(stack_, demo, directory, 1, limits)
    target = crowd(demo)
    about = (*target.about, f"sidecar run on its Valkey and API, with {words}")
    return replace(target, urls=(gateway.url,), pids=(gateway.pid,), echo=ECHO, blob=BLOB, about=about)


SCENARIOS: Final = (
    Scenario(
        "slow-clients", "Half of the clients send heads byte by byte, stop within a body, or do not read the answer.",
        "The gateway's limits end them all; the others are served, memory stays bounded, debits = answers.",
        stage_slow, slow_clients,
    ),
    Scenario(
        "big-bodies", "Bodies of some megabytes both ways, by length and chunked.",
        "The bytes that come out are those that went in (SHA-256); memory stays bounded.",
        stage_bodies, big_bodies,
    ),
)  # fmt: skip
