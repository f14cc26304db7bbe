"""The locust users. What they share, the run, comes with ``environment.run``; every request is reported to locust and
counted in the results.
"""

from __future__ import annotations

import random
import time
import uuid
from itertools import count, cycle
from typing import Protocol, cast

import gevent
from gevent.event import Event
from locust import User, between, task

from loadtests.scenarios import bodies, slow
from loadtests.scenarios.plan import Call, Caller, Plan
from loadtests.scenarios.result_counter import End, Reply, ResultCounter
from loadtests.scenarios.wire import Line

REFUSED_PAUSE_S = 0.05
_turns, _slow_turns = count(), count()


class Run(Protocol):
    """What the users of one run share. ``go`` is set when all are there, ``began`` is then the monotonic time."""

    plan: Plan
    results: ResultCounter
    go: Event
    began: float
    attempts: int


class Scenario(User):
    """A user with an account of its own choosing and a kept connection, who begins when all others do."""

    abstract = True

    def on_start(self) -> None:
        self.run_ = cast(Run, vars(self.environment)["run"])
        plan = self.run_.plan
        turn = next(_turns)
        self.caller: Caller = plan.callers[turn % len(plan.callers)]
        self.urls = cycle(plan.urls[turn % len(plan.urls) :] + plan.urls[: turn % len(plan.urls)])
        self.line = Line(next(self.urls))
        self.run_.go.wait()

    def on_stop(self) -> None:
        self.line.close()

    def wait_time(self) -> float:
        return random.uniform(*self.run_.plan.pause_s)

    def fields(self) -> dict[str, str]:
        return {"X-API-Key": self.caller.key}

    def report(self, name: str, reply: Reply, units: int, began: float) -> None:
        """Counts a request; ``began``: monotonic time."""
        now = time.monotonic()
        took_ms = (now - began) * 1000
        self.run_.results.record(
            reply, account=self.caller.account, units=units, at_s=now - self.run_.began, took_ms=took_ms
        )
        self.environment.events.request.fire(
            request_type=name.partition(" ")[0], name=name.partition(" ")[2], response_time=took_ms,
            response_length=len(reply.body), exception=None if reply.end is End.ANSWERED else OSError(reply.end.value),
            context={},
        )  # fmt: skip
        if reply.end is End.REFUSED:  # the next gateway, as a load balancer would choose
            self.line.close()
            self.line = Line(next(self.urls))
            gevent.sleep(REFUSED_PAUSE_S)

    def make(self, call: Call, extra: dict[str, str] | None = None) -> Reply:
        fields = {**self.fields(), **call.fields, **(extra or {})}
        body = call.body.encode() if call.body else None
        if body:
            fields["Content-Type"] = "application/json"
        began = time.monotonic()
        reply = self.line.call(call.method, call.path, fields, body)
        self.report(f"{call.method} {call.path}", reply, call.units, began)
        return reply


class Client(Scenario):
    """Makes the plan's calls by their weights; some twice under one idempotency key, as a client that retries."""

    @task
    def call(self) -> None:
        calls = self.run_.plan.calls
        call = random.choices(calls, [each.weight for each in calls])[0]
        if not call.twice:
            self.make(call)
            return
        key = {"x-idempotency-key": uuid.uuid4().hex}
        for _ in range(2):
            self.make(call, key)


class Member(Scenario):
    """One of a herd: calls as fast as it can until the herd has made its calls."""

    def wait_time(self) -> float:
        return 0.0

    @task
    def call(self) -> None:
        run = self.run_
        if run.attempts >= run.plan.attempts_max:
            gevent.sleep(0.1)
            return
        run.attempts += 1
        self.make(run.plan.calls[0])


class SlowClient(Scenario):
    """Tires the gateway in one of three ways, until the gateway ends it."""

    wait_time = between(0.1, 0.5)

    def on_start(self) -> None:
        super().on_start()
        self.ways = cycle(slow.ways(self.run_.plan))
        for _ in range(next(_slow_turns)):  # so that few clients go all ways
            next(self.ways)

    @task
    def dawdle(self) -> None:
        run = self.run_
        way = next(self.ways)
        began = time.monotonic()
        found = way(next(self.urls), self.fields(), run.plan)
        run.results.note(slow.note(way.__name__, found.ended))
        if found.may_be_charged:
            self.report(f"{found.method} (slow)", Reply(End.UNREAD), run.plan.calls[0].units, began)


class Carrier(Scenario):
    """Sends and fetches big bodies, by length and chunked, and compares digests."""

    @task
    def carry(self) -> None:
        plan = self.run_.plan
        way = random.choice(bodies.ways(plan))
        began = time.monotonic()
        reply, problem = bodies.carry(self.line, way, self.fields(), plan)
        self.report(way.name, reply, plan.calls[0].units, began)
        self.run_.results.note(bodies.note(way, not problem))
        self.run_.results.note("bytes carried", plan.body_bytes)
        if problem:
            self.run_.results.tell(f"{way.name}: {problem}")


KINDS: dict[str, tuple[type[Scenario], ...]] = {
    "calls": (Client,),
    "herd": (Member,),
    "slow": (Client, SlowClient),
    "bodies": (Carrier,),
}
