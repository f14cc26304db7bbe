"""What a curve is, and the bars over some of its points. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from loadtests.kit.bars import Bar, Verdict

Figures = Mapping[str, float]
"""What was measured at one point in one round, by name."""
Results = Mapping[tuple[str, int], Sequence[Figures]]
"""By curve and point, one measurement a round."""


@dataclass(frozen=True, slots=True)
class Figure:
    """``form``: as in a format string."""

    key: str
    title: str
    form: str


CPU = Figure("cpu_us", "CPU µs/req.", ".1f")
VALKEY = Figure("valkey_us", "Valkey µs/req.", ".1f")
P50 = Figure("p50_ms", "p50 ms", ".2f")
P99 = Figure("p99_ms", "p99 ms", ".2f")
RATE = Figure("requests_per_s", "requests/s", ",.0f")
MEMORY = Figure("memory_mb", "memory MB", ".0f")
USUAL = (CPU, VALKEY, P50, P99, RATE, MEMORY)


@dataclass(frozen=True, slots=True)
class Ground:
    """What a curve stands on while it is open: its own directory, and how long a measurement is."""

    stack: ExitStack
    directory: Path
    seconds: int


Measure = Callable[[int], Figures]


@dataclass(frozen=True, slots=True)
class Curve:
    """``axis`` names what grows; ``points`` are its values, ``quick`` those of a smoke run. ``open`` starts what all
    points share and returns what measures one of them; it is given the points in order.
    """

    name: str
    axis: str
    about: str
    points: tuple[int, ...]
    quick: tuple[int, ...]
    open: Callable[[Ground, tuple[int, ...]], Measure]
    figures: tuple[Figure, ...] = USUAL


@dataclass(frozen=True, slots=True, kw_only=True)
class CurveBar(Bar):
    """``figure`` of the curve at ``point``, divided by that at ``base`` of the same round if there is one."""

    curve: str
    figure: str
    point: int
    base: int | None = None


def _bar(
    what: str, curve: str, figure: str, point: int, bound: float, *, base: int | None = None, at_least: bool = False
) -> CurveBar:
    return CurveBar(what=what, curve=curve, figure=figure, point=point, bound=bound, base=base, at_least=at_least)


BARS = (
    _bar("CPU per request, 100,000 accounts ÷ 1 account", "accounts", "cpu_us", 100_000, 1.25, base=1),
    _bar("memory of the data plane, idle (MB)", "connections", "idle_mb", 10_000, 60),
    _bar("memory of an idle connection (KiB)", "connections", "connection_kb", 10_000, 8),
    _bar("events delivered per s and core, 300 an entry", "publisher", "events_per_s_core", 300, 40_000, at_least=True),
    _bar("events delivered per s and core, 1 an entry", "publisher", "events_per_s_core", 1, 40_000, at_least=True),
)  # fmt: skip


def judge(results: Results, bars: Sequence[CurveBar] = BARS) -> tuple[list[Verdict[CurveBar]], list[CurveBar]]:
    """A verdict for each bar whose points were measured, and the other bars."""
    verdicts, unjudged = [], []
    for bar in bars:
        rounds = results.get((bar.curve, bar.point), ())
        values = [each[bar.figure] for each in rounds]
        if bar.base is not None:
            base = results.get((bar.curve, bar.base), ())
            values = [value / each[bar.figure] for value, each in zip(values, base, strict=False)]
        if values:
            verdicts.append(Verdict(bar, tuple(values)))
        else:
            unjudged.append(bar)
    return verdicts, unjudged
