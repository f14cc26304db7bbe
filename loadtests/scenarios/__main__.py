"""``python -m loadtests.scenarios NAME``: one scenario against ``sidecar demo`` or a deployment, with exact checks."""

from __future__ import annotations

import importlib.util
import json
import signal
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from types import FrameType

from rich.console import Console

from loadtests.kit.processes import RigError
from loadtests.scenarios.adopting import adopt
from loadtests.scenarios.catalog import SCENARIOS
from loadtests.scenarios.checks import Verdict
from loadtests.scenarios.options import Options, parse, parser
from loadtests.scenarios.outcome import Outcome
from loadtests.scenarios.report import page
from loadtests.scenarios.running import run
from loadtests.scenarios.target import CannotRun

STYLES = {Verdict.HOLDS: "green", Verdict.FAILED: "bold red", Verdict.UNCHECKED: "yellow"}
INTERRUPTED = 130


def main(arguments: list[str] | None = None) -> int:
    errors = Console(stderr=True, highlight=False)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        asked = parser(tuple(SCENARIOS), _explained()).parse_args(arguments)
        if asked.list or asked.name is None:
            print(_explained())
            return 0 if asked.list else 2
        options = parse(asked, tuple(SCENARIOS))
        if importlib.util.find_spec("locust") is None:
            raise CannotRun("locust is not installed (pip install 'quota-sidecar[load]')")
        outcome = _run(options, errors)
        _write(options, outcome)
    except (CannotRun, RigError) as error:
        errors.print(f"error: {error}", style="red", markup=False, soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        errors.print("interrupted; everything that was started has ended")
        return INTERRUPTED
    _show(Console(highlight=False), outcome)
    return outcome.exit_status


def _run(options: Options, errors: Console) -> Outcome:
    scenario = SCENARIOS[options.scenario]

    def say(text: str) -> None:
        errors.print(text, style="dim", markup=False, soft_wrap=True)

    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="scenario-")))
        if options.urls:
            setting = scenario.adopt(adopt(options), options)
        else:
            say(f"{scenario.name}: starting sidecar demo")
            setting = scenario.stage(stack, directory, options)
        return run(scenario, setting, options, directory, say)


def _write(options: Options, outcome: Outcome) -> None:
    for path, text in ((options.json, json.dumps(outcome.document(), indent=1)), (options.report, page(outcome))):
        if path is None:
            continue
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text + "\n")
        except OSError as error:
            raise CannotRun(f"{path}: {error.strerror}") from None


def _show(console: Console, outcome: Outcome) -> None:
    for check in outcome.checks:
        found = check.found if check.found == check.expected else f"{check.found} (expected: {check.expected})"
        console.print(f"{check.verdict.value:11}", style=STYLES[check.verdict], end=" ")
        console.print(f"{check.name}: {found}", markup=False, soft_wrap=True)
    latency = outcome.answers.latency
    console.print(f"latency of 2xx in ms: p50 {latency.p50}, p90 {latency.p90}, p99 {latency.p99}, max {latency.max}")
    for text in outcome.answers.texts:
        console.print(text, style="red", markup=False)
    console.print(outcome.summary(), soft_wrap=True)


def _explained() -> str:
    return "\n".join(f"{each.name}\n  {each.about}\n  {each.asserts}" for each in SCENARIOS.values())


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
