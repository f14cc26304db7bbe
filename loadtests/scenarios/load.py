"""The process that makes the load: reads a plan as JSON from its standard input, writes two lines of JSON to its
standard output: ``{"began": UNIX_SECONDS}`` when all users are there, and the answers at the end.

gevent replaces sockets and threads in this process, so nothing else is done in it.
"""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

import json  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
from dataclasses import dataclass, field, replace  # noqa: E402

import gevent  # noqa: E402
from gevent.event import Event  # noqa: E402
from locust.env import Environment  # noqa: E402

from loadtests.scenarios.plan import Plan  # noqa: E402
from loadtests.scenarios.result_counter import ResultCounter  # noqa: E402
from loadtests.scenarios.slow import CLIENT_TIMEOUT_S  # noqa: E402
from loadtests.scenarios.users import KINDS  # noqa: E402
from loadtests.scenarios.wire import TIMEOUT_S  # noqa: E402


@dataclass(slots=True)
class LoadRun:
    """What the users share (``users.Run``)."""

    plan: Plan
    results: ResultCounter = field(default_factory=ResultCounter)
    go: Event = field(default_factory=Event)
    began: float = 0.0
    attempts: int = 0


def main() -> None:
    run = LoadRun(Plan.parse(json.loads(sys.stdin.readline())))
    plan = run.plan
    environment = Environment(user_classes=list(KINDS[plan.kind]), catch_exceptions=False)
    vars(environment)["run"] = run
    # A user in the middle of a request ends it, so that every request made is counted.
    environment.stop_timeout = max(TIMEOUT_S, plan.limit_s * 2 + 2 * CLIENT_TIMEOUT_S)
    runner = environment.create_local_runner()
    runner.start(plan.users, spawn_rate=max(1, plan.users * 10))
    while runner.user_count < plan.users:
        gevent.sleep(0.02)
    run.began = time.monotonic()
    print(json.dumps({"began": time.time()}), flush=True)
    run.go.set()
    end = run.began + plan.seconds
    while time.monotonic() < end and not (plan.attempts_max and run.attempts >= plan.attempts_max):
        gevent.sleep(0.05)
    runner.quit()
    answers = replace(run.results.answers(), took_s=round(time.monotonic() - run.began, 2))
    print(json.dumps(answers.as_json()), flush=True)


if __name__ == "__main__":
    main()
