"""What happens in one simulated course of events: drawn from a seed, and made smaller where it fails."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

KINDS: Final = (
    "rough network", "server stands still", "server cut off", "connections break", "server ends and starts",
    "scripts are gone", "data goes back", "data goes back unseen", "all data is gone", "out of memory", "no replicas",
    "disk fails", "loading", "a script runs", "clock steps", "gateway killed", "gateway stopped",
    "openmeter fails", "control plane killed", "lago fails", "money arrives",
)  # fmt: skip
KINDS_OF: Final = {
    "server": (),
    "sentinel": (
        "planned failover",
        "primary dies",
        "primary left alone",
        "replica lags",
        "primary starts with older data",
    )
    * 3,
    "cluster": ("a slot moves",) * 8,
}
"""More that can happen to each deployment of servers, as often as it stands there."""
ENDING: Final = ("gateway killed", "gateway stopped")
CONTROL: Final = ("control plane killed",)


@dataclass(frozen=True, order=True)
class Fault:
    """``at_s``: after the start. ``length_s``: how long it lasts, or how far data goes back. ``who``: which gateway,
    server, partition or control plane. ``step_s``: of a clock."""

    at_s: float
    kind: str
    length_s: float
    who: int = 0
    step_s: float = 0.0


@dataclass(frozen=True)
class Schedule:
    """``load_s``: for how long there are calls. ``servers``: a key of KINDS_OF."""

    seed: int
    load_s: float
    gateways: int
    faults: tuple[Fault, ...]
    servers: str = "server"

    def __str__(self) -> str:
        lines = [f"seed {self.seed}: {self.gateways} gateways, {self.servers}, {self.load_s:.1f} s of calls"]
        lines += [
            f"  at {each.at_s:.2f} s: {each.kind}, {each.length_s:.2f} s, who {each.who}, step {each.step_s:.0f} s"
            for each in self.faults
        ]
        return "\n".join(lines)


def draw(seed: int) -> Schedule:
    """One to six faults in some seconds of calls."""
    chance = random.Random(seed)
    load_s = chance.uniform(2, 8)
    gateways = chance.choice((1, 2, 2, 3))
    servers = chance.choice(("server", "server", "sentinel", "sentinel", "cluster"))
    faults = [
        Fault(
            chance.uniform(0.2, load_s), chance.choice(KINDS + KINDS_OF[servers]),
            chance.choice((0.05, 0.3, 1.0, 3.0)) * chance.uniform(0.5, 1.5),
            chance.randrange(gateways), chance.choice((-40.0, -3.0, 3.0, 40.0)),
        )
        for _ in range(chance.randint(1, 6))
    ]  # fmt: skip
    return Schedule(seed, load_s, gateways, tuple(sorted(faults)), servers)


def shrunk(schedule: Schedule, fails: Callable[[Schedule], bool]) -> Schedule:
    """The same with as few faults as still fail, and for as short as they need."""
    found = True
    while found:
        found = False
        for index in range(len(schedule.faults)):
            less = replace(schedule, faults=schedule.faults[:index] + schedule.faults[index + 1 :])
            if fails(less):
                schedule, found = less, True
                break
    return schedule
