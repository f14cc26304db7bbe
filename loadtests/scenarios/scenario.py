"""What a scenario is: how it is set up, what trouble it makes and when, and what must hold besides the counts."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from loadtests.scenarios.checks import Check
from loadtests.scenarios.options import Options
from loadtests.scenarios.plan import Plan
from loadtests.scenarios.reconciliation import RunCounts
from loadtests.scenarios.target import Target

Act = Callable[[], tuple[Check, ...]]
"""Does something to what runs; answers what it could assert right there."""


def nothing() -> tuple[Check, ...]:
    return ()


@dataclass(frozen=True, slots=True)
class Trouble:
    """``at``: when it begins, as a share of the run; it lasts ``lasts_s``, then ``end`` is called."""

    at: float
    label: str
    begin: Act
    lasts_s: float = 0.0
    end: Act = nothing


@dataclass(frozen=True, slots=True)
class Mark:
    """A trouble that was made: its instants in seconds of the run."""

    label: str
    began_s: float
    ended_s: float


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that a scenario's own checks may look at. ``grown_mb``: how much memory gateways took at most, None where
    nobody may look.
    """

    run_counts: RunCounts
    marks: tuple[Mark, ...] = ()
    grown_mb: float | None = None
    first_left: int | None = None
    """Calls that the first answer said were left (``RateLimit``)."""
    price: Decimal | None = None
    """What a call cost, by the first answer."""


@dataclass(frozen=True, slots=True)
class Setting:
    """A scenario that is ready to run. ``judge`` adds to the checks of the counts."""

    target: Target
    plan: Plan
    troubles: tuple[Trouble, ...] = ()
    judge: Callable[[Evidence], tuple[Check, ...]] = lambda _: ()


@dataclass(frozen=True, slots=True)
class Scenario:
    """``asserts`` is for people. ``stage`` starts everything needed; ``adopt`` takes somebody's deployment."""

    name: str
    about: str
    asserts: str
    stage: Callable[[ExitStack, Path, Options], Setting]
    adopt: Callable[[Target, Options], Setting]
