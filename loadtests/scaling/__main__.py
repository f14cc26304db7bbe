"""``make scaling``: what a request costs as something grows, one curve after the other.

Each curve starts a Valkey, an upstream and the gateways that it needs on loopback, and drives them with wrk. Its points
are measured in turn, several rounds, and each measurement checks that every answer was debited. CPU is what says most:
the load generator, the upstream and Valkey share the machine's processors with the gateway.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console

from loadtests.kit import tools, wrk
from loadtests.kit.processes import RigError
from loadtests.kit.results import read_json, write_json
from loadtests.scaling import report
from loadtests.scaling.curve import Curve, Figures, Ground, judge
from loadtests.scaling.curves import CURVES

FILES_A_CONNECTION = 2.2
"""A gateway, or what opens connections, has one file for each, and some besides."""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.scaling", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.epilog = "exit status: 0 all bars hold, 3 one does not, 1 nothing could be measured, 2 misuse"
    parser.add_argument("curves", nargs="*", metavar="CURVE", help=f"of {', '.join(CURVES)} (default: all)")
    parser.add_argument("--rounds", type=_positive, default=3, help="default: 3")
    parser.add_argument("--seconds", type=_positive, default=3, help="of each measurement (default: 3)")
    parser.add_argument("--quick", action="store_true", help="one round of one second, and small points: a smoke run")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there")
    parser.add_argument("--chart", type=Path, metavar="FILE", help="draw a chart there (.svg or .png)")
    parser.add_argument("--from", type=Path, dest="earlier", metavar="FILE",
                        help="draw the chart of this --json file, and measure nothing")  # fmt: skip
    asked = parser.parse_args(arguments)
    if asked.earlier and not asked.chart:
        parser.error("--from goes with --chart")
    for name in asked.curves:
        if name not in CURVES:
            parser.error(f"there is no curve {name!r}; there are {', '.join(CURVES)}")
    if asked.quick:
        asked.rounds = asked.seconds = 1
    return asked


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def main(arguments: Sequence[str] | None = None) -> int:
    asked = parse(arguments)
    chosen = [CURVES[name] for name in asked.curves or CURVES]
    console = Console(stderr=True)
    results: dict[tuple[str, int], list[Figures]] = {}
    try:
        if asked.earlier:
            report.draw(asked.chart, chosen, read_json(asked.earlier))
            return 0
        if wrk.find() is None:
            raise RigError(f"wrk is not installed ({tools.DEBIAN})")
        for curve in chosen:
            _measure(curve, asked, results, console)
        verdicts, unjudged = judge(results)
        report.show(chosen, results, verdicts, unjudged)
        document = report.document(results, verdicts, asked.seconds)
        if asked.json:
            write_json(asked.json, document)
        if asked.chart:
            report.draw(asked.chart, chosen, document)
    except RigError as error:
        console.print(f"error: {error}", style="red", markup=False, soft_wrap=True)
        return 1
    return 0 if all(verdict.holds for verdict in verdicts) else 3


def _measure(
    curve: Curve, asked: argparse.Namespace, results: dict[tuple[str, int], list[Figures]], console: Console
) -> None:
    points = curve.quick if asked.quick else curve.points
    if curve.name == "connections":
        allow_files(max(points))
    with ExitStack() as stack:
        progress = stack.enter_context(console.status(f"{curve.name}: starting"))
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="scaling-")))
        measure = curve.open(Ground(stack, directory, asked.seconds), points)
        for number in range(asked.rounds):
            turn = number % len(points)  # so that no point always comes after the same neighbour
            for point in points[turn:] + points[:turn]:
                progress.update(f"{curve.name}: round {number + 1}, {point:,} {curve.axis}")
                try:
                    results.setdefault((curve.name, point), []).append(measure(point))
                except RigError as error:
                    raise RigError(f"{curve.name} at {point:,}: {error}") from None


def allow_files(connections: int) -> None:
    """Raises this process's limit of open files, which those that it starts inherit.

    Raises:
        RigError: the system does not allow so many.
    """
    wanted = int(connections * FILES_A_CONNECTION) // 2 + 1000
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise RigError(f"{connections:,} connections need {wanted:,} open files, the limit is {hard:,} (ulimit -Hn)")
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


if __name__ == "__main__":
    sys.exit(main())
