"""Bounds that figures of a run have to keep, and whether they did. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, Generic, TypeVar

from rich import box
from rich.table import Table

from loadtests.kit.results import spread


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A figure, said in ``what``, must not be above ``bound`` (or below it, with ``at_least``). Subclasses say where
    the figure is found."""

    what: str
    bound: float
    at_least: bool = False


B = TypeVar("B", bound=Bar)


@dataclass(frozen=True, slots=True)
class Verdict(Generic[B]):
    """``rounds``: what the figure was in each round, at least one. Their median decides."""

    bar: B
    rounds: tuple[float, ...]

    @property
    def value(self) -> float:
        return median(self.rounds)

    @property
    def holds(self) -> bool:
        return self.value >= self.bar.bound if self.bar.at_least else self.value <= self.bar.bound

    def document(self) -> dict[str, Any]:
        """As JSON would have it."""
        found = {"value": self.value, "low": min(self.rounds), "high": max(self.rounds), "holds": self.holds}
        return {**asdict(self.bar), **found}


def verdict_table(title: str, verdicts: Sequence[Verdict[Any]]) -> Table:
    """A row for each: what was found, and whether it holds."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE)
    for column in ("figure", "median (lowest–highest)", "bar", "holds"):
        table.add_column(column, justify="left" if column == "figure" else "right", no_wrap=True)
    for verdict in verdicts:
        bar = verdict.bar
        found = spread(verdict.rounds, ",.0f" if bar.bound > 1000 else ".2f")
        bound = f"{'≥' if bar.at_least else '≤'} {bar.bound:,g}"
        table.add_row(bar.what, found, bound, "yes" if verdict.holds else "NO")
    return table
