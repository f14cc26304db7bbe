"""The tables, the verdicts, the file and the chart of the curves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from loadtests.kit.bars import Verdict, verdict_table
from loadtests.kit.processes import RigError
from loadtests.kit.results import measured_on, spread
from loadtests.scaling.curve import Curve, CurveBar, Figure, Figures, Results

COLUMNS = 2
GATEWAY, VALKEY, LATENCY = "#1f6f8b", "#d98e04", "#9aa5ad"


def show(
    curves: Sequence[Curve], results: Results, verdicts: Sequence[Verdict[CurveBar]], unjudged: Sequence[CurveBar]
) -> None:
    """Prints everything, wide enough wherever the output goes."""
    console = Console(width=max(170, Console().width), highlight=False)
    for curve in curves:
        points = [point for name, point in results if name == curve.name]
        if not points:
            continue
        table = Table(title=f"{curve.name}: {curve.axis}. {curve.about}", title_justify="left", box=box.SIMPLE)
        for column in ("", *(figure.title for figure in curve.figures)):
            table.add_column(column, justify="right", no_wrap=True)
        for point in sorted(points):
            rounds = results[curve.name, point]
            table.add_row(f"{point:,}", *(cell(rounds, figure) for figure in curve.figures))
        console.print(table)
    console.print(verdict_table("bars", verdicts))
    for bar in unjudged:
        console.print(f"not measured: {bar.what}")


def cell(rounds: Sequence[Figures], figure: Figure) -> str:
    """Median and spread; empty where it was not measured."""
    values = [each[figure.key] for each in rounds if figure.key in each]
    if not values:
        return ""
    return spread(values, figure.form)


def document(results: Results, verdicts: Sequence[Verdict[CurveBar]], seconds: int) -> dict[str, Any]:
    """The whole result as JSON would have it."""
    return {
        **measured_on(seconds),
        "bars": [each.document() for each in verdicts],
        "results": [
            {"curve": name, "point": point, "rounds": [dict(each) for each in rounds]}
            for (name, point), rounds in results.items()
        ],
    }


def draw(path: Path, curves: Sequence[Curve], result: dict[str, Any]) -> None:
    """A panel for each curve that was measured.

    Raises:
        RigError: matplotlib is not installed, or nothing was measured.
    """
    try:
        from matplotlib import rcParams
        from matplotlib.figure import Figure as Sheet
    except ImportError:
        raise RigError("a chart needs matplotlib (pip install 'quota-sidecar[compare]')") from None
    rows: dict[str, dict[int, list[Figures]]] = {}
    for row in result["results"]:
        rows.setdefault(row["curve"], {})[row["point"]] = row["rounds"]
    measured = [curve for curve in curves if curve.name in rows]
    if not measured:
        raise RigError("nothing was measured")
    rcParams["svg.fonttype"] = "none"  # text stays text
    height = -(-len(measured) // COLUMNS)
    sheet = Sheet(figsize=(10, 2.6 * height + 0.8), layout="constrained")
    for at, curve in enumerate(measured):
        _panel(sheet.add_subplot(height, COLUMNS, at + 1), curve, rows[curve.name])
    sheet.suptitle(
        "CPU of the gateway (blue) and of Valkey (orange), µs a request; p99 in ms (grey, right); lowest to highest\n"
        f"{result['date']}, {result['machine']}, Python {result['python']}", fontsize=9, ha="left", x=0.01,
    )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.savefig(path)


def _panel(axes: Any, curve: Curve, points: dict[int, list[Figures]]) -> None:
    at = sorted(points)
    places = list(range(len(at)))  # points are far apart, and one may be 0
    for key, colour in (("cpu_us", GATEWAY), ("valkey_us", VALKEY)):
        _line(axes, places, [[each[key] for each in points[point]] for point in at], colour)
    middles = [median(each["cpu_us"] for each in points[point]) for point in at]
    if max(middles) > 20 * min(middles):
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    axes.set_xticks(places, [short(point) for point in at])
    axes.set_xlabel(curve.axis, fontsize=8)
    axes.set_title(curve.name, fontsize=10, loc="left", fontweight="bold")
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    if all("p99_ms" in each for point in at for each in points[point]):
        right = axes.twinx()
        _line(right, places, [[each["p99_ms"] for each in points[point]] for point in at], LATENCY, dashed=True)
        right.set_yscale(axes.get_yscale())
        if axes.get_yscale() == "linear":
            right.set_ylim(bottom=0)
        right.tick_params(labelsize=8, colors=LATENCY)
        right.spines[["top"]].set_visible(False)
    else:
        axes.set_ylabel("µs an event", fontsize=8)


def _line(axes: Any, places: list[int], rounds: list[list[float]], colour: str, *, dashed: bool = False) -> None:
    axes.plot(places, [median(each) for each in rounds], color=colour, marker="o", markersize=3,
              linestyle="--" if dashed else "-", linewidth=1.2)  # fmt: skip
    axes.vlines(places, [min(each) for each in rounds], [max(each) for each in rounds], color=colour, linewidth=0.8)


def short(number: int) -> str:
    """A number as an axis has room for it: 100,000 is 100k."""
    for factor, letter in ((1_000_000, "M"), (1_000, "k")):
        if number >= factor and number % factor == 0:
            return f"{number // factor}{letter}"
    return str(number)
