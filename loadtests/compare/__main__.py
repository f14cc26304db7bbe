"""``make compare``: the gateway beside what a user would otherwise put there.

Upstream, Valkey and every contender are started here, on loopback. All are driven in turn by wrk, several rounds, with
the same request, answer, fields and durability of Valkey; each measurement checks in Valkey that every request was
debited once. The load generator, the upstream and Valkey share the machine's processors with the contender, so CPU per
request says more than requests per second, and only ratios within one run mean anything.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console

from loadtests.compare import report
from loadtests.compare.bars import Results, judge
from loadtests.compare.contenders import Ground, start_all
from loadtests.compare.measuring import measure
from loadtests.kit import rig, tools, wrk
from loadtests.kit.processes import RigError
from loadtests.kit.results import read_json, write_json

CONNECTIONS = (1, 16, 64, 256)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds (default: 5)")
    parser.add_argument("--seconds", type=int, default=3, help="of each measurement (default: 3)")
    parser.add_argument("--connections", type=int, nargs="+", default=list(CONNECTIONS), help="default: 1 16 64 256")
    parser.add_argument("--only", nargs="+", metavar="WORD", help="contenders whose names have one of these words")
    parser.epilog = "exit status: 0 all bars hold, 3 one does not, 1 nothing could be measured, 2 misuse"
    parser.add_argument("--json", type=Path, help="write the result there")
    parser.add_argument("--chart", type=Path, help="draw a chart there (.svg or .png)")
    parser.add_argument("--from", type=Path, dest="earlier", metavar="FILE",
                        help="draw the chart of this --json file, and measure nothing")  # fmt: skip
    arguments = parser.parse_args()
    console = Console(stderr=True)
    if arguments.earlier and not arguments.chart:
        parser.error("--from goes with --chart")
    try:
        if arguments.earlier:
            report.draw(arguments.chart, read_json(arguments.earlier))
            return 0
        results, missing = _run(arguments, console)
    except RigError as error:
        console.print(f"error: {error}", style="red", markup=False, soft_wrap=True)
        return 1
    verdicts = judge(results)
    report.show(results, verdicts, missing)
    document = report.document(results, verdicts, missing, arguments.seconds)
    if arguments.json:
        write_json(arguments.json, document)
    if arguments.chart:
        try:
            report.draw(arguments.chart, document)
        except RigError as error:
            console.print(f"error: {error}", style="red", markup=False, soft_wrap=True)
            return 1
    return 0 if all(verdict.holds for verdict in verdicts) else 3


def _run(arguments: argparse.Namespace, console: Console) -> tuple[Results, list[str]]:
    if wrk.find() is None:
        raise RigError(f"wrk is not installed ({tools.DEBIAN})")
    results: Results = {}
    with ExitStack() as stack:
        progress = stack.enter_context(console.status("starting"))
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="compare-")))
        directory.chmod(0o755)  # nginx's worker is another user when root starts it
        valkey = stack.enter_context(rig.valkey(directory / "valkey"))
        ground = Ground(stack, directory, stack.enter_context(rig.upstream()), valkey)
        contenders, missing = start_all(ground)
        if arguments.only:
            words = [word.lower() for word in arguments.only]
            contenders = [each for each in contenders if any(word in each.name.lower() for word in words)]
        total = arguments.rounds * len(arguments.connections) * len(contenders)
        done = 0
        for number in range(arguments.rounds):
            for connections in arguments.connections:
                # The order turns, so that nobody always comes after the same neighbour.
                turn = number % len(contenders)
                for contender in contenders[turn:] + contenders[:turn]:
                    done += 1
                    progress.update(f"round {number + 1}: {contender.name}, {connections} connections ({done}/{total})")
                    found = measure(contender, valkey.pid, connections, arguments.seconds)
                    results.setdefault((connections, contender.name), []).append(found)
    return results, missing


if __name__ == "__main__":
    sys.exit(main())
