"""The table, the verdicts, the file and the chart of a comparison."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any, Final

from rich import box
from rich.console import Console
from rich.table import Table

from loadtests.compare import contenders as who
from loadtests.compare.bars import RatioBar, Results
from loadtests.compare.measuring import Measurement
from loadtests.kit import charts
from loadtests.kit.bars import Verdict, verdict_table
from loadtests.kit.processes import RigError
from loadtests.kit.results import measured_on, spread

CHART_CONNECTIONS = 64
OURS, PEERS = ("CPU of the gateway", charts.GATEWAY), ("CPU of the other contenders", charts.OTHER)
VALKEYS: Final = "CPU of Valkey"
WHISKER: Final = {"ecolor": "#1c2024", "elinewidth": 1, "capsize": 2.5}

COLUMNS = (
    ("requests/s", "requests_per_s", ",.0f"), ("CPU µs/req.", "cpu_us", ".1f"), ("Valkey µs/req.", "valkey_us", ".1f"),
    ("p50 ms", "p50_ms", ".2f"), ("p99 ms", "p99_ms", ".2f"), ("memory MB", "memory_mb", ".0f"),
)  # fmt: skip

ORDER = (
    who.DIRECT, who.NGINX, who.ENVOY, who.NGINX_LUA, who.NGINX_LUA_EVENT, who.ENVOY_DEBIT, who.AIOHTTP,
    who.GATEWAY_FREE, who.GATEWAY,
)  # fmt: skip


def show(results: Results, verdicts: list[Verdict[RatioBar]], missing: list[str]) -> None:
    """Prints everything, wide enough for the tables wherever the output goes."""
    console = Console(width=max(170, Console().width))
    table = Table(title="medians (lowest–highest)", title_justify="left", box=box.SIMPLE)
    for column in ("conn.", "contender", *(title for title, _, _ in COLUMNS)):
        table.add_column(column, justify="left" if column == "contender" else "right", no_wrap=True)
    order = {name: at for at, name in enumerate(ORDER)}
    before = None
    for connections, name in sorted(results, key=lambda key: (key[0], order[key[1]])):
        rounds = results[connections, name]
        if before is not None and connections != before:
            table.add_section()
        before = connections
        table.add_row(str(connections), name, *(_cell(rounds, figure, form) for _, figure, form in COLUMNS))
    console.print(table)
    console.print(verdict_table("the gateway ÷ its peer, round by round", verdicts))
    for reason in missing:
        console.print(f"left out: {reason}")


def _cell(rounds: list[Measurement], figure: str, form: str) -> str:
    values = [getattr(each, figure) for each in rounds]
    if not any(values) or (figure == "valkey_us" and max(values) < 0.5):
        return ""
    return spread(values, form)


def document(results: Results, verdicts: list[Verdict[RatioBar]], missing: list[str], seconds: int) -> dict[str, Any]:
    """The whole result as JSON would have it."""
    return {
        **measured_on(seconds),
        "missing": missing,
        "bars": [each.document() for each in verdicts],
        "results": [
            {"connections": connections, "contender": name, "rounds": [asdict(each) for each in rounds]}
            for (connections, name), rounds in results.items()
        ],
    }


def draw(path: Path, result: dict[str, Any]) -> None:
    """Bars of CPU per request at 64 connections, the contender's own and Valkey's, with the spread of the rounds.

    Raises:
        RigError: matplotlib is not installed, or nothing was measured at 64 connections.
    """
    rows = {row["contender"]: row["rounds"] for row in result["results"] if row["connections"] == CHART_CONNECTIONS}
    names = [name for name in reversed(ORDER) if name in rows and name != who.DIRECT]
    if not names:
        raise RigError(f"nothing was measured at {CHART_CONNECTIONS} connections")
    figure = charts.sheet(9, 0.62 * len(names) + 1.6)
    axes = figure.add_subplot()
    for at, name in enumerate(names):
        title, colour = OURS if name.startswith("gateway") else PEERS
        valkey = [each["valkey_us"] for each in rows[name]]
        used = median(valkey) > 1
        _bar(axes, at + (0.15 if used else 0), 0.42, [each["cpu_us"] for each in rows[name]], colour, title)
        if used:
            _bar(axes, at - 0.22, 0.26, valkey, charts.VALKEY, VALKEYS)
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("CPU time per request, µs")
    axes.margins(x=0.08)
    axes.spines[["top", "right"]].set_visible(False)
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))  # one of each
    shown = [title for title in (OURS[0], PEERS[0], VALKEYS) if title in handles]
    line = axes.errorbar([], [], xerr=[], fmt="none", **WHISKER)
    axes.legend([*(handles[title] for title in shown), line], [*shown, charts.SPREAD], loc="upper right",
                frameon=False, fontsize=9)  # fmt: skip
    rounds = max(len(rows[name]) for name in names)
    charts.frame(figure, f"CPU time per request at {CHART_CONNECTIONS} connections", result, rounds)
    charts.save(figure, path)


def _bar(axes: Any, at: float, height: float, rounds: list[float], colour: str, title: str) -> None:
    """The median, with the spread of the rounds and, beyond that, the figure."""
    middle, low, high = median(rounds), min(rounds), max(rounds)
    axes.barh(at, middle, height, color=colour, label=title)
    axes.errorbar(middle, at, xerr=[[middle - low], [high - middle]], fmt="none", **WHISKER)
    axes.annotate(
        f"{middle:.0f}", (max(middle, high), at), xytext=(6, 0), textcoords="offset points", va="center", fontsize=9
    )
