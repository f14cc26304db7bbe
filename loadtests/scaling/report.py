"""The tables, the verdicts, the file and the chart of the curves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, Final

from rich import box
from rich.console import Console
from rich.table import Table

from loadtests.kit import charts
from loadtests.kit.bars import Verdict, verdict_table
from loadtests.kit.processes import RigError
from loadtests.kit.results import measured_on, spread
from loadtests.scaling.curve import Curve, CurveBar, Figure, Figures, Results

COLUMNS = 2
SERIES: Final[tuple[tuple[str, str, float, dict[str, str]], ...]] = (
    ("CPU of the gateway or publisher", charts.GATEWAY, 0.0, {"marker": "o"}),
    ("CPU of Valkey", charts.VALKEY, -0.06, {"marker": "o"}),
    ("p99 latency (right axis)", charts.DARK, 0.06, {"marker": "s", "linestyle": "--"}),
)
"""Title, colour, a shift to the side so that no line covers another one's spread, and style."""


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
    rows: dict[str, dict[int, list[Figures]]] = {}
    for row in result["results"]:
        rows.setdefault(row["curve"], {})[row["point"]] = row["rounds"]
    measured = [curve for curve in curves if curve.name in rows]
    if not measured:
        raise RigError("nothing was measured")
    height = -(-len(measured) // COLUMNS)
    figure = charts.sheet(10, 2.7 * height + 1)
    figure.get_layout_engine().set(wspace=0.05, hspace=0.03)
    lines: dict[str, Any] = {}
    for at, curve in enumerate(measured):
        lines |= _panel(figure.add_subplot(height, COLUMNS, at + 1), curve, rows[curve.name])
    lines[charts.SPREAD] = figure.axes[0].vlines([], [], [], color=charts.DARK, linewidth=0.8)
    figure.align_ylabels(figure.axes)
    # The title has an empty second line, where the legend is.
    place = {"loc": "upper left", "bbox_to_anchor": (0, 1 - 0.25 / figure.get_figheight())}
    figure.legend(lines.values(), lines.keys(), ncols=4, frameon=False, fontsize=9, **place)
    rounds = max(len(each) for points in rows.values() for each in points.values())
    charts.frame(figure, "CPU time and latency as one quantity grows\n", result, rounds)
    charts.save(figure, path)


def _panel(axes: Any, curve: Curve, points: dict[int, list[Figures]]) -> dict[str, Any]:
    """Draws a curve, and answers what is to be explained, by its title."""
    at = sorted(points)
    # Points are far apart, and one may be 0, so they stand at equal distances.
    series = [("cpu_us", axes, SERIES[0]), ("valkey_us", axes, SERIES[1])]
    unit = "event" if curve.name == "publisher" else "request"
    axes.set_ylabel(f"CPU time, µs per {unit}", fontsize=8)
    if all("p99_ms" in each for point in at for each in points[point]):
        right = axes.twinx()
        right.set_ylabel("p99 latency, ms", fontsize=8, color=charts.DARK)
        right.tick_params(labelsize=8, colors=charts.DARK)
        right.spines[["top"]].set_visible(False)
        series.append(("p99_ms", right, SERIES[2]))
    middles = [median(each["cpu_us"] for each in points[point]) for point in at]
    wide = max(middles) > 20 * min(middles)
    lines = {}
    for key, where, (title, colour, shift, style) in series:
        rounds = [[each[key] for each in points[point]] for point in at]
        places = [place + shift for place in range(len(at))]
        (lines[title],) = where.plot(
            places, [median(each) for each in rounds], color=colour, markersize=3.5, linewidth=1.2, **style
        )
        where.vlines(
            places, [min(each) for each in rounds], [max(each) for each in rounds], color=colour, linewidth=0.8
        )
        if wide:
            where.set_yscale("log")
            where.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        else:
            where.set_ylim(bottom=0)
    axes.set_xticks(range(len(at)), [short(point) for point in at])
    axes.set_xlabel(curve.axis, fontsize=8)
    axes.set_title(curve.name + (" (logarithmic axes)" if wide else ""), fontsize=10, loc="left", fontweight="bold")
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    return lines


def short(number: int) -> str:
    """A number as an axis has room for it: 100,000 is 100k."""
    for factor, letter in ((1_000_000, "M"), (1_000, "k")):
        if number >= factor and number % factor == 0:
            return f"{number // factor}{letter}"
    return str(number)
