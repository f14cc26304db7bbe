"""The table, the verdicts, the file and the chart of a comparison."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from loadtests.compare import contenders as who
from loadtests.compare.bars import RatioBar, Results
from loadtests.compare.measuring import Measurement
from loadtests.kit.bars import Verdict, verdict_table
from loadtests.kit.processes import RigError
from loadtests.kit.results import measured_on, spread

CHART_CONNECTIONS = 64

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
    try:
        from matplotlib import rcParams
        from matplotlib.figure import Figure
    except ImportError:
        raise RigError("a chart needs matplotlib (pip install 'quota-sidecar[compare]')") from None
    rows = {row["contender"]: row["rounds"] for row in result["results"] if row["connections"] == CHART_CONNECTIONS}
    names = [name for name in reversed(ORDER) if name in rows and name != who.DIRECT]
    if not names:
        raise RigError(f"nothing was measured at {CHART_CONNECTIONS} connections")
    rcParams["svg.fonttype"] = "none"  # text stays text
    figure = Figure(figsize=(9, 0.55 * len(names) + 1.4), layout="constrained")
    axes = figure.add_subplot()
    for at, name in enumerate(names):
        own = [each["cpu_us"] for each in rows[name]]
        valkey = median(each["valkey_us"] for each in rows[name])
        ours = name.startswith("gateway")
        middle = median(own)
        axes.barh(at, middle, color="#1f6f8b" if ours else "#9aa5ad")
        if valkey > 1:
            axes.barh(at, valkey, left=middle, color="#d98e04")
        axes.plot([min(own), max(own)], [at, at], color="black", linewidth=1)
        text = f" {middle:.0f}" + (f" + {valkey:.0f}" if valkey > 1 else "")
        axes.text(max(middle + (valkey if valkey > 1 else 0), *own), at, text, va="center", fontsize=9)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("µs of CPU per request at 64 connections; orange: Valkey's; line: lowest to highest round")
    axes.set_title(f"{result['date']}, {result['machine']}, Python {result['python']}", fontsize=9, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
