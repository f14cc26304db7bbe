"""What a run came to: all that the report, the JSON and the terminal show. No I/O, and no secrets."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from loadtests.scenarios.checks import Check, Verdict, exit_status
from loadtests.scenarios.plan import Answers
from loadtests.scenarios.scenario import Mark


@dataclass(frozen=True, slots=True)
class Outcome:
    """``release``: of the gateway, "" where it is not known. ``machine``, ``python``: where the clients ran, and
    everything else if it ``is_local``.
    ``seconds``: how long the run took, which may be less than what was asked for if the load ended by itself.
    """

    scenario: str
    about: str
    asserts: str
    started_at: float
    urls: tuple[str, ...]
    release: str
    machine: str
    python: str
    is_local: bool
    notes: tuple[str, ...]
    users: int
    seconds: float
    seconds_asked: float
    answers: Answers
    checks: tuple[Check, ...]
    marks: tuple[Mark, ...] = ()
    grown_mb: float | None = None

    @property
    def exit_status(self) -> int:
        return exit_status(self.checks)

    @property
    def when(self) -> str:
        return f"{datetime.fromtimestamp(self.started_at, UTC):%Y-%m-%d %H:%M:%S} UTC"

    def count(self, verdict: Verdict) -> int:
        return sum(check.verdict is verdict for check in self.checks)

    def summary(self) -> str:
        """One line."""
        words = {0: "holds", 1: "FAILED", 2: "NOTHING CHECKED"}[self.exit_status]
        counts = [f"{self.count(Verdict.HOLDS)} hold"]
        counts += [
            f"{n} {verdict.value}" for verdict in (Verdict.FAILED, Verdict.UNCHECKED) if (n := self.count(verdict))
        ]
        statuses = ", ".join(f"{count:,} × {status}" for status, count in self.answers.by_status.items())
        return f"{self.scenario}: {words} ({', '.join(counts)}); {statuses or 'no requests'}"

    def document(self) -> dict[str, Any]:
        """For ``--json``."""
        answers = self.answers.as_json()
        return {
            "scenario": self.scenario,
            "exit_status": self.exit_status,
            "started_at": self.when,
            "urls": list(self.urls),
            "release": self.release,
            "machine": self.machine,
            "python": self.python,
            "notes": list(self.notes),
            "users": self.users,
            "seconds": self.seconds,
            "seconds_asked": self.seconds_asked,
            "checks": [{**asdict(check), "verdict": check.verdict.value} for check in self.checks],
            "troubles": [asdict(mark) for mark in self.marks],
            "memory_grown_mb": self.grown_mb,
            "answers": answers,
        }
